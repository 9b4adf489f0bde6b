"""What a training run writes down: metrics.jsonl always, pictures and videos, and a tracker by setting."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from odvae.running.files import read_json_lines, write_text
from odvae.video.files import write_video
from odvae.video.frame_grid import save_picture


class MetricsLog:
    """Rows of numbers in `metrics.jsonl`, one JSON object a line with its `step`; pictures and videos beside it.

    On resume, rows after the checkpoint's step are dropped: the steps they describe are done again.
    Only the main process writes.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, resumed_at: int) -> None:
        self.folder, self.path, self.accelerator = folder, folder / "metrics.jsonl", accelerator
        if accelerator.is_main_process and self.path.exists():
            kept = [row for row in read_json_lines(self.path) if row["step"] <= resumed_at]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def row(self, step: int, **values: float) -> None:
        """One row. A value that is not finite is left out: JSON has no word for it."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if self.accelerator.is_main_process:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(values, step=step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """uint8 (h, w, 3) as `NAME/STEP.png`, and to the tracker."""
        if not self.accelerator.is_main_process:
            return
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        save_picture(folder / f"{step:06d}.png", picture)
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}  # its default is NCHW
            tracker.log_images({name: picture[None]}, step=step, **layout)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """uint8 (t, h, w, 3), h and w even, as `NAME/STEP.mp4`, and to wandb (TensorBoard plays no files)."""
        if not self.accelerator.is_main_process:
            return
        path = self.folder / name / f"{step:06d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, frames, fps)
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                import wandb  # an extra, there if its tracker is

                tracker.log({name: wandb.Video(str(path), format="mp4")}, step=step)

    def close(self) -> None:
        """End the trackers' runs. Not accelerate's end_training: that also parts the ranks, which have work left."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
