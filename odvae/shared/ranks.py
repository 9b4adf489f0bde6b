"""The processes of one launch."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def join_ranks() -> PartialState:
    """Join the other processes of the launch; to be called before anything else asks which rank it is.

    Left to itself, accelerate takes several ranks on a machine without an accelerator for as many single runs.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
