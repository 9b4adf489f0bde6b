"""Encode the videos with the trained VAE, and their captions, into latent shards. Run it again to go on after any stop.

accelerate launch pipelines/encode_latents.py [--config configs/demo.yaml] [section.key=value ...]
"""

from ldm.encode import encode_latents
from ldm.experiment import announce, open_videos, parse_experiment
from odvae.running.errors import readable_errors


def main() -> None:
    experiment, options = parse_experiment(__doc__)
    folders, videos = experiment.folders, open_videos(experiment)
    encode_latents(
        experiment.encode, experiment.text, experiment.data, videos, folders.vae, folders.latents, experiment.seed
    )
    announce(folders.latents, "train_ldm.py", experiment, options)


if __name__ == "__main__":
    with readable_errors():
        main()
