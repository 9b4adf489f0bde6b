"""Checkpoints that a thread writes: the training goes on meanwhile, and they are those that would stop it."""

import multiprocessing
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_training import (
    diverge_at,
    make_state,
    named,
    same,
    settings,
    steps_of,
    take_step,
    train,
    unfinished,
    without_room,
)

from odvae.running.errors import DiskError, DivergenceError, InputError
from odvae.training.snapshot import Snapshot, check_shards_are_saved, take_snapshot


class HeldWriter:
    """Lets no thread write a checkpoint before `let_go`."""

    def __init__(self, monkeypatch):
        self.let_go, self.at_once, self.most = threading.Event(), 0, 0
        write = Snapshot.write

        def held(snapshot, folder, group):
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            assert self.let_go.wait(60)
            write(snapshot, folder, group)
            self.at_once -= 1

        monkeypatch.setattr(Snapshot, "write", held)


@pytest.fixture
def held(monkeypatch):
    return HeldWriter(monkeypatch)


@pytest.mark.parametrize("optimizer", ["adamw", "nadamuon"])
def test_they_have_the_tensors_of_those_that_stop_the_training_and_resume_with_the_same_bits(tmp_path, optimizer):
    whole = train(tmp_path / "stopping", settings(optimizer=optimizer, async_checkpoints=False))
    assert same(train(tmp_path / "going_on", settings(optimizer=optimizer)), whole)
    for step in (2, 4, 6):
        one, other = (tmp_path / name / f"checkpoints/step_{step:08d}" for name in ("stopping", "going_on"))
        names = sorted(path.name for path in one.iterdir())
        assert names == sorted(path.name for path in other.iterdir())
        assert len(names) == 8  # of two networks and optimizers, two averages, small tensors, state.json
        for name in names:
            if name.endswith(".safetensors"):
                assert same(load_file(one / name), load_file(other / name)), name
            elif name.endswith(".bin"):
                first, second = (torch.load(folder / name, weights_only=True) for folder in (one, other))
                assert first["param_groups"] == second["param_groups"]
                for number in first["state"]:
                    assert same_values(first["state"][number], second["state"][number])
            else:
                assert (one / name).read_bytes() == (other / name).read_bytes()
    with pytest.raises(DivergenceError):
        train(tmp_path / "killed", settings(optimizer=optimizer), diverge_at(5))
    assert steps_of(tmp_path / "killed") == [2, 4]
    assert same(train(tmp_path / "killed", settings(optimizer=optimizer)), whole)


def same_values(a, b):
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])) for name in a)


def test_a_checkpoint_is_of_its_step_whatever_the_training_does_before_it_is_written(tmp_path, held):
    chosen = settings()
    state = make_state(chosen, tmp_path)
    state.resume()
    for step in (1, 2):
        take_step(state, step)
    expected = {name: value.clone() for name, value in state.network.state_dict().items()}
    averages = [{name: value.clone() for name, value in average.values.items()} for average in state.averages]
    moments = [value["exp_avg"].clone() for value in state.optimizer.state.values()]
    state.checkpoints.save_in_background(2)
    for step in (3, 4, 5):
        take_step(state, step)
        state.checkpoints.check()
    assert steps_of(tmp_path) == []
    held.let_go.set()
    state.checkpoints.finish()
    again = make_state(chosen, tmp_path)
    assert again.resume() == 2
    assert same(again.network.state_dict(), expected)
    assert all(same(average.values, was) for average, was in zip(again.averages, averages, strict=True))
    found = [value["exp_avg"] for value in again.optimizer.state.values()]
    assert all(torch.equal(value, was) for value, was in zip(found, moments, strict=True))


def test_the_copy_takes_16_bytes_per_parameter_with_adamw_and_one_ema(tmp_path):
    state = make_state(settings(extra_ema_decays=()), tmp_path)
    state.resume()
    take_step(state, 1)
    checkpoints = state.checkpoints
    copy = take_snapshot(state.accelerator, checkpoints.averages, checkpoints.small_states, copy=True)
    moments = [value for of_one in copy.optimizers["optimizer.bin"]["state"].values() for value in of_one.values()]
    tensors = [*copy.tensors["model.safetensors"].values(), *copy.tensors["ema_0.safetensors"].values(), *moments]
    parameters = sum(parameter.numel() for parameter in state.network.parameters())
    assert sum(value.nbytes for value in tensors) == pytest.approx(16 * parameters, rel=0.01)  # and the steps' counts


def test_at_most_one_is_written_at_a_time(tmp_path, held):
    state = make_state(settings(), tmp_path)
    state.resume()
    take_step(state, 1)
    state.checkpoints.save_in_background(1)
    threading.Timer(0.2, held.let_go.set).start()
    begin = time.monotonic()
    take_step(state, 2)
    state.checkpoints.save_in_background(2)
    assert time.monotonic() - begin > 0.1
    assert steps_of(tmp_path) == [1]
    state.checkpoints.finish()
    assert (steps_of(tmp_path), held.most) == ([1, 2], 1)


def test_a_signal_waits_for_the_one_that_is_written_and_saves_another(tmp_path, held):
    def evict(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.2, held.let_go.set).start()

    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", settings(), evict)
    assert stopped.value.code == 143
    assert steps_of(tmp_path / "run") == [2, 3]
    resumed, whole = train(tmp_path / "run", settings()), train(tmp_path / "whole", settings(async_checkpoints=False))
    assert same(resumed, whole)


def test_a_training_that_fails_completes_the_one_that_is_written_before_it_lets_others_write(tmp_path, held):
    def fail(step):
        if step == 3:
            threading.Timer(0.2, held.let_go.set).start()
            raise DivergenceError("step 3")

    with pytest.raises(DivergenceError, match="step 3"):
        train(tmp_path, settings(), fail)
    assert steps_of(tmp_path) == [2]
    assert unfinished(tmp_path) == []


def wait_for_the_writer(step):
    for thread in threading.enumerate():
        if thread.name == "checkpoint writer":
            thread.join()


@pytest.mark.parametrize(
    ("every", "before_saving", "kept"), [(2, wait_for_the_writer, 2), (1, lambda step: None, 3)], ids=["step", "save"]
)
def test_a_failure_to_write_is_raised_in_the_next_step_or_save_and_leaves_the_one_before(
    tmp_path, monkeypatch, every, before_saving, kept
):
    whole = train(tmp_path / "whole", settings())
    folder, chosen, reached = tmp_path / "run", settings(checkpoint_every=every), []

    def count(step):
        reached.append(step)
        before_saving(step)

    with monkeypatch.context() as patch:
        without_room(patch, 4)
        with pytest.raises((DiskError, OSError)) as error:
            train(folder, chosen, count)
    assert named(folder, 4, error.value)
    assert reached[-1] == 5
    assert steps_of(folder)[-1] == kept
    assert unfinished(folder) == []
    assert same(train(folder, chosen), whole)


def test_a_failure_of_the_last_one_is_raised_and_one_beside_another_error_is_printed(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        without_room(patch, 6)
        with pytest.raises((DiskError, OSError)) as error:
            train(tmp_path / "run", settings())
    assert named(tmp_path / "run", 6, error.value)
    assert steps_of(tmp_path / "run") == [2, 4]
    without_room(monkeypatch, 2)
    with pytest.raises(DivergenceError):  # in the step after that of the checkpoint
        train(tmp_path / "other", settings(checkpoint_every=5), diverge_at(6))
    printed = capsys.readouterr().err
    assert "error of the checkpoint writer: " in printed
    assert "step_00000005" in printed
    assert steps_of(tmp_path / "other") == []


def be_killed_while_writing(folder, writing):
    write = Snapshot.write

    def half(snapshot, temporary, group):
        write(snapshot, temporary, group)
        if temporary.name.startswith(".step_00000004"):
            path = temporary / "model.safetensors"
            path.write_bytes(path.read_bytes()[:1000])
            writing.set()
            time.sleep(60)

    Snapshot.write = half
    train(folder, settings())


def test_a_kill_while_one_is_written_leaves_the_one_before(tmp_path):
    fork = multiprocessing.get_context("fork")
    writing = fork.Event()
    process = fork.Process(target=be_killed_while_writing, args=(tmp_path / "run", writing))
    process.start()
    assert writing.wait(60)
    process.kill()
    process.join()
    assert steps_of(tmp_path / "run") == [2]
    assert len(unfinished(tmp_path / "run")) == 1
    again = train(tmp_path / "run", settings())
    assert unfinished(tmp_path / "run") == []
    assert same(again, train(tmp_path / "whole", settings(async_checkpoints=False)))


def test_a_whole_state_gathered_on_one_rank_is_refused():
    plugin = SimpleNamespace(state_dict_type=SimpleNamespace(name="FULL_STATE_DICT"))
    accelerator = SimpleNamespace(is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin))
    with pytest.raises(InputError, match=r"fsdp_state_dict_type: FULL_STATE_DICT.*set SHARDED_STATE_DICT"):
        check_shards_are_saved(accelerator)
