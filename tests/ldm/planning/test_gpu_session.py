"""The session on a GPU: parts are restartable and have time limits; a step is measured beside its prediction."""

import json

import pytest
import torch
from session_parts import fail, hang, work
from small import REPOSITORY

from ldm.experiment import CONFIGS, Experiment
from ldm.planning.measured import measure_step, profile_step
from ldm.planning.rehearsal import stages_of
from odvae.running.errors import InputError
from odvae.running.settings import load_settings

CPU = torch.device("cpu")


@pytest.fixture
def session(monkeypatch, tmp_path):
    """The script as a module, and a session of it."""
    monkeypatch.syspath_prepend(REPOSITORY / "tools")
    import gpu_session

    return gpu_session, gpu_session.Session(tmp_path, CPU, small=True)


def test_a_part_is_run_once_until_the_code_changes_and_failures_are_run_again(session, monkeypatch):
    script, small = session
    monkeypatch.setitem(script.PARTS, "plan", script.Part(fail, 1))
    first = script.result_of(small, "plan", again=False)
    assert first["status"] == "failed"
    assert "no such kernel" in first["result"]["error"]
    monkeypatch.setitem(script.PARTS, "plan", script.Part(work, 1))
    done = script.result_of(small, "plan", again=False)
    assert (done["status"], done["result"]) == ("done", {"folder": str(small.folder)})
    assert json.loads((small.folder / "plan.json").read_text()) == done
    monkeypatch.setattr(script, "run_limited", lambda *_: pytest.fail("it is run again"))
    assert script.result_of(small, "plan", again=False) == done
    monkeypatch.setattr(script, "code_version", lambda: {"commit": "another"})
    with pytest.raises(pytest.fail.Exception, match="it is run again"):
        script.result_of(small, "plan", again=False)


def test_a_part_ends_at_its_time_limit(session):
    script, small = session
    assert script.run_limited(script.Part(hang, 0.02), small) == ("timed out", {"minutes": 0.02})


def test_all_parts_together_take_less_than_40_minutes(session):
    assert sum(part.minutes for part in session[0].PARTS.values()) < 40


def test_without_a_gpu_only_the_small_session_runs(session, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_session.py"])
    with pytest.raises(InputError, match="no CUDA device that torch can use; --small"):
        session[0].main.__wrapped__()


def test_a_step_is_measured_and_profiled():
    experiment = load_settings(Experiment, CONFIGS / "smallest.yaml", ["ldm.dit={width: 128, depth: 4, heads: 4}"])
    (stage,) = (stage for stage in stages_of(experiment) if stage.name.startswith("train_ldm"))
    row = measure_step(stage, CPU, None, repeats=1)
    assert row["peak_over_predicted"] == pytest.approx(1, abs=0.1)
    assert row["tflops_per_second"] == pytest.approx(row["tflops"] / row["seconds"])
    profile = profile_step(stage, CPU)
    assert "aten::addmm" in profile["operations"]
    assert 0 < sum(profile["operations"].values()) <= profile["milliseconds"]
