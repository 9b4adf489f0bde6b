"""Train the latent diffusion model on the encoded videos. Run it again to resume.

odvae-train-ldm [--config demo] [section.key=value ...]
On several GPUs: accelerate launch -m ldm.commands.train_ldm ...
"""

from ldm.experiment import announce, parse_experiment
from odvae.running.errors import readable_errors


@readable_errors()
def main() -> None:
    experiment, options = parse_experiment(__doc__)
    from ldm.train import train_ldm

    folders = experiment.folders
    train_ldm(
        experiment.ldm,
        folders.vae,
        folders.latents,
        folders.ldm,
        experiment.seed,
        experiment.tracker,
        failures_allowed=experiment.data.failures_allowed,
    )
    announce(folders.ldm, "sample_video", options)


if __name__ == "__main__":
    main()
