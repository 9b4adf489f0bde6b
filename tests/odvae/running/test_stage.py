"""Stages: one writer, the same settings, finished or not, total time, damaged records."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from ranks import on_ranks
from small_stages import Chosen, Other, Part, record, run

from ldm.arguments import settings_help
from odvae.running.errors import InputError, readable_errors
from odvae.running.files import temporary_path
from odvae.running.settings import Settings
from odvae.running.stage import Stage


class Text(Settings):
    steps: int = 5


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
