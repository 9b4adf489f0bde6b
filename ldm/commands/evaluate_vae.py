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
    from ldm.report.score_tracking import track_scores
    from odvae.evaluate import evaluate_vae
    from odvae.training.tracking import check_tracker_installed

    check_tracker_installed(experiment.tracker)
    folders, videos = experiment.folders, open_videos(experiment)
    evaluate_vae(experiment.eval_vae, experiment.data, videos, folders, experiment.seed)
    track_scores(experiment.tracker, folders, "vae", ["reconstruction"])
    announce(folders.report, "evaluate_ldm", options)


if __name__ == "__main__":
    main()
