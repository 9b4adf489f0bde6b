"""Mixed precision: whether a computation runs in bf16 (autocast) or in fp32."""

from __future__ import annotations

from typing import Literal

import torch

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
