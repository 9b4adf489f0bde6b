"""Encode the videos with the trained VAE, and their captions, into latent shards. Run it again to resume.

odvae-encode [--config demo] [section.key=value ...]
On several GPUs: accelerate launch -m ldm.commands.encode_latents ...
Other captions or another text encoder, without encoding videos again: ... encode.text=only (docs/data.md)
In parts, on any machines: ... encode.part=1/8 to encode.part=8/8, then once encode.finish=true (docs/cluster.md)
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
    is_part = experiment.encode.part is not None
    of_this_command = ("encode.part=", "encode.finish=", *([] if is_part else ["encode.text=only"]))
    options.overrides = [one for one in options.overrides if not one.startswith(of_this_command)]
    if is_part:
        options.overrides.append("encode.finish=true")
    announce(folders.latents, "encode_latents" if is_part else "train_ldm", options)


if __name__ == "__main__":
    main()
