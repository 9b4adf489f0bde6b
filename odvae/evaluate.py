"""Evaluation of the VAE: PSNR, SSIM, LPIPS and speed of reconstructing held-out clips, whole, streamed and tiled.

Writes `reconstruction` into `report/report.json`, one row per clip into `report/reconstructions.jsonl`, sample videos
and an image of originals and reconstructions.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from odvae.clips.clip import clip_rate, frame_count
from odvae.clips.loader import each_clip
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.evaluation.latent_measures import LatentSums
from odvae.evaluation.modes import compare_modes, compare_noise
from odvae.evaluation.reconstruction import Evaluation, motion_summary, scores
from odvae.latent_statistics import ChannelSums
from odvae.measuring import forbid_tf32
from odvae.report_file import fetched_run, read_report, update_report
from odvae.running.distributed import gather_objects
from odvae.running.errors import InputError
from odvae.running.files import write_text
from odvae.running.progress import progress_bar
from odvae.running.run_folder import RunFolder
from odvae.running.stage import Stage
from odvae.settings import EvalVAESettings
from odvae.shards.captions import shown_caption
from odvae.shards.samples import Sample
from odvae.storage.mirror import everything, models
from odvae.video.pixels import to_float, to_uint8
from odvae.video.video_io import write_video
from odvae.video_vae import VAELoader, compression_of, load_vae


def evaluate_vae(
    settings: EvalVAESettings,
    data: DataSettings,
    videos: VideoSet,
    folders: RunFolder,
    seed: int,
    *,
    load_vae: VAELoader = load_vae,
) -> dict:
    """Reconstruct held-out clips, write their scores into the report, and return the report. Ranks share the clips.

    Raises InputError where there is no VAE, where it does not take clips of this size, and where no held-out video is
    long enough or none can be decoded. A mode that the VAE does not support is reported as not measured.
    """
    forbid_tf32()
    output, folders = folders.report, fetched_run(folders, vae=models, report=everything)
    read_report(folders)  # raises InputError for a report of version 0.1
    vae = load_vae(folders.vae).to(PartialState().device)
    settings.check_sizes(data, compression_of(vae), tiled=vae.has_temporal_tiling)
    data = settings.clip_settings(data)
    evaluation = Evaluation(settings, data, vae, seed)
    long_enough = (sample for sample in videos.held_out if frame_count(sample, data.fps) >= data.span)
    chosen = list(itertools.islice(long_enough, settings.clips))
    if not chosen:
        raise InputError(f"no held-out video has the {data.span} frames that a clip spans (eval_vae.frames)")
    with Stage(output, fetches=everything) as stage:
        (folders.report / "videos").mkdir(exist_ok=True)
        rows, sums, latent_sums = reconstruct_clips(evaluation, chosen, len(videos.samples), folders.report)
        if stage.state.is_main_process:
            part = _summary(rows, sums, evaluation)
            part["latents"] |= latent_sums.measures()
            part["motion"] = motion_summary(rows, settings.motion_threshold)
            decoded = [chosen[row["index"]] for row in rows]
            compared = decoded[: settings.compared_clips]
            part["latents"]["noise"] = compare_noise(evaluation, compared, sums)
            part["modes"] = compare_modes(evaluation, compared, folders.report)
            with stage.updating():
                table = "".join(json.dumps(row) + "\n" for row in rows)
                write_text(folders.report / "reconstructions.jsonl", table)
                update_report(folders, stage, {"reconstruction": part})
    return read_report(folders)


def reconstruct_clips(
    evaluation: Evaluation, chosen: Sequence[Sample], total_videos: int, report: Path
) -> tuple[list[dict], ChannelSums, LatentSums]:
    """Rows of scores of all clips, sums of their latents, and sums of measures of the latents once normalized.

    Ranks share the work and return the same. A rank holds the latents of its clips in memory until all are encoded.

    `data.failures_allowed` is a share of `total_videos`.
    """
    state = PartialState()
    mine = list(enumerate(chosen))[state.process_index :: state.num_processes]
    encoded: list[Tensor] = []
    rows = []
    with progress_bar("reconstructing", 0, len(mine), unit="clip") as bar:
        for batch in _batches(mine, evaluation.settings.batch_size, evaluation.data, total_videos):
            rows += _reconstruct(evaluation, batch, report, encoded)
            bar.update(len(batch))
    rows = sorted(chain.from_iterable(gather_objects(rows)), key=lambda row: row["index"])
    if not rows:
        raise InputError(f"none of the {len(chosen)} held-out videos could be decoded")
    sums = ChannelSums()
    for moments in encoded:
        sums.add(*moments.chunk(2))
    sums = sum(gather_objects(sums), ChannelSums())
    mean, std = (torch.tensor(values) for values in sums.mean_and_std())
    latent_sums, data = LatentSums(), evaluation.data
    for moments in encoded:
        latent_sums.add(moments, mean, std, pixels=data.frames * data.height * data.width)
    return rows, sums, sum(gather_objects(latent_sums), LatentSums())


# A clip's index in the evaluation, its video, its frames as uint8 (t, h, w, 3).
IndexedClip = tuple[int, Sample, Tensor]


def _batches(
    indexed: Sequence[tuple[int, Sample]], size: int, data: DataSettings, total_videos: int
) -> Iterator[list[IndexedClip]]:
    """The videos' clips, `size` at a time, without those that cannot be decoded."""
    batch: list[IndexedClip] = []
    for i, clip in each_clip([sample for _, sample in indexed], data, total_videos):
        batch.append((*indexed[i], clip.clone()))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.no_grad()
def _reconstruct(
    evaluation: Evaluation, batch: Sequence[IndexedClip], report: Path, encoded: list[Tensor]
) -> list[dict]:
    """A row of scores for each clip; adds the clips' latents to `encoded`, and writes the first clips as videos."""
    settings = evaluation.settings
    clips = torch.stack([clip for _, _, clip in batch])
    videos = to_float(clips).to(evaluation.vae.device)
    reconstructions, moments, _ = evaluation.reconstruct(videos, [index for index, _, _ in batch])
    rows = []
    for i, (index, sample, clip) in enumerate(batch):
        encoded.append(moments[i].cpu())
        row: dict[str, Any] = {"index": index, "key": sample.key, "caption": shown_caption(sample)}
        row |= scores(reconstructions[i : i + 1], videos[i : i + 1], settings)
        if index < settings.num_visualized:
            names = {name: f"videos/{name}_{index:04d}.mp4" for name in ("real", "reconstructed")}
            fps = clip_rate(sample, evaluation.data)
            write_video(report / names["real"], clip.numpy(), fps)
            write_video(report / names["reconstructed"], to_uint8(reconstructions[i]), fps)
            row |= names
        rows.append(row)
    return rows


def _summary(rows: list[dict], sums: ChannelSums, evaluation: Evaluation) -> dict:
    """Means and standard deviations over clips, the latents' statistics, and the protocol."""
    part: dict = {}
    for name in ("psnr", "ssim", *(["lpips"] if evaluation.settings.lpips else [])):
        values = [row[name] for row in rows]
        part |= {name: float(np.mean(values)), f"{name}_std": float(np.std(values))}
    mean, std = sums.mean_and_std()
    part["latents"] = {"mean": mean, "std": std, "positions": sums.count}
    return {**part, "n": len(rows), "protocol": protocol(evaluation, len(rows))}


def protocol(evaluation: Evaluation, clips: int) -> dict:
    """Everything besides the weights that the scores depend on."""
    settings, data = evaluation.settings, evaluation.data
    return {
        "clips": f"the first {clips} held-out videos, from frame 0",
        "frames": data.frames,
        "stride": data.stride,
        "height": data.height,
        "width": data.width,
        "fps": data.fps,
        "resize": f"cover, {data.resize}, antialiased, center crop",
        "range": "[-1, 1], clipped; PSNR's peak is 2",
        "precision": settings.precision,
        "latents": settings.latents,
        "lpips": None if settings.lpips is None else settings.lpips.network,
        "ssim": "RGB, Gaussian window 11, sigma 1.5",
        "mean": "over frames, then over clips",
    }
