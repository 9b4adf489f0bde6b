"""Scoring of single videos: features, the judge's verdict, CLIP score, temporal flicker. Ranks share the videos.

Each `measure_*` function returns the rows of all ranks, ordered by index, so results do not depend on the number of
ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset

from ldm.demo.judge import judge
from ldm.evaluation.clip_score import CLIPScorer
from ldm.evaluation.features import FeatureNetwork, extract_features
from ldm.evaluation.protocols import ClipProtocol
from odvae.clips.clip import load_clip
from odvae.clips.settings import DataSettings
from odvae.flicker import added_flicker, steadiness
from odvae.running.distributed import gather_objects
from odvae.running.errors import InputError
from odvae.running.progress import progress_bar
from odvae.running.stop_signals import leave_stop_signals_to_parent, stop_signals_blocked
from odvae.shards.samples import Sample
from odvae.video.pixels import to_float, to_uint8
from odvae.video.video_io import decode
from odvae.video_vae import VideoVAE


@dataclass(frozen=True)
class Scorers:
    """Feature networks, protocol and options with which all sets of videos are scored."""

    networks: Sequence[FeatureNetwork]
    protocol: ClipProtocol
    data: DataSettings
    demo: bool  # the videos are the demo's, which the judge can read
    batch_size: int
    clip: CLIPScorer | None = None

    def features(self, clips: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Features of uint8 clips (b, t, h, w, 3): for each clip, network's name -> (d,)."""
        compared = self.protocol.select(clips)
        by_network = {n.name: extract_features(n, compared, self.protocol.resize) for n in self.networks}
        return [{name: features[i] for name, features in by_network.items()} for i in range(len(clips))]


class RealClips(Dataset):
    """Real clips, given as (video, first frame), as uint8 (t, h, w, 3)."""

    def __init__(self, clips: Sequence[tuple[Sample, int]], data: DataSettings) -> None:
        self.clips, self.data = clips, data

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> np.ndarray:
        sample, start = self.clips[index]
        return load_clip(sample, self.data, start).numpy()


class SampleFiles(Dataset):
    """Generated videos, given as files, as uint8 (t, h, w, 3). Raises InputError for one of another size."""

    def __init__(self, files: Sequence[Path], data: DataSettings) -> None:
        self.files, self.data = files, data

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        path, expected = self.files[index], (self.data.frames, self.data.height, self.data.width, 3)
        if not path.is_file():
            raise InputError(f"{path} is missing, but samples.jsonl lists it; sample again")
        video = np.stack(list(decode(path, str(path))))
        if video.shape != expected:
            raise InputError(f"{path}: (t, h, w, 3) is {video.shape}, expected {expected}")
        return video


def measure_samples(rows: Sequence[dict], folder: Path, scorers: Scorers, compared: set[str]) -> list[dict]:
    """Rows of samples.jsonl, each with its video's scores; features only of the files in `compared`."""
    files = SampleFiles([folder / row.get("lossless", row["file"]) for row in rows], scorers.data)
    measured = []
    for indices, clips in batches_of_rank(files, scorers, "scoring samples"):
        features = scorers.features(clips) if compared & {rows[index]["file"] for index in indices} else None
        for i, index in enumerate(indices):
            row = rows[index]
            result = {
                **row,
                "index": index,
                "digest": hashlib.sha256(clips[i].tobytes()).hexdigest(),
            }
            if scorers.data.frames > 1:
                result["steadiness"] = float(steadiness(to_float(torch.from_numpy(clips[i : i + 1]))))
            if features is not None and row["file"] in compared:
                result["features"] = features[i]
            if scorers.demo:
                result["verdict"] = vars(judge(clips[i]))
            if scorers.clip is not None and row["prompt"]:
                result["clip_score"] = scorers.clip.score(clips[i], row["prompt"])
            measured.append(result)
    return gather_rows(measured)


def measure_real(clips: Sequence[tuple[Sample, int]], scorers: Scorers) -> list[dict]:
    """Features of real clips, given as (video, first frame)."""
    measured = []
    for indices, batch in batches_of_rank(RealClips(clips, scorers.data), scorers, "real clips"):
        features = scorers.features(batch)
        measured += [{"index": index, "features": features[i]} for i, index in enumerate(indices)]
    return gather_rows(measured)


def _flicker(video: torch.Tensor, reconstruction: torch.Tensor) -> dict[str, torch.Tensor]:
    """Temporal flicker of each reconstruction (b, 3, t >= 2, h, w), by name."""
    return {
        "flicker": added_flicker(reconstruction, video),
        "real_steadiness": steadiness(video),
        "steadiness": steadiness(reconstruction),
    }


@torch.no_grad()
def measure_reconstructions(clips: Sequence[tuple[Sample, int]], vae: VideoVAE, scorers: Scorers) -> list[dict]:
    """Scores of the VAE's reconstructions of real clips: features, the judge's verdict, and of clips of several frames
    added flicker and steadiness, with that of the real clips.

    Raises InputError for reconstructions that are not finite.
    """
    measured = []
    for indices, batch in batches_of_rank(RealClips(clips, scorers.data), scorers, "reconstructing"):
        video = to_float(torch.from_numpy(batch)).to(vae.device)
        reconstruction = vae.reconstruct(video)[0].clamp(-1, 1)
        if not torch.isfinite(reconstruction).all():
            names = ", ".join(clips[index][0].name for index in indices)
            raise InputError(f"the VAE's reconstructions have values that are not finite, among {names}")
        pixels = to_uint8(reconstruction)
        features = scorers.features(pixels)
        flicker = _flicker(video, reconstruction) if video.shape[2] > 1 else {}
        for i, index in enumerate(indices):
            row = {
                "index": index,
                "caption": clips[index][0].read_text(),
                "features": features[i],
                **{name: values[i].cpu().numpy() for name, values in flicker.items()},
            }
            if scorers.demo:
                row["verdict"] = vars(judge(pixels[i]))
            measured.append(row)
    return gather_rows(measured)


def batches_of_rank(clips: Dataset, scorers: Scorers, description: str) -> Iterator[tuple[list[int], np.ndarray]]:
    """This rank's share of the clips, with a progress bar: (indices, uint8 (b, t, h, w, 3))."""
    state = PartialState()
    mine = list(range(state.process_index, len(clips), state.num_processes))
    batches = [mine[i : i + scorers.batch_size] for i in range(0, len(mine), scorers.batch_size)]
    loader = DataLoader(
        clips,
        batch_sampler=batches,
        num_workers=scorers.data.workers,
        collate_fn=np.stack,
        worker_init_fn=leave_stop_signals_to_parent,
    )
    with stop_signals_blocked():
        loaded = iter(loader)
    with progress_bar(description, 0, len(mine), unit="clip") as bar:
        for indices, batch in zip(batches, loaded, strict=True):
            yield indices, batch
            bar.update(len(indices))


def gather_rows(rows: list[dict]) -> list[dict]:
    """The rows of all ranks, ordered by index."""
    return sorted(chain.from_iterable(gather_objects(rows)), key=lambda row: row["index"])
