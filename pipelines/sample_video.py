"""Generate videos: of the prompts given, or, with none, of the held-out captions that the evaluation scores.

accelerate launch pipelines/sample_video.py --prompt "a large red circle moves left" [--seed 0]
accelerate launch pipelines/sample_video.py [--config configs/demo.yaml] [section.key=value ...]
"""

import argparse
from pathlib import Path

from ldm.experiment import announce, open_videos, parse_experiment
from ldm.sample import asked_requests, evaluation_requests, sample_videos
from odvae.shared.errors import InputError, readable_errors


def main() -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--prompt", action="append", default=[], help="what to show; give it again for more videos")
    extra.add_argument("--prompts", type=Path, help="text file with one prompt a line")
    extra.add_argument("--seed", type=int, default=0, help="seed of the videos asked for (default: %(default)s)")
    experiment, options = parse_experiment(__doc__, extra)
    folders = experiment.folders
    prompts = options.prompt + read_prompts(options.prompts)
    if prompts:
        requests = asked_requests(prompts, options.seed)
    else:
        demo = experiment.demo_videos is not None
        requests = evaluation_requests(experiment.samples, open_videos(experiment), experiment.seed, demo)
    files = sample_videos(requests, experiment.samples, folders.vae, folders.ldm, folders.samples)
    for file in files if prompts else []:
        print(file)
    announce(folders.samples, None if prompts else "evaluate_vae.py", experiment, options)


def read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    if not path.is_file():
        raise InputError(f"--prompts {path}: no such file")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


if __name__ == "__main__":
    with readable_errors():
        main()
