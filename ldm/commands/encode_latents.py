"""Encode the videos with the trained VAE, and their captions, into latent shards. Run it again to resume.

odvae-encode [--config demo] [section.key=value ...]
On several GPUs: accelerate launch -m ldm.commands.encode_latents ...
"""

from ldm.experiment import announce, parse_experiment
from odvae.running.errors import readable_errors


@readable_errors()
def main() -> None:
    experiment, options = parse_experiment(__doc__)
    from ldm.encode import encode_latents
    from ldm.open_videos import open_videos

    folders, videos = experiment.folders, open_videos(experiment)
    encode_latents(
        experiment.encode,
        experiment.text,
        experiment.data,
        videos,
        folders.vae,
        folders.latents,
        experiment.seed,
        needs_text=experiment.ldm.conditioning.kind == "text",
    )
    announce(folders.latents, "train_ldm", options)


if __name__ == "__main__":
    main()
