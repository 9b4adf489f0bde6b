"""Distributed ranks of one launch: joining them, sharing CPU cores, waiting, decisions of the main process.

There are two process groups. The one that training exchanges gradients in (NCCL on GPUs) has a short time limit: a rank
that hangs in a step ends the launch soon. Whatever may take long while others wait (one rank hashes, decodes its last
videos, writes a checkpoint) is waited for in the other, on the CPU (gloo).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from torch import distributed as dist

from odvae.running.precision import slow_versions

T = TypeVar("T")

# How long ranks wait for one that counts frames, hashes terabytes or finishes its last shard.
TIMEOUT = timedelta(hours=12)

# How long a training step waits for an exchange of gradients, where no other limit is set.
STEP_MINUTES = 15.0

# Of each purpose, with the default group from which it was made.
_groups: dict[str, tuple[dist.ProcessGroup | None, dist.ProcessGroup]] = {}


def join_ranks(step_minutes: float = STEP_MINUTES) -> PartialState:
    """Join the other processes of the launch. Call it before anything else uses the rank.

    `step_minutes`: time limit of the exchanges in a training step. By default accelerate treats several ranks on a
    machine without an accelerator as separate single-process runs.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=timedelta(minutes=step_minutes))
    if state.device.type == "cpu":
        share_cores()
    elif state.is_main_process and (warning := slow_versions(torch.__version__, torch.backends.cudnn.version())):
        print(f"warning: {warning}", flush=True)
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


def group_on_the_cpu(purpose: str) -> dist.ProcessGroup:
    """All ranks, connected on the CPU with the time limit TIMEOUT; made when all ranks first ask for it.

    Each thread that exchanges anything needs a `purpose` of its own: in a group, all ranks must exchange in the same
    order.
    """
    default = dist.group.WORLD
    if purpose not in _groups or _groups[purpose][0] is not default:  # that of an earlier default group
        _groups[purpose] = default, dist.new_group(backend="gloo", timeout=TIMEOUT)
    return _groups[purpose][1]


def _waiting_group() -> dist.ProcessGroup:
    """The group in which the ranks' main threads wait for each other."""
    return group_on_the_cpu("waiting")


def wait_for_everyone() -> None:
    """Collective: wait, for up to TIMEOUT, until every rank has arrived."""
    if PartialState().num_processes > 1:
        dist.barrier(_waiting_group())


@contextlib.contextmanager
def main_process_first(on_each_machine: bool = False) -> Iterator[None]:
    """Collective: the main process (`on_each_machine`: that of each machine) does the block before the others."""
    state = PartialState()
    first = state.is_local_main_process if on_each_machine else state.is_main_process
    if not first:
        wait_for_everyone()
    yield
    if first:
        wait_for_everyone()


def gather_objects(value: T) -> list[T]:
    """Collective: each rank's value, on every rank, in the order of the ranks."""
    state = PartialState()
    if state.num_processes == 1:
        return [value]
    values: list[T | None] = [None] * state.num_processes
    dist.all_gather_object(values, value, group=_waiting_group())
    return values  # type: ignore[return-value]  # all are filled


class SumOfRanks:
    """The sum of a CPU tensor over all ranks, which is exchanged while the ranks go on; `result` waits for it."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._work = dist.all_reduce(values, group=_waiting_group(), async_op=True)

    def result(self) -> Tensor:
        assert self._work is not None  # every rank is in the group
        self._work.wait()
        return self.values


def decide_on_main_process(decision: Callable[[], T]) -> T:
    """The main process's result of `decision`, on every rank: other machines may not see the same files yet.

    The result must be plain data. An error in `decision` ends all ranks; only the main process prints it. A stop signal
    ends them likewise, and remains the reason where the others have ended already.
    """
    state = PartialState()
    if state.num_processes == 1:
        return decision()
    decided: list[tuple[bool, T | None]] = [(False, None)]
    try:
        if state.is_main_process:
            decided = [(True, decision())]
    except BaseException:
        with contextlib.suppress(RuntimeError):  # of a connection to a rank that has ended
            dist.broadcast_object_list(decided, src=0, group=_waiting_group())
        raise
    dist.broadcast_object_list(decided, src=0, group=_waiting_group())
    ((is_decided, value),) = decided
    if not is_decided:
        raise SystemExit(1)
    return value  # type: ignore[return-value]  # it is what `decision` returned


def on_each_machine(action: Callable[[], object]) -> None:
    """Call `action` in one process of each machine, the others wait. An error in one of them ends all ranks."""
    state = PartialState()
    try:
        if state.is_local_main_process:
            action()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # of a connection to a rank that has ended
            gather_objects(True)
        raise
    if any(gather_objects(False)):
        raise SystemExit(1)
