"""Distributed ranks of one launch: joining them, sharing CPU cores, decisions of the main process."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

T = TypeVar("T")

# How long ranks wait for each other. The default of ten minutes is too short if one rank counts frames, hashes
# terabytes or finishes its last shard while the others wait.
TIMEOUT = timedelta(hours=12)


def join_ranks() -> PartialState:
    """Join the other processes of the launch. Call it before anything else uses the rank.

    By default accelerate treats several ranks on a machine without an accelerator as separate single-process runs.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=TIMEOUT)
    if state.device.type == "cpu":
        share_cores()
    return state


def share_cores() -> None:
    """Let each rank use its share of this machine's CPU cores.

    If OMP_NUM_THREADS is not set, accelerate launch and torchrun set it to 1, which leaves cores idle when training on
    CPUs. Any other value is kept.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // ranks_here))


def uses_cuda() -> bool:
    """Whether this launch computes on a CUDA GPU; with ACCELERATE_USE_CPU it does not, even if there is one."""
    return PartialState().device.type == "cuda"


def decide_on_main_process(decision: Callable[[], T]) -> T:
    """The main process's result of `decision`, on every rank: other machines may not see the same files yet.

    The result must be plain data. An error in `decision` ends all ranks; only the main process prints it.
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


def on_each_machine(action: Callable[[], object]) -> None:
    """Call `action` in one process of each machine, the others wait. An error in one of them ends all ranks."""
    state = PartialState()
    failed, error = False, None
    try:
        if state.is_local_main_process:
            action()
    except BaseException as found:
        failed, error = True, found
    if any(gather_object([failed])):
        raise error if error is not None else SystemExit(1)
