"""How well and how fast the VAE reconstructs held-out clips: PSNR, SSIM, LPIPS; whole, streamed and tiled.

Writes `reconstruction` into `report/report.json`, a row a clip into `report/reconstructions.jsonl`, and pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from odvae.clips.clip import clip_rate, frame_count, load_clip
from odvae.clips.loader import each_clip
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.latent_statistics import ChannelSums
from odvae.metrics import lpips, psnr, ssim
from odvae.running.benchmarking import PeakMemory, forbid_tf32, now
from odvae.running.errors import InputError
from odvae.running.files import write_text
from odvae.running.progress import progress_bar
from odvae.running.report_file import read_report, update_report
from odvae.running.run_folder import RunFolder
from odvae.running.seeds import normal_per_sample
from odvae.running.stage import Stage
from odvae.settings import EvalVAESettings, Mode
from odvae.shards.samples import Sample
from odvae.video.files import write_video
from odvae.video.frame_grid import save_picture, strip
from odvae.video.pixels import to_float, to_uint8
from odvae.video_vae import VAELoader, VideoVAE, compression_of, load_vae


@dataclass(frozen=True)
class Evaluation:
    """What all clips of one evaluation share."""

    settings: EvalVAESettings
    data: DataSettings
    vae: VideoVAE
    seed: int

    def reconstruct(
        self, video: Tensor, numbers: Sequence[int], mode: Mode = "whole"
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Video (b, 3, t, h, w) -> (its reconstruction, moments' mean and std side by side, seconds of each half).

        `numbers` (b) are the clips' in the evaluation, from which sampled latents take their noise.
        """
        device = self.vae.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            start = now(device)
            moments = torch.cat(list(self._encode(video, mode)), dim=2)  # (b, 2c, k, h/8, w/8)
            encoded = now(device)
            mean, std = moments.chunk(2, dim=1)
            latents = mean
            if self.settings.latents == "sample":
                noise = normal_per_sample(mean.shape[1:], self.seed, "evaluation", numbers, device)
                latents = mean + std * noise
            reconstruction = torch.cat(list(self._decode(latents, mode)), dim=2)
            decoded = now(device)
        seconds = {"encode": encoded - start, "decode": decoded - encoded}
        return reconstruction.float().clamp(-1, 1), moments.float(), seconds

    def _encode(self, video: Tensor, mode: Mode) -> Iterator[Tensor]:
        if mode == "streamed":
            posteriors = self.vae.encode_stream(video.split(self.settings.chunk, dim=2))
        else:
            posteriors = iter([self.vae.encode(video).latent_dist])
        for posterior in posteriors:
            yield torch.cat([posterior.mean, posterior.std], dim=1)

    def _decode(self, latents: Tensor, mode: Mode) -> Iterator[Tensor]:
        if mode == "streamed":
            return self.vae.decode_stream(latents.split(1, dim=2))
        return iter([self.vae.decode(latents).sample])


def evaluate_vae(
    settings: EvalVAESettings,
    data: DataSettings,
    videos: VideoSet,
    folders: RunFolder,
    seed: int,
    *,
    load_vae: VAELoader = load_vae,
) -> dict:
    """Reconstruct held-out clips and write their scores into the report; returns the report. Ranks share the clips.

    Raises InputError when there is no VAE, or a mode is asked for that it does not have.
    """
    forbid_tf32()
    read_report(folders)  # whether it can be added to
    vae = load_vae(folders.vae).to(PartialState().device)
    settings.check_sizes(data, compression_of(vae), tiled=vae.has_temporal_tiling)
    data = settings.clip_settings(data)
    evaluation = Evaluation(settings, data, vae, seed)
    chosen = [sample for sample in videos.held_out if frame_count(sample, data.fps) >= data.span][: settings.clips]
    if not chosen:
        raise InputError(f"no held-out video has the {data.span} frames that a clip spans (eval_vae.frames)")
    with Stage(folders.report) as stage:
        (folders.report / "videos").mkdir(exist_ok=True)
        rows, sums = reconstruct_clips(evaluation, chosen, len(videos.samples), folders.report)
        if stage.state.is_main_process:
            part = _summary(rows, sums, evaluation)
            decoded = [chosen[row["number"]] for row in rows]
            part["modes"] = compare_modes(evaluation, decoded[: settings.compared_clips], folders.report)
            with stage.updating():
                table = "".join(json.dumps(row) + "\n" for row in rows)
                write_text(folders.report / "reconstructions.jsonl", table)
                update_report(folders, stage, {"reconstruction": part})
    return read_report(folders)


def reconstruct_clips(
    evaluation: Evaluation, chosen: Sequence[Sample], of: int, report: Path
) -> tuple[list[dict], ChannelSums]:
    """Scores of every clip and sums of its latents, the same on every rank; ranks share the work."""
    state = PartialState()
    mine = list(enumerate(chosen))[state.process_index :: state.num_processes]
    sums, rows = ChannelSums(), []
    with progress_bar("reconstructing", 0, len(mine), unit="clip") as bar:
        for batch in _batches(mine, evaluation.settings.batch_size, evaluation.data, of):
            rows += _reconstruct(evaluation, batch, report, sums)
            bar.update(len(batch))
    rows = sorted(gather_object(rows), key=lambda row: row["number"])
    if not rows:
        raise InputError(f"none of the {len(chosen)} held-out videos could be decoded")
    return rows, sum(gather_object([sums]), ChannelSums())


# A clip's number in the evaluation, its video, its frames as uint8 (t, h, w, 3).
NumberedClip = tuple[int, Sample, Tensor]


def _batches(
    numbered: Sequence[tuple[int, Sample]], size: int, data: DataSettings, of: int
) -> Iterator[list[NumberedClip]]:
    """The videos' clips, `size` at a time, without those that cannot be decoded."""
    batch: list[NumberedClip] = []
    for place, clip in each_clip([sample for _, sample in numbered], data, of):
        batch.append((*numbered[place], clip.clone()))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.no_grad()
def _reconstruct(evaluation: Evaluation, batch: Sequence[NumberedClip], report: Path, sums: ChannelSums) -> list[dict]:
    """Scores of each of these numbered clips; their latents go into `sums`."""
    settings = evaluation.settings
    clips = torch.stack([clip for _, _, clip in batch])
    videos = to_float(clips).to(evaluation.vae.device)
    reconstructions, moments, _ = evaluation.reconstruct(videos, [number for number, _, _ in batch])
    rows = []
    for i, (number, sample, clip) in enumerate(batch):
        sums.add(*moments[i].chunk(2))
        row: dict[str, Any] = {"number": number, "key": sample.key, "caption": sample.read_text()}
        row |= scores(reconstructions[i : i + 1], videos[i : i + 1], settings)
        if number < settings.num_visualized:
            row |= {"real": f"videos/real_{number:04d}.mp4", "made": f"videos/reconstructed_{number:04d}.mp4"}
            fps = clip_rate(sample, evaluation.data)
            write_video(report / row["real"], clip.numpy(), fps)
            write_video(report / row["made"], to_uint8(reconstructions[i]), fps)
        rows.append(row)
    return rows


def scores(reconstruction: Tensor, video: Tensor, settings: EvalVAESettings) -> dict[str, float]:
    """PSNR, SSIM and, where asked for, LPIPS of one video (1, 3, t, h, w)."""
    found = {"psnr": psnr(reconstruction, video), "ssim": ssim(reconstruction, video)}
    if settings.lpips is not None:
        found["lpips"] = lpips(reconstruction, video, settings.lpips.network, settings.lpips.weights)
    return {name: float(value[0]) for name, value in found.items()}


def _summary(rows: list[dict], sums: ChannelSums, evaluation: Evaluation) -> dict:
    """Means over clips, the latents' statistics, and the protocol as data."""
    part: dict = {}
    for name in ("psnr", "ssim", *(["lpips"] if evaluation.settings.lpips else [])):
        values = [row[name] for row in rows]
        part |= {name: float(np.mean(values)), f"{name}_std": float(np.std(values))}
    mean, std = sums.mean_and_std()
    part["latents"] = {"mean": mean, "std": std, "positions": sums.count}
    return {**part, "n": len(rows), "protocol": protocol(evaluation, len(rows))}


def protocol(evaluation: Evaluation, clips: int) -> dict:
    """All that the scores depend on besides the weights."""
    settings, data = evaluation.settings, evaluation.data
    return {
        "clips": f"the first {clips} held-out videos, from frame 0",
        "frames": data.frames,
        "stride": data.stride,
        "height": data.height,
        "width": data.width,
        "resize": "cover, bicubic, antialiased, center crop",
        "range": "[-1, 1], clipped; PSNR's peak is 2",
        "precision": settings.precision,
        "latents": settings.latents,
        "lpips": None if settings.lpips is None else settings.lpips.network,
        "ssim": "RGB, Gaussian window 11, sigma 1.5",
        "mean": "over frames, then over clips",
    }


@torch.no_grad()
def compare_modes(evaluation: Evaluation, samples: list[Sample], report: Path) -> dict:
    """Quality, speed and peak memory of whole clips and of each other mode, on the same clips; and a picture.

    `difference` is the largest pixel difference (of 2) from the whole clip's reconstruction.
    """
    videos = [to_float(load_clip(sample, evaluation.data)).unsqueeze(0) for sample in samples]
    found, whole = {}, []
    for mode in ("whole", *evaluation.settings.modes):
        if (reason := _impossible(evaluation, mode)) is not None:
            found[mode] = {"not measured": reason}
            continue
        made, row = _timed(evaluation, videos, mode)
        if mode == "whole":
            whole = made
        else:
            row["difference"] = max(float((a - b).abs().max()) for a, b in zip(made, whole, strict=True))
        found[mode] = row
        if mode == "whole":
            pairs = [to_uint8(v[0]) for pair in zip(videos[:4], made[:4], strict=True) for v in pair]
            save_picture(report / "reconstructions.png", strip(pairs))
    return found


def _timed(evaluation: Evaluation, videos: list[Tensor], mode: Mode) -> tuple[list[Tensor], dict]:
    vae, settings = evaluation.vae, evaluation.settings
    if mode == "tiled":
        vae.enable_tiling(None, None, settings.tile_frames)  # type: ignore[attr-defined]  # where it has_temporal_tiling
    device = vae.device
    memory = PeakMemory(device)
    evaluation.reconstruct(videos[0].to(device), [0], mode)  # apart from the timed ones: it also plans and allocates
    peak, made, rows = memory.bytes, [], []
    seconds = {"encode": 0.0, "decode": 0.0}
    for number, video in enumerate(videos):
        reconstruction, _, spent = evaluation.reconstruct(video.to(device), [number], mode)
        seconds = {half: seconds[half] + spent[half] for half in seconds}
        made.append(reconstruction.cpu())
        rows.append(scores(made[-1], video, settings))
    if mode == "tiled":
        vae.disable_tiling()  # type: ignore[attr-defined]
    frames = sum(video.shape[2] for video in videos)
    return made, {
        **{name: float(np.mean([row[name] for row in rows])) for name in rows[0]},
        **{f"{half}_frames_per_second": frames / spent for half, spent in seconds.items()},
        "peak_memory_growth_mb": None if peak is None else peak / 1e6,
        "clips": len(videos),
    }


def _impossible(evaluation: Evaluation, mode: Mode) -> str | None:
    """Why the VAE does not have this mode; None where it has it."""
    vae = evaluation.vae
    if mode == "tiled" and vae.temporal_compression_ratio == 1:
        return "the VAE works frame by frame: there is nothing to tile in time"
    if mode == "tiled" and not vae.has_temporal_tiling:
        return f"{type(vae).__name__} has no groups of frames that a setting could size"
    if mode == "streamed" and not vae.streamable:
        return f"{type(vae).__name__} as it is configured needs the whole clip: a frame depends on later ones"
    return None
