"""Stop signals in a stage, on one rank and on several: when it ends, and after which step."""

import os
import signal
import threading
import time

import pytest
from ranks import on_ranks
from small_stages import record, run

from odvae.running.errors import InputError
from odvae.running.stage import Stage


def test_a_signal_in_a_loop_over_steps_is_deferred_until_the_loop_has_saved(tmp_path):
    done = []

    def loop():
        with Stage(tmp_path, {"seed": 0}) as stage:
            for step in stage.steps(1, 10):
                if step == 3:
                    os.kill(os.getpid(), signal.SIGUSR1)
                done.append(step)
                if stage.stop_requested():
                    stage.stop(step)

    with pytest.raises(SystemExit) as stopped:
        loop()
    assert done == [1, 2, 3]
    assert stopped.value.code == 128 + signal.SIGUSR1
    assert not record(tmp_path)["finished"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_outside_of_the_steps_ends_the_block_at_once(tmp_path, number, capsys):
    def work():
        with Stage(tmp_path, {"seed": 0}) as stage:
            for _ in stage.steps(1, 2):
                pass
            os.kill(os.getpid(), number)
            raise AssertionError("not reached")

    with pytest.raises(SystemExit) as stopped:
        work()
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name}" in capsys.readouterr().err
    run(tmp_path / "again")


def test_ctrl_c_interrupts_outside_of_the_steps_and_a_second_one_within(tmp_path):
    def loop():
        with Stage(tmp_path, {"seed": 0}) as stage:
            for _ in stage.steps(1, 2):
                os.kill(os.getpid(), signal.SIGINT)
                assert stage.stop_requested()
                os.kill(os.getpid(), signal.SIGINT)
                raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt), Stage(tmp_path, {"seed": 0}):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop()


def test_signal_handlers_are_restored(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    run(tmp_path)
    with pytest.raises(InputError), Stage(tmp_path, {"seed": 1}):
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_ranks_stop_after_the_same_step_whichever_of_them_got_the_signal(tmp_path):
    def train(rank):
        with Stage(tmp_path / "stage", {"seed": 0}) as stage:
            for last in (30, 1000):  # the second loop begins at step 1 again
                for step in stage.steps(1, last):
                    if rank == 1 and last == 1000 and step == 7:
                        os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.002)
                    if stage.stop_requested():
                        print(f"saves at step {step} of {last}")
                        stage.stop(step)

    (first, said), (second, other) = on_ranks(2, tmp_path, train)
    assert first == second == 128 + signal.SIGTERM
    (step,) = {line for line in (said + other).splitlines() if line.startswith("saves")}
    assert int(step.split()[3]) == 8, "after the next step, also where the loop before was longer"
    assert said.count("stopped after step") == 1
    assert "stopped" not in other
    assert not record(tmp_path / "stage")["finished"]


def test_ranks_with_slow_steps_stop_after_the_step_in_which_the_signal_came(tmp_path, monkeypatch):
    """Not after the next one: a launcher may kill half a minute after the signal."""

    def train(rank):
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        with Stage(tmp_path / "stage", {"seed": 0}) as stage:
            for step in stage.steps(1, 100):
                if rank == 1 and step == 5:
                    os.kill(os.getpid(), signal.SIGUSR1)
                clock[0] += 3
                if stage.stop_requested():
                    stage.stop(step)

    results = on_ranks(2, tmp_path, train)
    assert [status for status, _ in results] == [128 + signal.SIGUSR1] * 2
    assert "stopped after step 5," in results[0][1]


def test_a_signal_that_comes_while_ranks_wait_for_each_other_is_not_lost(tmp_path):
    def train(rank):
        with Stage(tmp_path / "stage", {"seed": 0}) as stage:
            for step in stage.steps(1, 100):
                if step == 1 and rank == 0:  # rank 1 comes later, so this one waits in the asking
                    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
                if step == 1 and rank == 1:
                    time.sleep(0.6)
                if stage.stop_requested():
                    stage.stop(step)

    results = on_ranks(2, tmp_path, train)
    assert [status for status, _ in results] == [128 + signal.SIGTERM] * 2
