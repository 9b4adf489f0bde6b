"""The processes of one launch."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

T = TypeVar("T")

# How long ranks wait for each other. The usual ten minutes are too short where one of them counts frames, hashes
# terabytes or finishes its last shard while the others are done.
PATIENCE = timedelta(hours=12)


def join_ranks() -> PartialState:
    """Join the other processes of the launch; to be called before anything else asks which rank it is.

    Left to itself, accelerate takes several ranks on a machine without an accelerator for as many single runs.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    if state.device.type == "cpu":
        share_cores()
    return state


def share_cores() -> None:
    """Let each rank compute on its share of this machine's cores.

    accelerate launch and torchrun set OMP_NUM_THREADS=1 where nobody chose, which leaves cores idle when they are the
    device. Another number was chosen by someone and stays.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // ranks_here))


def uses_cuda() -> bool:
    """Whether this launch computes on a CUDA GPU: a machine may have one and still be told to use its CPU."""
    return PartialState().device.type == "cuda"


def decide_on_main_process(decision: Callable[[], T]) -> T:
    """What `decision` gives on the main process, on every rank: another machine may not see the same files yet.

    The value is plain data. An error there ends every rank; the main process alone says why.
    """
    state = PartialState()
    if not state.is_main_process:
        ((decided, value),) = broadcast_object_list([None])
        if not decided:
            raise SystemExit(1)
        return value
    try:
        value = decision()
    except BaseException:
        broadcast_object_list([(False, None)])
        raise
    broadcast_object_list([(True, value)])
    return value
