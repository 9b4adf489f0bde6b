"""Scores of generated videos: how well they follow their prompts, how far they are from real ones.

Writes its parts of `report/report.json`, each number with its protocol, and the page made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from pydantic import Field

from ldm.features import NAME, extract_features
from ldm.judge import judge, prompt_accuracy
from ldm.metrics import frechet_distance, gaussian, kernel_distance
from ldm.report import render_report
from ldm.sample import HELD_OUT, UNSEEN
from odvae.loading import VideoVAE, load_vae
from odvae.shared.clips import DataSettings, VideoSet, load_clip
from odvae.shared.errors import InputError
from odvae.shared.pixels import to_float, to_uint8
from odvae.shared.report_file import read_report, update_report
from odvae.shared.run_folder import RunFolder, StageClock, read_json_lines
from odvae.shared.settings import Settings
from odvae.shared.tracking import progress_over
from odvae.shared.video import decode

SAMPLES_COMMAND = "accelerate launch pipelines/sample_video.py (with this experiment's --config, no --prompt)"


class ReportSettings(Settings):
    clips: int = Field(96, ge=2)
    """Held-out clips that the distances compare with (fewer if there are)."""
    shown: int = Field(12, ge=1)
    """Videos of each kind that the page plays."""


def evaluate_ldm(
    settings: ReportSettings, data: DataSettings, videos: VideoSet, folders: RunFolder, demo: bool
) -> dict:
    """Score the samples and write `prompt_accuracy` and `frechet` into the report, then its page. One process works.

    Raises InputError when samples, or the reconstructions they are compared with, are missing, or a sample is not of
    the size asked for.
    """
    state, clock = PartialState(), StageClock(folders.report)
    if state.is_main_process:
        rows = _sample_rows(folders.samples)
        reconstructions = _reconstruct(load_vae(folders.vae), settings, data, videos)
        generated = {
            group: _load_samples([row for row in rows if row["group"] == group], folders.samples, data)
            for group in (HELD_OUT, UNSEEN)
        }
        parts = {"prompt_accuracy": None, "prompt_accuracy_unseen": None}
        if demo:
            captions = [sample.read_text() for sample in videos.held_out[: len(reconstructions)]]
            parts = _accuracy_parts(rows, generated)
            parts["prompt_accuracy_reconstructed"] = prompt_accuracy([judge(v) for v in reconstructions], captions)
        parts["frechet"] = _distance_part(settings, generated[HELD_OUT], reconstructions, data, videos)
        update_report(folders, clock, parts)
        render_report(folders, read_report(folders), settings.shown)
    state.wait_for_everyone()
    return read_report(folders)


def _sample_rows(samples: Path) -> list[dict]:
    path = samples / "samples.jsonl"
    rows = [row for row in read_json_lines(path) if row["group"] in (HELD_OUT, UNSEEN)] if path.is_file() else []
    if not rows:
        raise InputError(f"{samples} holds no samples to score; make them with: {SAMPLES_COMMAND}")
    if len({row["ldm_sha256"] for row in rows}) > 1:
        raise InputError(f"{path} mixes samples of several LDMs; remove {samples} and run: {SAMPLES_COMMAND}")
    return rows


@torch.no_grad()
def _reconstruct(vae: VideoVAE, settings: ReportSettings, data: DataSettings, videos: VideoSet) -> np.ndarray:
    """Held-out clips through the VAE, uint8 (n, t, h, w, 3)."""
    made = []
    for sample in progress_over(videos.held_out[: settings.clips], "reconstructing"):
        made.append(to_uint8(vae(to_float(load_clip(sample, data)).unsqueeze(0))[0])[0])
    return np.stack(made)


def _load_samples(rows: Sequence[dict], samples: Path, data: DataSettings) -> np.ndarray:
    """uint8 (n, t, h, w, 3); n may be 0."""
    expected = (data.frames, data.height, data.width, 3)
    videos = []
    for row in progress_over(rows, "reading samples"):
        video = np.stack(list(decode(samples / row["file"], row["file"])))
        if video.shape != expected:
            raise InputError(f"{samples / row['file']}: (t, h, w, 3) is {video.shape}, expected {expected}")
        videos.append(video)
    return np.stack(videos) if videos else np.zeros((0, *expected), np.uint8)


def _accuracy_parts(rows: Sequence[dict], generated: dict[str, np.ndarray]) -> dict:
    protocol = (
        "exact judge on the mp4 files (colour by hue, shape by overlap, motion by displacement); unclear is wrong"
    )
    parts = {}
    for group, name in ((HELD_OUT, "prompt_accuracy"), (UNSEEN, "prompt_accuracy_unseen")):
        prompts = [row["prompt"] for row in rows if row["group"] == group]
        verdicts = [judge(video) for video in generated[group]]
        parts[name] = {**prompt_accuracy(verdicts, prompts), "protocol": protocol} if prompts else None
    return parts


def _distance_part(
    settings: ReportSettings, generated: np.ndarray, reconstructions: np.ndarray, data: DataSettings, videos: VideoSet
) -> dict | None:
    """Distances of generated, reconstructed and other real videos to held-out real ones, all with the same n."""
    n = min(settings.clips, len(generated), len(reconstructions), len(videos.train))
    if n < 2:
        return None
    real = extract_features(np.stack([load_clip(sample, data).numpy() for sample in videos.held_out[:n]]))
    other_real = np.stack([load_clip(sample, data).numpy() for sample in videos.train[:n]])
    compared = {
        "generated": extract_features(generated[:n]),
        "floor_reconstructed": extract_features(reconstructions[:n]),
        "floor_real": extract_features(other_real),
    }
    part: dict = {"features": NAME, "n": n}
    for name, features in compared.items():
        part[name] = frechet_distance(*gaussian(features), *gaussian(real))
        part[f"{name}_kernel"] = kernel_distance(features, real)
    part["protocol"] = (
        f"{n} videos each, against the held-out clips' first {data.frames} frames (stride {data.stride}, "
        f"{data.height}x{data.width}); generated: held-out captions, from mp4; floor_real: training clips; "
        "covariance with ddof 1; with so few videos the values are biased upwards: compare with the floors"
    )
    return part
