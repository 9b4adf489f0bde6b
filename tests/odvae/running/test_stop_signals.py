"""Worker processes ignore stop signals sent to the process group (by Ctrl-C or SLURM), and end with their parent."""

import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from odvae.running.stage import Stage
from odvae.running.stop_signals import leave_stop_signals_to_parent, stop_signals_blocked
from odvae.running.worker_pool import WorkerPool

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Squares(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        time.sleep(0.02)
        return torch.tensor([i * i, os.getpid()])


def pool_of_squares():
    with WorkerPool(lambda i: (i * i, os.getpid()), 2, seconds=10) as pool:
        yield from pool.map(range(8), ahead=4)


def loader_of_squares():
    loader = DataLoader(Squares(), batch_size=None, num_workers=2, worker_init_fn=leave_stop_signals_to_parent)
    with stop_signals_blocked():
        batches = iter(loader)
    for batch in batches:
        yield tuple(batch.tolist())


def train_among_signals(folder, workers, results):
    """A command in a process group of its own that asks for the signal in its third step."""
    os.setsid()
    squares, processes = [], set()
    try:
        with Stage(folder, {"seed": 0}) as stage:
            items = workers()
            for step in stage.steps(1, 8):
                if step == 3:
                    results.send("now")
                    while stage.signals.received is None:
                        time.sleep(0.01)
                square, process = next(items)
                squares.append(square)
                processes.add(process)
            stage.stop(8)
    finally:
        results.send((squares, sorted(processes)))


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
@pytest.mark.parametrize("workers", [pool_of_squares, loader_of_squares])
def test_a_signal_to_the_process_group_ends_no_worker_before_the_command_has_saved(tmp_path, workers, number):
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe()
    command = fork.Process(target=train_among_signals, args=(tmp_path, workers, sender))
    command.start()
    assert receiver.recv() == "now"
    os.killpg(command.pid, number)
    squares, processes = receiver.recv()
    command.join(20)
    if command.exitcode is None:
        os.killpg(command.pid, signal.SIGKILL)
    assert command.exitcode == 128 + number
    assert squares == [i * i for i in range(8)]
    assert len(processes) == 2, "no worker was replaced"
    deadline = time.monotonic() + 10
    while any(map(is_alive, processes)):
        assert time.monotonic() < deadline, "a worker outlives its command"
        time.sleep(0.05)


def sleep_for_long(seconds):
    leave_stop_signals_to_parent()
    time.sleep(seconds)


def test_a_worker_ends_on_sigterm_from_its_parent(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=sleep_for_long, args=(60,))
    with stop_signals_blocked():
        worker.start()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def leave_a_pool_open(sender):
    pool = WorkerPool(lambda i: os.getpid(), 1, seconds=10)
    sender.send(pool.result(pool.submit(0)))
    kept.append(pool)  # so that nothing closes it before the process ends


kept = []


def test_a_command_that_does_not_close_its_workers_still_ends():
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe()
    command = fork.Process(target=leave_a_pool_open, args=(sender,))
    command.start()
    worker = receiver.recv()
    command.join(20)
    assert command.exitcode == 0
    time.sleep(0.2)
    assert not is_alive(worker)
