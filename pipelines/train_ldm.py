"""Train the latent diffusion model on the encoded videos. Run it again to go on after any stop.

accelerate launch pipelines/train_ldm.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.experiment import announce, parse_experiment
from ldm.train import train_ldm
from odvae.running.errors import readable_errors


def main() -> None:
    experiment, options = parse_experiment(__doc__)
    folders = experiment.folders
    train_ldm(experiment.ldm, folders.vae, folders.latents, folders.ldm, experiment.seed, experiment.tracker)
    announce(folders.ldm, "sample_video.py", experiment, options)


if __name__ == "__main__":
    with readable_errors():
        main()
