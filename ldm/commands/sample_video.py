"""Generate videos from prompts, classes or an image; by default from held-out captions or classes, to be scored.
Videos that are there already, made with the same settings and weights, are not made again.

odvae-sample --prompt "a large red circle moves left slowly" [--seed 0]
odvae-sample [--config demo] [section.key=value ...]
On several GPUs: accelerate launch -m ldm.commands.sample_video ...
"""

from pathlib import Path

from ldm.arguments import CommandParser
from ldm.experiment import announce, parse_experiment
from odvae.running.errors import InputError, readable_errors


@readable_errors()
def main() -> None:
    extra = CommandParser(add_help=False)
    extra.add_argument("--prompt", action="append", default=[], help="text prompt; may be given several times")
    extra.add_argument(
        "--prompts",
        type=Path,
        help="text file with one prompt per line, or table (.csv, .jsonl, .parquet ...) with a column prompt, and "
        "perhaps negative_prompt and seed",
    )
    extra.add_argument("--negative-prompt", default="", help="prompt that guidance leads away from")
    extra.add_argument("--class", dest="classes", action="append", default=[], help="name or index of a class")
    extra.add_argument("--image", type=Path, help="image to use as the first frame")
    extra.add_argument("--count", type=int, help="videos per prompt or class, with seeds SEED, SEED + 1, ...")
    extra.add_argument("--seed", type=int, help="seed of the first video of each prompt or class (default: 0)")
    experiment, options = parse_experiment(__doc__, extra)
    from ldm.latents.manifest import load_manifest
    from ldm.open_videos import open_videos
    from ldm.sample import sample_videos
    from ldm.sampling.prompt_file import read_prompts
    from ldm.sampling.sample_requests import evaluation_requests, user_requests

    folders, samples = experiment.folders, experiment.sample
    prompts = options.prompt + (read_prompts(options.prompts) if options.prompts else [])
    by_user = bool(prompts or options.classes or options.image or options.count is not None)
    if not by_user and (options.negative_prompt or options.seed is not None):
        raise InputError("--negative-prompt and --seed need --prompt, --prompts, --class, --image or --count")
    if by_user:
        count = 1 if options.count is None else options.count
        texts = (options.negative_prompt, options.image, samples.file_names)
        requests = user_requests(prompts, options.classes, options.seed or 0, count, *texts)
    else:
        conditioning = experiment.ldm.conditioning
        demo = experiment.demo_videos.content if experiment.demo_videos is not None else None
        classes = load_manifest(folders.latents).classes if conditioning.kind == "class" else []
        requests = evaluation_requests(samples, conditioning, classes, open_videos(experiment), experiment.seed, demo)
    files = sample_videos(requests, samples, folders.vae, folders.ldm, folders.samples)
    for file in files if by_user else []:
        print(file)
    announce(folders.samples, None if by_user else "evaluate_vae", options)


if __name__ == "__main__":
    main()
