"""Score the VAE's reconstruction of held-out clips: PSNR, SSIM, and the demo's judge.

accelerate launch pipelines/evaluate_vae.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.evaluate import evaluate_vae
from ldm.experiment import announce, open_videos, parse_experiment
from odvae.shared.errors import readable_errors


def main() -> None:
    experiment, options = parse_experiment(__doc__)
    folders, demo = experiment.folders, experiment.demo_videos is not None
    evaluate_vae(experiment.report, experiment.data, open_videos(experiment), folders, demo)
    announce(folders.report, "evaluate_ldm.py", experiment, options)


if __name__ == "__main__":
    with readable_errors():
        main()
