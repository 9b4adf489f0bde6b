"""Score the VAE's reconstruction of held-out clips: PSNR, SSIM, LPIPS; whole, streamed and tiled; speed and memory.

accelerate launch pipelines/evaluate_vae.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.experiment import announce, open_videos, parse_experiment
from odvae.evaluate import evaluate_vae
from odvae.running.errors import readable_errors


def main() -> None:
    experiment, options = parse_experiment(__doc__)
    folders, videos = experiment.folders, open_videos(experiment)
    evaluate_vae(experiment.eval_vae, experiment.data, videos, folders, experiment.seed)
    announce(folders.report, "evaluate_ldm.py", experiment, options)


if __name__ == "__main__":
    with readable_errors():
        main()
