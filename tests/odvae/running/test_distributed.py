"""Ranks of a launch: decisions, objects of all ranks, order, time limits; deterministic algorithms."""

import os
import time

import pytest
import torch
from ports import free_port
from ranks import on_ranks
from torch import distributed as dist

from odvae.running import distributed
from odvae.running.distributed import SumOfRanks, decide_on_main_process, gather_objects, main_process_first
from odvae.running.errors import InputError
from odvae.running.seeds import use_deterministic_algorithms


def decide_and_gather(rank):
    print(decide_on_main_process(lambda: f"of rank {rank}"))
    print(gather_objects({"rank": rank}))
    print(SumOfRanks(torch.tensor([1.0 + rank])).result().item())


def test_ranks_agree_on_decisions_objects_and_sums(tmp_path):
    said = "of rank 0\n[{'rank': 0}, {'rank': 1}]\n3.0\n"
    assert on_ranks(2, tmp_path, decide_and_gather) == [(0, said)] * 2


def decide_badly(rank):
    decide_on_main_process(lambda: 1 // 0)


def test_an_error_in_a_decision_ends_all_ranks_and_is_printed_once(tmp_path):
    (main, said), (other, silence) = on_ranks(2, tmp_path, decide_badly)
    assert (main, other) == (1, 1)
    assert "ZeroDivisionError" in said
    assert "Traceback" not in silence


@pytest.mark.parametrize("collective", [distributed.decide_on_main_process, distributed.on_each_machine])
def test_a_stop_signal_stays_the_reason_where_the_others_have_ended_already(tmp_path, collective):
    def stopped():
        while not (tmp_path / "gone").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        raise SystemExit(143)

    def work(rank):
        distributed.wait_for_everyone()
        if rank == 1:
            (tmp_path / "gone").touch()
            os._exit(143)
        collective(stopped)

    assert on_ranks(2, tmp_path, work) == [(143, "")] * 2


def test_the_main_process_does_its_part_before_the_others(tmp_path):
    def work(rank):
        with main_process_first():
            if rank == 0:
                time.sleep(0.3)
                (tmp_path / "made").touch()
            print((tmp_path / "made").exists())

    assert on_ranks(2, tmp_path, work) == [(0, "True\n")] * 2


def wait_longer_than_a_step_may(rank):
    """Rank 0 works for two seconds where a step's exchange may take one: that ends a step, and nothing else."""
    another = decide_on_main_process(free_port)
    dist.destroy_process_group()
    distributed._groups.clear()
    distributed.PartialState._reset_state()
    os.environ["MASTER_PORT"] = str(another)
    distributed.join_ranks(step_minutes=1 / 60)
    distributed.wait_for_everyone()
    if rank == 0:
        time.sleep(2)
    distributed.wait_for_everyone()
    print("waited", flush=True)
    if rank == 0:
        time.sleep(2)
    try:
        dist.all_reduce(torch.ones(1))
    except RuntimeError:
        print("timed out", flush=True)
    os._exit(0)  # the other rank's connection is gone


def test_a_step_has_a_shorter_time_limit_than_a_wait(tmp_path):
    (_, main), (_, other) = on_ranks(2, tmp_path, wait_longer_than_a_step_may)
    assert "waited" in main
    assert "waited\ntimed out" in other


@pytest.fixture
def torch_settings(monkeypatch):
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


@pytest.mark.usefixtures("torch_settings")
def test_deterministic_algorithms_and_workspaces_are_chosen(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.backends.cudnn.benchmark = True
    use_deterministic_algorithms()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(InputError, match=r"needs CUBLAS_WORKSPACE_CONFIG=:4096:8 or :16:8, the environment has ':0:0'"):
        use_deterministic_algorithms()


@pytest.mark.usefixtures("torch_settings")
def test_the_setting_chooses_them_before_ranks_are_joined(monkeypatch):
    from ldm.experiment import parse_experiment

    joined = []

    def join(minutes):
        joined.append((minutes, torch.are_deterministic_algorithms_enabled()))

    monkeypatch.setattr(distributed, "join_ranks", join)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for words in ([], ["deterministic=true", "step_timeout_minutes=3"]):
        monkeypatch.setattr("sys.argv", ["train_ldm", *words])
        parse_experiment("")
    assert joined == [(15.0, False), (3.0, True)]
