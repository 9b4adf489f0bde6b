"""What an evaluation reads from videos, one pass a set: features, verdicts, restlessness. Ranks share the videos.

Each pass returns the rows of all ranks in order of their number, so results do not depend on the number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset

from ldm.demo.judge import judge
from ldm.evaluation.clip_score import CLIPScorer
from ldm.evaluation.features import FeatureNetwork, extract_features
from ldm.evaluation.protocols import ClipProtocol
from odvae.clips.clip import load_clip
from odvae.clips.settings import DataSettings
from odvae.flicker import added_flicker, steadiness
from odvae.running.errors import InputError
from odvae.running.progress import progress_bar
from odvae.running.stop_signals import leave_stop_signals_to_parent
from odvae.shards.samples import Sample
from odvae.video.files import decode
from odvae.video.pixels import to_float, to_uint8
from odvae.video_vae import VideoVAE


@dataclass(frozen=True)
class Scorers:
    """What every pass measures with."""

    networks: Sequence[FeatureNetwork]
    protocol: ClipProtocol
    data: DataSettings
    demo: bool  # whether the judge can read the videos
    batch_size: int
    clip: CLIPScorer | None = None

    def features(self, clips: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Of uint8 clips (b, t, h, w, 3): for each, network's name -> (d,)."""
        compared = self.protocol.select(clips)
        by_network = {n.name: extract_features(n, compared, self.protocol.resize) for n in self.networks}
        return [{name: features[i] for name, features in by_network.items()} for i in range(len(clips))]


class RealClips(Dataset):
    """(video, first frame) -> uint8 (t, h, w, 3)."""

    def __init__(self, clips: Sequence[tuple[Sample, int]], data: DataSettings) -> None:
        self.clips, self.data = clips, data

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> np.ndarray:
        sample, start = self.clips[number]
        return load_clip(sample, self.data, start).numpy()


class SampleFiles(Dataset):
    """Generated videos' files -> uint8 (t, h, w, 3). Raises InputError for one that is not of the experiment's size."""

    def __init__(self, files: Sequence[Path], data: DataSettings) -> None:
        self.files, self.data = files, data

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> np.ndarray:
        path, expected = self.files[number], (self.data.frames, self.data.height, self.data.width, 3)
        if not path.is_file():
            raise InputError(f"{path} is missing, but samples.jsonl lists it; sample again")
        video = np.stack(list(decode(path, str(path))))
        if video.shape != expected:
            raise InputError(f"{path}: (t, h, w, 3) is {video.shape}, expected {expected}")
        return video


def measure_samples(rows: Sequence[dict], folder: Path, tools: Scorers, compared: set[str]) -> list[dict]:
    """Rows of samples.jsonl -> the same with what was measured; features only of files in `compared`."""
    files = SampleFiles([folder / row["file"] for row in rows], tools.data)
    measured = []
    for numbers, clips in my_batches(files, tools, "scoring samples"):
        features = tools.features(clips) if compared & {rows[number]["file"] for number in numbers} else None
        for i, number in enumerate(numbers):
            row = rows[number]
            result = {
                **row,
                "number": number,
                "digest": hashlib.sha256(clips[i].tobytes()).hexdigest(),
                "steadiness": float(steadiness(to_float(torch.from_numpy(clips[i : i + 1])))),
            }
            if features is not None and row["file"] in compared:
                result["features"] = features[i]
            if tools.demo:
                result["verdict"] = vars(judge(clips[i]))
            if tools.clip is not None and row["prompt"]:
                result["clip_score"] = tools.clip.score(clips[i], row["prompt"])
            measured.append(result)
    return in_order(measured)


def measure_real(clips: Sequence[tuple[Sample, int]], tools: Scorers) -> list[dict]:
    """Features of real clips."""
    measured = []
    for numbers, batch in my_batches(RealClips(clips, tools.data), tools, "real clips"):
        features = tools.features(batch)
        measured += [{"number": number, "features": features[i]} for i, number in enumerate(numbers)]
    return in_order(measured)


@torch.no_grad()
def measure_reconstructions(clips: Sequence[tuple[Sample, int]], vae: VideoVAE, tools: Scorers) -> list[dict]:
    """What the VAE leaves of real clips: features, the judge's verdict, added flicker, steadiness before and after."""
    measured = []
    for numbers, batch in my_batches(RealClips(clips, tools.data), tools, "reconstructing"):
        video = to_float(torch.from_numpy(batch)).to(vae.device)
        made = vae(video)[0].clamp(-1, 1)
        if not torch.isfinite(made).all():
            names = ", ".join(clips[number][0].name for number in numbers)
            raise InputError(f"the VAE's reconstructions have values that are not finite, among {names}")
        pixels, flicker = to_uint8(made), added_flicker(made, video)
        steady = {"real_steadiness": steadiness(video), "steadiness": steadiness(made)}
        features = tools.features(pixels)
        for i, number in enumerate(numbers):
            row = {
                "number": number,
                "caption": clips[number][0].read_text(),
                "features": features[i],
                "flicker": flicker[i].cpu().numpy(),
                **{name: float(values[i]) for name, values in steady.items()},
            }
            if tools.demo:
                row["verdict"] = vars(judge(pixels[i]))
            measured.append(row)
    return in_order(measured)


def my_batches(clips: Dataset, tools: Scorers, description: str) -> Iterator[tuple[list[int], np.ndarray]]:
    """This rank's share, under a progress bar: (numbers, uint8 (b, t, h, w, 3))."""
    state = PartialState()
    mine = list(range(state.process_index, len(clips), state.num_processes))
    batches = [mine[i : i + tools.batch_size] for i in range(0, len(mine), tools.batch_size)]
    loader = DataLoader(
        clips,
        batch_sampler=batches,
        num_workers=tools.data.workers,
        collate_fn=np.stack,
        worker_init_fn=leave_stop_signals_to_parent,
    )
    with progress_bar(description, 0, len(mine), unit="clip") as bar:
        for numbers, batch in zip(batches, loader, strict=True):
            yield numbers, batch
            bar.update(len(numbers))


def in_order(rows: list[dict]) -> list[dict]:
    """The rows of all ranks, by number."""
    return sorted(gather_object(rows), key=lambda row: row["number"])
