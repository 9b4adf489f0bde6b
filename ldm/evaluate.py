"""Scores: how well the VAE reconstructs, how well the generator follows prompts, how far its videos are from real ones.

Both evaluations write their part of `report/report.json`, each number with its protocol, and the page made of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from pydantic import Field

from ldm.encode import load_vae
from ldm.features import NAME, extract_features
from ldm.judge import Verdict, judge, prompt_accuracy
from ldm.metrics import frechet_distance, gaussian, kernel_distance
from ldm.report import render_report
from ldm.sample import HELD_OUT, UNSEEN
from odvae.metrics import psnr, ssim
from odvae.shared.clips import DataSettings, VideoSet, load_clip
from odvae.shared.errors import InputError
from odvae.shared.pixels import to_float, to_uint8
from odvae.shared.run_folder import (
    RunFolder,
    StageClock,
    code_version,
    make_output_folder,
    read_json,
    read_json_lines,
    write_json,
    write_text,
)
from odvae.shared.settings import Settings
from odvae.shared.shards import Sample
from odvae.shared.tracking import progress_over
from odvae.shared.video import decode, write_video

STAGES = ("vae", "latents", "ldm", "samples", "report")
SAMPLES_COMMAND = "accelerate launch pipelines/sample_video.py (with this experiment's --config, no --prompt)"


class ReportSettings(Settings):
    clips: int = Field(96, ge=2)
    """Held-out clips that are reconstructed and scored, and that the distances compare with (fewer if there are)."""
    shown: int = Field(12, ge=1)
    """Videos of each kind that the page plays."""


def evaluate_vae(
    settings: ReportSettings, data: DataSettings, videos: VideoSet, folders: RunFolder, demo: bool
) -> dict:
    """Reconstruct held-out clips, score them, and write `reconstruction` into the report. Ranks share the clips."""
    state, clock = PartialState(), StageClock(folders.report)
    if state.is_main_process:
        make_output_folder(folders.report / "videos")
    state.wait_for_everyone()
    vae = load_vae(folders.vae).to(state.device)
    chosen = videos.held_out[: settings.clips]
    mine = list(enumerate(chosen))[state.process_index :: state.num_processes]
    rows = [
        _reconstruct(vae, number, sample, data, folders.report, number < settings.shown)
        for number, sample in progress_over(mine, "reconstructing")
    ]
    rows = sorted(gather_object(rows), key=lambda row: row["number"])
    if state.is_main_process:
        part = _reconstruction_part(rows, data, demo)
        write_text(folders.report / "reconstructions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        update_report(folders, clock, part)
    state.wait_for_everyone()
    return read_report(folders)


@torch.no_grad()
def _reconstruct(
    vae: torch.nn.Module, number: int, sample: Sample, data: DataSettings, report: Path, show: bool
) -> dict:
    """Scores of one clip, the judge's answer and the features of it and of its reconstruction."""
    frames = load_clip(sample, data)
    video = to_float(frames).unsqueeze(0).to(vae.device)
    reconstruction = vae(video)[0].clamp(-1, 1)
    real, made = frames.numpy(), to_uint8(reconstruction[0])
    row = {
        "number": number,
        "key": sample.key,
        "caption": sample.read_text(),
        "psnr": float(psnr(reconstruction, video)[0]),
        "ssim": float(ssim(reconstruction, video)[0]),
        "verdict": vars(judge(made)),
        "real_features": extract_features(real[None])[0].tolist(),
        "features": extract_features(made[None])[0].tolist(),
    }
    if show:
        row |= {"real": f"videos/real_{sample.key}.mp4", "made": f"videos/reconstructed_{sample.key}.mp4"}
        write_video(report / row["real"], real, fps=8)
        write_video(report / row["made"], made, fps=8)
    return row


def _reconstruction_part(rows: list[dict], data: DataSettings, demo: bool) -> dict:
    protocol = (
        f"{len(rows)} held-out clips of {data.frames} frames, {data.height}x{data.width}, stride {data.stride}, from "
        "frame 0; whole clip, posterior mean; PSNR and SSIM a frame (peak 2 on [-1, 1]; RGB, Gaussian 11, sigma 1.5), "
        "mean over frames, then clips"
    )
    scores = {name: [row[name] for row in rows] for name in ("psnr", "ssim")}
    part = {
        "psnr": float(np.mean(scores["psnr"])),
        "psnr_std": float(np.std(scores["psnr"])),
        "ssim": float(np.mean(scores["ssim"])),
        "n": len(rows),
        "protocol": protocol,
        "judge": None,
    }
    if demo:
        verdicts = [Verdict(**row["verdict"]) for row in rows]
        part["judge"] = prompt_accuracy(verdicts, [row["caption"] for row in rows])
    return {"reconstruction": part}


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
        reconstructions = _reconstruction_rows(folders.report)
        generated = {
            group: _load_samples([row for row in rows if row["group"] == group], folders.samples, data)
            for group in (HELD_OUT, UNSEEN)
        }
        parts = _accuracy_parts(rows, generated) if demo else {"prompt_accuracy": None, "prompt_accuracy_unseen": None}
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


def _reconstruction_rows(report: Path) -> list[dict]:
    path = report / "reconstructions.jsonl"
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with: accelerate launch pipelines/evaluate_vae.py")
    return read_json_lines(path)


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
    settings: ReportSettings, generated: np.ndarray, reconstructions: list[dict], data: DataSettings, videos: VideoSet
) -> dict | None:
    """Distances of generated, reconstructed and other real videos to held-out real ones, all with the same n."""
    n = min(settings.clips, len(generated), len(reconstructions), len(videos.train))
    if n < 2:
        return None
    real = np.array([row["real_features"] for row in reconstructions[:n]])
    other_real = np.stack([load_clip(sample, data).numpy() for sample in videos.train[:n]])
    compared = {
        "generated": extract_features(generated[:n]),
        "floor_reconstructed": np.array([row["features"] for row in reconstructions[:n]]),
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


def update_report(folders: RunFolder, clock: StageClock, parts: dict) -> None:
    """Put new parts into report.json (others stay), with each stage's minutes and the commit."""
    clock.save(finished=True)
    report = {**read_report(folders), **parts}
    report["minutes"] = {
        stage: read_json(getattr(folders, stage) / "stage.json")["minutes"]
        for stage in STAGES
        if (getattr(folders, stage) / "stage.json").is_file()
    }
    report |= code_version()
    write_json(folders.report / "report.json", report)


def read_report(folders: RunFolder) -> dict:
    path = folders.report / "report.json"
    return read_json(path) if path.is_file() else {}
