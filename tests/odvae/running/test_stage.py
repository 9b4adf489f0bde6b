"""Stages: one writer, the same settings, finished or not, total time, stop signals."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Annotated

import pytest
from ranks import on_ranks

from ldm.arguments import settings_help
from odvae.running.errors import InputError, readable_errors
from odvae.running.files import temporary_path
from odvae.running.resume_check import MayChange
from odvae.running.settings import Settings
from odvae.running.stage import Stage


class Part(Settings):
    width: int = 1
    every: Annotated[int, MayChange] = 1


class Other(Settings):
    every: int = 1


class Chosen(Settings):
    steps: Annotated[int, MayChange] = 10
    learning_rate: float = 0.1
    limit: Annotated[int, MayChange] | None = None
    optional: Part | None = Part()
    either: Part | Other = Other()
    several: tuple[Part, ...] = (Part(), Part(width=2))


class Text(Settings):
    steps: int = 5


def run(folder, chosen=None, **sections):
    with Stage(folder, {"seed": 0, "chosen": chosen or Chosen(), **sections}) as stage:
        return stage.finished


def record(folder):
    return json.loads((folder / "stage.json").read_text())


def test_a_stage_is_finished_after_a_successful_block_and_not_after_a_failed_one(tmp_path):
    with pytest.raises(ZeroDivisionError), Stage(tmp_path, {"seed": 0}):
        1 / (0 if not record(tmp_path)["finished"] else 1)
    assert not record(tmp_path)["finished"]
    with Stage(tmp_path, {"seed": 0}) as stage:
        assert not stage.finished
    assert record(tmp_path)["finished"]
    before = (tmp_path / "stage.json").read_bytes()
    with Stage(tmp_path, {"seed": 0}) as stage:
        assert stage.finished
    assert (tmp_path / "stage.json").read_bytes() == before


def test_minutes_add_up_over_all_runs_and_name_the_code(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def work_two_minutes():
        with Stage(tmp_path, {"seed": 0}) as stage:
            for _ in range(2):
                clock[0] += 60
                stage.record()
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            work_two_minutes()
    assert record(tmp_path)["minutes"] == 4
    assert record(tmp_path).keys() == {"minutes", "finished", "command", "version", "commit"}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (Chosen(learning_rate=0.2), r"chosen\.learning_rate: was 0\.1, now 0\.2"),
        (Chosen(optional=Part(width=3)), r"chosen\.optional\.width: was 1, now 3"),
        (Chosen(optional=None), r"chosen\.optional: was {'width': 1, 'every': 1}, now None"),
        (Chosen(either=Other(every=2)), r"chosen\.either\.every: was 1, now 2"),
        (Chosen(several=(Part(), Part(width=5))), r"chosen\.several\.1\.width: was 2, now 5"),
        (Chosen(several=(Part(),)), r"chosen\.several: was \["),
    ],
)
def test_another_setting_is_refused_by_name_and_nothing_changes(tmp_path, chosen, message):
    run(tmp_path)
    before = (tmp_path / "experiment.yaml").read_bytes()
    with pytest.raises(InputError, match=message):
        run(tmp_path, chosen)
    assert (tmp_path / "experiment.yaml").read_bytes() == before
    assert run(tmp_path), "still finished with the first settings"


@pytest.mark.parametrize(
    "chosen",
    [
        Chosen(steps=20),
        Chosen(limit=5),
        Chosen(optional=Part(every=9)),
        Chosen(several=(Part(every=7), Part(width=2))),
    ],
)
def test_a_marked_field_may_change_in_any_section_when_a_stage_is_resumed(tmp_path, chosen):
    run(tmp_path)
    assert not run(tmp_path, chosen)
    assert run(tmp_path, chosen)


def test_a_field_of_the_same_name_elsewhere_may_not_change(tmp_path):
    """The steps of a learned text encoder decide its weights; those of a training only when it ends."""
    run(tmp_path, text=Text())
    with pytest.raises(InputError, match=r"text\.steps: was 5, now 6"):
        run(tmp_path, Chosen(steps=20), text=Text(steps=6))


def test_help_says_which_settings_may_change():
    text = settings_help(Chosen)
    assert "steps  [int, default 10, may change on resume]" in text
    assert "learning_rate  [float, default 0.1]" in text
    assert "optional.every  [int, default 1, may change on resume]" in text


def test_a_second_writer_is_refused_until_the_first_has_finished(tmp_path):
    with Stage(tmp_path, {"seed": 0}):
        started = time.monotonic()
        with pytest.raises(InputError, match=rf"is being written by another process \(process {os.getpid()} on"):
            run(tmp_path)
        assert time.monotonic() - started < 2
    with Stage(tmp_path, {"seed": 0}):
        pass


def test_incomplete_files_of_a_killed_writer_are_removed_and_complete_files_stay(tmp_path):
    (tmp_path / "deep").mkdir()
    leftovers = [temporary_path(tmp_path / "a.mp4"), temporary_path(tmp_path / "deep/b.tar"), tmp_path / ".old.partial"]
    for leftover in leftovers:
        leftover.write_text("half")
    (tmp_path / "deep/whole.tar").write_text("whole")
    run(tmp_path)
    assert not any(leftover.exists() for leftover in leftovers)
    assert (tmp_path / "deep/whole.tar").exists()


def test_with_several_writers_only_leftovers_of_ended_processes_of_this_machine_are_removed(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=lambda: None)
    child.start()
    child.join()
    alive = temporary_path(tmp_path / "a.mp4")
    dead = Path(str(alive).replace(f"-{os.getpid()}-", f"-{child.pid}-"))
    elsewhere = Path(str(dead).replace(".mp4.", ".mp4.another-"))
    for leftover in (alive, dead, elsewhere):
        leftover.write_text("half")
    with Stage(tmp_path):
        assert alive.exists()
        assert elsewhere.exists()
        assert not dead.exists()


def append_rows(folder, name, count, ready):
    ready.wait()
    for i in range(count):
        with Stage(folder) as stage, stage.updating():
            path = folder / "rows.json"
            rows = json.loads(path.read_text()) if path.exists() else []
            time.sleep(0.005)
            path.write_text(json.dumps([*rows, f"{name} {i}"]))


def test_concurrent_updates_of_one_folder_wait_for_each_other_and_lose_no_row(tmp_path):
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(3)
    processes = [fork.Process(target=append_rows, args=(tmp_path, name, 6, ready)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(json.loads((tmp_path / "rows.json").read_text())) == [
        f"{name} {i}" for name in "abc" for i in range(6)
    ]
    assert record(tmp_path)["minutes"] > 18 * 0.005 / 60 / 2, "the clock counts every command's time"


def test_a_replaced_folder_has_its_lock_next_to_it_and_no_record(tmp_path):
    out = tmp_path / "pipeline"
    with Stage(out, replaces_folder=True):
        assert not out.exists()
        with pytest.raises(InputError, match="is being written by another process"), Stage(out, replaces_folder=True):
            pass
        out.mkdir()
    assert list(out.iterdir()) == []
    with Stage(out, replaces_folder=True):
        pass


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


def test_the_main_process_decides_for_all_ranks_and_alone_prints_the_error(tmp_path):
    run(tmp_path / "finished")

    def begin(rank):
        with readable_errors():
            if rank == 1:  # as if another machine did not see the record yet
                Stage._begin = None
            with Stage(tmp_path / "finished", {"seed": 0, "chosen": Chosen()}) as stage:
                assert stage.finished
            with Stage(tmp_path / "finished", {"seed": 1, "chosen": Chosen()}):
                raise AssertionError("not reached")

    results = on_ranks(2, tmp_path, begin)
    assert [status for status, _ in results] == [1, 1]
    assert "seed: was 0, now 1" in results[0][1]
    assert results[1][1] == ""


@pytest.mark.parametrize("record", ["", "[1]", "settings", "1: 2\nnumbers: {null: 1, x: 2}"])
def test_a_damaged_record_of_the_settings_is_an_error_that_names_it(tmp_path, record):
    with Stage(tmp_path / "stage", {"numbers": {"x": 1}}):
        pass
    (tmp_path / "stage/experiment.yaml").write_text(record)
    with (
        pytest.raises(InputError, match=r"experiment\.yaml was damaged|holds a run with other settings"),
        Stage(tmp_path / "stage", {"numbers": {"x": 1}}),
    ):
        pass


@pytest.mark.parametrize("record", ["[]", "{", '{"minutes": "1", "finished": true}', '{"minutes": 1, "finished": 1}'])
def test_a_damaged_record_of_the_minutes_is_an_error_that_names_it(tmp_path, record):
    run(tmp_path)
    (tmp_path / "stage.json").write_text(record)
    with pytest.raises(InputError, match=r"stage\.json"):
        run(tmp_path)
