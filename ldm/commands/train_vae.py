"""Train the video VAE: first as an image VAE, then inflated to OD-VAE. Run it again to resume.

odvae-train-vae [--config demo] [section.key=value ...]
On several GPUs: accelerate launch -m ldm.commands.train_vae ...
"""

from ldm.experiment import announce, parse_experiment
from odvae.running.errors import readable_errors


@readable_errors()
def main() -> None:
    experiment, options = parse_experiment(__doc__)
    from ldm.open_videos import open_videos
    from odvae.train import train_vae

    folder = experiment.folders.vae
    videos = open_videos(experiment)
    train_vae(experiment.vae, experiment.data, videos, folder, experiment.seed, experiment.tracker)
    announce(folder, "encode_latents", options)


if __name__ == "__main__":
    main()
