"""Hidden host syncs: operations for which the CPU waits until the GPU has finished, or the GPU for the CPU."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

ATEN = torch.ops.aten
REPOSITORY = Path(__file__).resolve().parents[2]

# Functions that may wait, and why: (file, function) -> reason; the libraries that they call may, our functions may not.
EXCEPTIONS = {
    ("odvae/architecture/input_checks.py", "_range"): (
        "encode and decode refuse NaN and pixels in 0..255, which takes one look at the values of each call; training "
        "steps do not call it"
    ),
    ("ldm/encoding/encode_shards.py", "_on_device"): (
        "a batch of clips goes to the GPU in a thread of its own, while the main thread writes the last one"
    ),
    ("ldm/sampling/decode.py", "decode_in_pieces"): "the latents' mean and deviation, a few values once for a video",
    ("ldm/sampling/schedulers.py", "sample_latents"): (
        "diffusers' unipc and dpmsolver++ send a few coefficients of each step to the GPU"
    ),
    ("ldm/diffusion/timesteps.py", "_alphas_on"): "the table of noise levels, once a process: it is cached",
    ("odvae/training/optimization.py", "clipped_step"): (
        "optimizers without a kernel for all weights decide on the CPU whether to skip a step with a gradient that is "
        "not finite (adam and adamw do not wait)"
    ),
}


class RehearsalError(Exception):
    """What would fail on a GPU, or make it wait, with file and line."""


@dataclass(frozen=True, order=True)
class Wait:
    """A place in the code that makes the CPU or the GPU wait, and the reason why it may (None: it may not)."""

    where: str
    what: str
    reason: str | None


class HostSyncs:
    """Counts waits; `value` stands for a value that is read from the GPU."""

    def __init__(self) -> None:
        self.found: Counter[Wait] = Counter()

    def check(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Count the wait that this operation causes, if any."""
        if func is ATEN._local_scalar_dense.default and on_gpu(args[0]):
            self._add("a value of a CUDA tensor is read")
        elif func is ATEN._to_copy.default:
            self._check_copy(args[0], kwargs.get("device") or args[0].device)
        elif func is ATEN.copy_.default:
            self._check_copy(args[1], args[0].device)
        elif func is ATEN.index.Tensor and on_gpu(args[0]):
            for index in args[1]:
                if isinstance(index, Tensor) and not on_gpu(index):
                    self._add("a CUDA tensor is indexed by a tensor on the CPU, which is copied")

    def _check_copy(self, source: Tensor, target: torch.device) -> None:
        if on_gpu(source) and target.type == "cpu":
            self._add("a CUDA tensor is copied to the CPU")
        elif not on_gpu(source) and target.type == "cuda" and not is_pinned(source):
            self._add("a tensor is copied to the GPU from memory that is not pinned")

    def _add(self, what: str) -> None:
        frames = list(project_frames())
        functions = ((named(frame), frame.f_code.co_name) for frame in frames if frame.f_code.co_name[0] != "<")
        self.found[Wait(place(frames), what, EXCEPTIONS.get(next(functions, ("", ""))))] += 1

    @property
    def forbidden(self) -> list[Wait]:
        return sorted(wait for wait in self.found if wait.reason is None)


def on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def is_pinned(tensor: Tensor) -> bool:
    """Whether a fake CPU tensor is in page-locked memory, from which copies do not wait."""
    return getattr(tensor, "fake_pinned", False)


def pinned(tensor: Tensor) -> Tensor:
    """A fake copy of the tensor in page-locked memory."""
    copy = torch.empty_like(tensor)
    copy.fake_pinned = True
    return copy


def project_frames() -> Iterator[FrameType]:
    """The frames of the call stack in this project's packages, innermost first; not those of this room."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        ours = name.startswith(tuple(f"{REPOSITORY}/{folder}/" for folder in ("odvae", "ldm", "tests")))
        if ours and not name.startswith(f"{REPOSITORY}/ldm/planning/"):
            yield frame
        frame = frame.f_back


def named(frame: FrameType) -> str:
    return str(Path(frame.f_code.co_filename).relative_to(REPOSITORY))


def place(frames: Sequence[FrameType]) -> str:
    """File and line of the innermost frame."""
    return f"{named(frames[0])}:{frames[0].f_lineno}" if frames else "outside this project"
