"""A pool on a Ray cluster of two nodes: order, limits, bugs, and a node that dies."""

import functools
import os
import time

import pytest

from odvae.cluster.ray_pool import RayPool
from odvae.running.errors import InputError
from odvae.running.failures import Failure

ray = pytest.importorskip("ray", reason="needs Ray (the extra `ray`)")


@pytest.fixture(scope="module")
def cluster():
    """The driver's own node has one CPU; the second has two, and may be killed."""
    from ray_cluster import two_nodes  # not at the top: Ray's processes import this module too

    with two_nodes() as nodes:
        yield nodes


def tried(task: int) -> int:
    if task == 3:
        raise InputError("three is no number")
    if task == 4:
        os.kill(os.getpid(), 9)
    if task == 5:
        time.sleep(60)
    time.sleep(0.05 * (task % 3))  # results come in another order than tasks
    return 10 * task


def bug(task: int) -> int:
    return 1 // task


def slow(folder: str, task: int) -> int:
    with open(os.path.join(folder, f"{task}-{os.getpid()}"), "w"):
        time.sleep(1.0)
    return task


def test_results_come_in_order_and_a_crash_or_a_hang_costs_its_task_alone(cluster):
    with RayPool(tried, seconds=2.0, cpus=0.5) as pool:
        results = list(pool.map(range(9), ahead=4))
    assert results[:3] + results[6:] == [0, 10, 20, 60, 70, 80]
    assert results[3] == Failure("three is no number", "task")
    assert results[4] == Failure("its process was killed, probably for lack of memory", "system")
    assert results[5] == Failure("took longer than 2 s", "limit")


def test_a_bug_is_raised_with_its_task(cluster):
    with RayPool(bug, seconds=5.0) as pool, pytest.raises(RuntimeError, match=r"at 0:[\s\S]*ZeroDivisionError"):
        list(pool.map([0], ahead=1))


@pytest.mark.slow
def test_tasks_of_a_node_that_dies_are_run_again(cluster, tmp_path):
    with RayPool(functools.partial(slow, str(tmp_path)), seconds=None, cpus=0.5) as pool:
        tickets = [pool.submit(task) for task in range(8)]
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)
        assert [pool.result(ticket) for ticket in tickets] == list(range(8))
    assert len(list(tmp_path.iterdir())) > 8  # some began twice
