"""Logging of training metrics, images and videos to files (metrics.jsonl) and to a tracker (TensorBoard, wandb).

A tracker that cannot be started is an error. If it fails later, a warning is printed once, and the training continues
without it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate import Accelerator

from odvae.running.distributed import decide_on_main_process
from odvae.running.errors import InputError
from odvae.running.files import append_text, read_json_lines, read_object, write_json, write_text
from odvae.running.run_folder import code_version
from odvae.running.settings import read_yaml
from odvae.running.stage import SETTINGS
from odvae.running.text import read_text_file
from odvae.training.settings import Tracker
from odvae.video.frame_grid import save_image
from odvae.video.video_io import write_video
from odvae.weights.pretrained import root_of

# The id of a folder's run in wandb.
WANDB_RUN = "wandb_run.json"


def check_tracker_installed(tracker: Tracker) -> None:
    """Raise InputError if the tracker's package is missing; accelerate would silently log nothing."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise InputError(f"tracker={tracker}: {tracker} is not installed; pip install {tracker}, or set tracker=none")


def start_tracker(accelerator: Accelerator, tracker: Tracker, folder: Path, name: str) -> None:
    """Start the tracker on the main process; all ranks must call it. Raises InputError, with remedies, if it fails.

    It gets the settings recorded in `folder` and the version of the code. A training that was stopped goes on in the
    same run of wandb, whose id is kept in the folder.
    """
    if tracker == "none":
        return
    decide_on_main_process(lambda: _start(accelerator, tracker, folder, name))
    if not accelerator.is_main_process:
        accelerator.init_trackers("odvae")  # starts nothing there


def _start(accelerator: Accelerator, tracker: Tracker, folder: Path, name: str) -> None:
    config = {**_recorded_settings(folder), "code": code_version()}
    options: dict[str, Any] = {"name": name, "dir": str(folder), "config": config, "resume": "allow"}
    if tracker == "wandb":
        options["id"] = wandb_run_id(folder)
    try:
        accelerator.init_trackers("odvae", init_kwargs={"wandb": options})
        if tracker == "tensorboard":
            text = yaml.safe_dump(config, sort_keys=False)
            accelerator.get_tracker("tensorboard", unwrap=True).add_text("config", f"```\n{text}```")
    except Exception as error:  # trackers have their own types of errors
        remedies = {
            "wandb": "give a key (WANDB_API_KEY=..., or `wandb login` once), or log without a connection "
            "(WANDB_MODE=offline; `wandb sync` sends it later), or set tracker=none",
        }
        raise InputError(
            f"tracker={tracker} cannot be started ({root_of(error)}): {remedies.get(tracker, 'set tracker=none')}"
        ) from None


def _recorded_settings(folder: Path) -> dict[str, Any]:
    """The settings of the stage that `folder` belongs to (an image VAE's is within the stage's folder)."""
    for place in (folder, folder.parent):
        if (place / SETTINGS).is_file():
            return dict(read_yaml(read_text_file(place / SETTINGS), str(place / SETTINGS)) or {})
    return {}


def wandb_run_id(folder: Path) -> str:
    """The id of a training folder's run in wandb, made at its first start."""
    path = folder / WANDB_RUN
    if not path.is_file():
        write_json(path, {"id": secrets.token_hex(4)})
    return read_object(path).text("id")


class MetricsLog:
    """Writes rows of values to `metrics.jsonl`, one JSON object per line with its `step`, and images and videos.

    On resume, rows after the checkpoint's step are removed, since those steps are repeated. Only the main process
    writes.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, resumed_at: int) -> None:
        self.folder, self.path, self.accelerator = folder, folder / "metrics.jsonl", accelerator
        if accelerator.is_main_process and self.path.exists():
            kept = [row for row in read_json_lines(self.path) if row.number("step") <= resumed_at]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def row(self, step: int, **values: float) -> None:
        """Write one row. Values that are not finite are left out, since JSON cannot represent them."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if self.accelerator.is_main_process:
            append_text(self.path, json.dumps({"step": step, **values}) + "\n")
        with self._tracker_may_fail(step):
            self.accelerator.log(values, step=step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a uint8 (h, w, 3) image to `NAME/STEP.png` and to the tracker."""
        if not self.accelerator.is_main_process:
            return
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        save_image(folder / f"{step:06d}.png", image)
        for tracker in list(self.accelerator.trackers):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}  # its default is NCHW
            with self._tracker_may_fail(step):
                tracker.log_images({name: image[None]}, step=step, **layout)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Write a uint8 (t, h, w, 3) video, h and w even, to `NAME/STEP.mp4` and to wandb (not TensorBoard)."""
        if not self.accelerator.is_main_process:
            return
        path = self.folder / name / f"{step:06d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, frames, fps)
        for tracker in list(self.accelerator.trackers):
            if tracker.name == "wandb":
                import wandb  # an optional dependency, installed if its tracker runs

                with self._tracker_may_fail(step):
                    tracker.log({name: wandb.Video(str(path), format="mp4")}, step=step)

    def close(self) -> None:
        """Finish the trackers. (accelerate's end_training would also destroy the process group, still in use.)"""
        for tracker in list(self.accelerator.trackers):
            with self._tracker_may_fail(None):
                tracker.finish()

    @contextlib.contextmanager
    def _tracker_may_fail(self, step: int | None) -> Iterator[None]:
        """Within it, an error of the tracker ends its logging: a warning is printed, and it gets no more data."""
        try:
            yield
        except Exception as error:  # a tracker's own error, a lost connection, a full disk
            names = " and ".join(tracker.name for tracker in self.accelerator.trackers)
            if not names:
                raise
            self.accelerator.trackers.clear()
            when = "at its end" if step is None else f"at step {step}"
            print(
                f"warning: {names} failed {when} ({root_of(error)}) and gets no more data; the training continues, and "
                f"{self.path} has every row",
                file=sys.stderr,
                flush=True,
            )
