"""Mixed precision: whether a computation runs in bf16 (autocast) or in fp32."""

from __future__ import annotations

from typing import Literal

import torch

from odvae.running.errors import InputError
from odvae.running.settings import Precision


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether `precision` is bf16 on this device; "auto" is bf16 on GPUs with native bf16."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def precision_name(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """In which of the two `precision` computes on this device."""
    return "bf16" if uses_bf16(precision, device) else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Within it, convolutions and matrix products run in bf16 if `uses_bf16`; weights keep their precision.

    Softmax, losses and, on a GPU, the statistics of norms are computed in fp32 (torch's lists of operations).
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(precision, device))


def choose_kernels(tf32: bool | None, cudnn_benchmark: bool) -> None:
    """Set for this process whether GPUs compute fp32 products in TF32 (None: as torch does), and cuDNN's benchmark.

    Raises InputError for the benchmark together with `deterministic`, since it chooses kernels by their time.
    """
    if cudnn_benchmark and torch.are_deterministic_algorithms_enabled():
        raise InputError("cudnn_benchmark=true chooses kernels by their time; with deterministic=true it must be false")
    if tf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = cudnn_benchmark


# cuDNN's version number as torch gives it; from this one on its 3D convolutions are used by torch 2.9 too.
_CUDNN_9_15 = 91500


def slow_versions(torch_version: str, cudnn_version: int | None) -> str | None:
    """A warning about versions that are known to be slow on GPUs, or None."""
    if torch_version.startswith("2.9.") and (cudnn_version or 0) < _CUDNN_9_15:
        return (
            f"torch {torch_version} with cuDNN {cudnn_version} computes 3D convolutions in bf16 without cuDNN, several "
            "times slower and in more memory (pytorch#166122): install another torch, or nvidia-cudnn-cu12>=9.15"
        )
    return None
