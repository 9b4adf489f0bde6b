"""Score the generated videos (prompt accuracy, FVD and related distances, flicker) and write the report page.

odvae-evaluate-ldm [--config demo] [section.key=value ...]
On several GPUs: accelerate launch -m ldm.commands.evaluate_ldm ...
"""

from ldm.experiment import announce, parse_experiment
from odvae.running.errors import readable_errors


@readable_errors()
def main() -> None:
    experiment, options = parse_experiment(__doc__)
    from ldm.evaluate import evaluate_ldm
    from ldm.open_videos import open_videos
    from ldm.report.score_tracking import track_scores
    from odvae.training.tracking import check_tracker_installed

    check_tracker_installed(experiment.tracker)
    folders, demo = experiment.folders, experiment.demo_videos is not None
    videos = open_videos(experiment)
    evaluate_ldm(experiment.eval_ldm, experiment.data, videos, folders, experiment.seed, demo)
    track_scores(experiment.tracker, folders, "ldm")
    announce(folders.report, None, options)


if __name__ == "__main__":
    main()
