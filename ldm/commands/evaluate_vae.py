"""Score the VAE's reconstruction of held-out clips: PSNR, SSIM, LPIPS; whole, streamed and tiled; speed and memory.

odvae-evaluate-vae [--config demo] [section.key=value ...]
On several GPUs: accelerate launch -m ldm.commands.evaluate_vae ...
"""

from ldm.experiment import announce, parse_experiment
from odvae.running.errors import readable_errors


@readable_errors()
def main() -> None:
    experiment, options = parse_experiment(__doc__)
    from ldm.open_videos import open_videos
    from odvae.evaluate import evaluate_vae

    folders, videos = experiment.folders, open_videos(experiment)
    evaluate_vae(experiment.eval_vae, experiment.data, videos, folders, experiment.seed)
    announce(folders.report, "evaluate_ldm", options)


if __name__ == "__main__":
    main()
