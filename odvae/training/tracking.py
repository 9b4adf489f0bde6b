"""Logging of training metrics, images and videos to files (metrics.jsonl) and to a tracker (TensorBoard, wandb)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from odvae.running.files import read_json_lines, write_text
from odvae.video.frame_grid import save_image
from odvae.video.video_io import write_video


class MetricsLog:
    """Writes rows of values to `metrics.jsonl`, one JSON object per line with its `step`, and images and videos.

    On resume, rows after the checkpoint's step are removed, since those steps are repeated. Only the main process
    writes.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, resumed_at: int) -> None:
        self.folder, self.path, self.accelerator = folder, folder / "metrics.jsonl", accelerator
        if accelerator.is_main_process and self.path.exists():
            kept = [row for row in read_json_lines(self.path) if row["step"] <= resumed_at]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def row(self, step: int, **values: float) -> None:
        """Write one row. Values that are not finite are left out, since JSON cannot represent them."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if self.accelerator.is_main_process:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(values, step=step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a uint8 (h, w, 3) image to `NAME/STEP.png` and to the tracker."""
        if not self.accelerator.is_main_process:
            return
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        save_image(folder / f"{step:06d}.png", image)
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}  # its default is NCHW
            tracker.log_images({name: image[None]}, step=step, **layout)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Write a uint8 (t, h, w, 3) video, h and w even, to `NAME/STEP.mp4` and to wandb (not TensorBoard)."""
        if not self.accelerator.is_main_process:
            return
        path = self.folder / name / f"{step:06d}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, frames, fps)
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":
                import wandb  # an optional dependency, installed if its tracker runs

                tracker.log({name: wandb.Video(str(path), format="mp4")}, step=step)

    def close(self) -> None:
        """Finish the trackers. (accelerate's end_training would also destroy the process group, still in use.)"""
        for tracker in self.accelerator.trackers:
            tracker.finish()
