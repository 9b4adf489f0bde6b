"""Train the video VAE: first as an image VAE, then inflated to OD-VAE. Run it again to go on after any stop.

accelerate launch pipelines/train_vae.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.experiment import announce, open_videos, parse_experiment
from odvae.running.errors import readable_errors
from odvae.train import train_vae


def main() -> None:
    experiment, options = parse_experiment(__doc__)
    folder = experiment.folders.vae
    videos = open_videos(experiment)
    train_vae(experiment.vae, experiment.data, videos, folder, experiment.seed, experiment.tracker)
    announce(folder, "encode_latents.py", experiment, options)


if __name__ == "__main__":
    with readable_errors():
        main()
