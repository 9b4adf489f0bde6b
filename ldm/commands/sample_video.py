"""Generate videos: of what is asked for, or, with nothing, of what the evaluation scores (held-out captions, classes).

odvae-sample --prompt "a large red circle moves left" [--seed 0]
odvae-sample [--config demo] [section.key=value ...]
On several GPUs: accelerate launch -m ldm.commands.sample_video ...
"""

import argparse
from pathlib import Path

from ldm.experiment import announce, parse_experiment
from odvae.running.errors import InputError, readable_errors
from odvae.running.text import read_text_file


@readable_errors()
def main() -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--prompt", action="append", default=[], help="what to show; give it again for more videos")
    extra.add_argument("--prompts", type=Path, help="text file with one prompt a line")
    extra.add_argument("--negative-prompt", default="", help="what guidance leads away from")
    extra.add_argument("--class", dest="classes", action="append", default=[], help="name or number of a class")
    extra.add_argument("--image", type=Path, help="picture that the videos begin with")
    extra.add_argument("--count", type=int, help="videos of each prompt or class, with seeds SEED, SEED + 1, ...")
    extra.add_argument("--seed", type=int, default=0, help="seed of the videos asked for (default: %(default)s)")
    experiment, options = parse_experiment(__doc__, extra)
    from ldm.latents.manifest import load_manifest
    from ldm.open_videos import open_videos
    from ldm.sample import sample_videos
    from ldm.sampling.requests import asked_requests, evaluation_requests

    folders, samples = experiment.folders, experiment.sample
    prompts = options.prompt + read_prompts(options.prompts)
    asked = bool(prompts or options.classes or options.image or options.count is not None)
    if asked:
        count = 1 if options.count is None else options.count
        requests = asked_requests(prompts, options.classes, options.seed, count, options.negative_prompt, options.image)
    else:
        demo, conditioning = experiment.demo_videos is not None, experiment.ldm.conditioning
        classes = load_manifest(folders.latents).classes if conditioning.kind == "class" else []
        requests = evaluation_requests(samples, conditioning, classes, open_videos(experiment), experiment.seed, demo)
    files = sample_videos(requests, samples, folders.vae, folders.ldm, folders.samples)
    for file in files if asked else []:
        print(file)
    announce(folders.samples, None if asked else "evaluate_vae", options)


def read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    prompts = [line.strip() for line in read_text_file(path, "--prompts").split("\n") if line.strip()]
    if not prompts:
        raise InputError(f"--prompts {path} holds no prompt; one a line is read")
    return prompts


if __name__ == "__main__":
    main()
