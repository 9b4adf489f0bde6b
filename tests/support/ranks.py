"""Ranks of a launch as forked processes of a test; faster than torchrun, which starts Python again."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState
from ports import free_port

from odvae.running.distributed import join_ranks


def on_ranks(
    count: int, folder: Path, work: Callable[[int], None], seconds: float = 60
) -> list[tuple[int | None, str]]:
    """Exit status and printed text of each rank, on which `work` got its rank; None where it has not ended in time."""
    port = free_port()
    fork = multiprocessing.get_context("fork")
    printed = [folder / f"printed_{rank}.txt" for rank in range(count)]
    ranks = [fork.Process(target=_be, args=(rank, count, port, printed[rank], work)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(seconds)
    ended = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()  # what has not ended would keep pytest from ending
    return [(code, file.read_text()) for code, file in zip(ended, printed, strict=True)]


def _be(rank: int, count: int, port: int, printed: Path, work: Callable[[int], None]) -> None:
    assert threading.current_thread() is threading.main_thread()
    place: dict[str, object] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {name: str(value) for name, value in place.items()}
    sys.stdout = sys.stderr = printed.open("w")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    AcceleratorState._reset_state(reset_partial_state=True)
    join_ranks()
    assert PartialState().num_processes == count
    work(rank)
