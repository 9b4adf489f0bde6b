"""Scores and the report page in the tracker's run of the training that they belong to."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState

from ldm.report.flat_table import flatten
from odvae.report_file import read_report
from odvae.running.files import read_json_lines
from odvae.running.run_folder import RunFolder
from odvae.storage.paths import is_remote
from odvae.training.settings import Tracker
from odvae.training.tracking import wandb_run_id
from odvae.video.images import decode_image
from odvae.weights.pretrained import root_of

# The tracker's project, which is also the folder of TensorBoard's events in a training's folder.
PROJECT = "odvae"


def track_scores(tracker: Tracker, folders: RunFolder, trained: str, parts: Sequence[str] | None = None) -> None:
    """Send the scores in report.json, or those `parts` of it, to the run that the training in the folder `trained`
    ("vae" or "ldm") logs to; and the report page, as an artifact (TensorBoard: its overview, as an image).

    Only the main process does. A tracker that fails costs its own records alone: the report is there.
    """
    if tracker == "none" or not PartialState().is_main_process:
        return
    if is_remote(folders.root):
        print(f"warning: tracker={tracker}: the scores of a run at a URL are in its report alone", file=sys.stderr)
        return
    report = read_report(folders)
    chosen = {name: report[name] for name in report if parts is None or name in parts}
    scores = {f"evaluation/{row.name}": row.value for row in flatten(chosen, {})}
    folder, page = folders.root / trained, [folders.report / name for name in ("report.html", "report.json")]
    try:
        if tracker == "wandb":
            _to_wandb(folder, scores, [path for path in page if path.is_file()])
        else:
            _to_tensorboard(folder, scores, folders.report / "overview.png")
    except Exception as error:  # trackers have their own types of errors
        print(
            f"warning: {tracker} did not take the scores ({root_of(error)}); they are in {folders.report}",
            file=sys.stderr,
            flush=True,
        )


def _to_wandb(folder: Path, scores: Mapping[str, float], files: Sequence[Path]) -> None:
    import wandb  # an optional dependency

    run = wandb.init(project=PROJECT, id=wandb_run_id(folder), resume="allow", dir=str(folder))
    run.summary.update(dict(scores))  # not in the curves, whose steps an offline run does not know
    if files:
        artifact = wandb.Artifact(f"report-{run.id}", type="report")
        for path in files:
            artifact.add_file(str(path))
        run.log_artifact(artifact)
    run.finish()


def _to_tensorboard(folder: Path, scores: Mapping[str, float], overview: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter  # needs the optional tensorboard

    metrics = folder / "metrics.jsonl"
    steps = [int(row.number("step")) for row in read_json_lines(metrics)] if metrics.is_file() else []
    with SummaryWriter(str(folder / PROJECT)) as writer:
        for name, value in scores.items():
            writer.add_scalar(name, value, max(steps, default=0))
        if overview.is_file():
            pixels = np.asarray(decode_image(overview.read_bytes(), str(overview)))
            writer.add_image("report", pixels, max(steps, default=0), dataformats="HWC")
