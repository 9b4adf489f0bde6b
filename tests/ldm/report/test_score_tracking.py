"""Scores and the page reach the tracker's run of the training."""

import json

import pytest
from PIL import Image

from ldm.report import score_tracking
from ldm.report.score_tracking import track_scores
from odvae.running.files import read_object
from odvae.running.run_folder import RunFolder
from odvae.training.tracking import WANDB_RUN, wandb_run_id


@pytest.fixture
def folders(tmp_path):
    folders = RunFolder(tmp_path / "run")
    for folder in (folders.vae, folders.ldm, folders.report):
        folder.mkdir(parents=True)
    report = {"reconstruction": {"psnr": 31.25, "command": "x"}, "flicker": {"added": 2.5}, "minutes": {"vae": 1.0}}
    (folders.report / "report.json").write_text(json.dumps(report))
    (folders.report / "report.html").write_text("<p>")
    Image.new("RGB", (8, 8)).save(folders.report / "overview.png")
    (folders.ldm / "metrics.jsonl").write_text('{"step": 40}\n{"step": 42}\n')
    return folders


def test_tensorboard_gets_them_at_the_last_step_of_the_training(folders):
    pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track_scores("tensorboard", folders, "ldm")
    events = EventAccumulator(str(folders.ldm / "odvae")).Reload()
    assert {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]} == {
        "evaluation/reconstruction.psnr": [(42, 31.25)],
        "evaluation/flicker.added": [(42, 2.5)],
    }
    assert events.Tags()["images"] == ["report"]


def test_wandb_gets_them_in_the_run_of_the_training(folders, monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb", reason="needs the wandb extra")
    started = {}

    class Run:
        id = "abc"

        def __init__(self):
            self.summary, self.artifacts, self.finished = {}, [], False

        def log_artifact(self, artifact):
            self.artifacts.append(artifact)

        def finish(self):
            self.finished = True

    run = Run()
    monkeypatch.setattr(wandb, "init", lambda **given: started.update(given) or run)
    before = wandb_run_id(folders.vae)
    track_scores("wandb", folders, "vae", ["reconstruction"])
    assert started["id"] == before == read_object(folders.vae / WANDB_RUN)["id"]
    assert started["resume"] == "allow"
    assert run.summary == {"evaluation/reconstruction.psnr": 31.25}
    assert sorted(run.artifacts[0].manifest.entries) == ["report.html", "report.json"]
    assert run.finished


def test_a_tracker_that_fails_is_said_and_costs_nothing_else(folders, monkeypatch, capsys):
    def fail(*_):
        raise BrokenPipeError("the service is gone")

    monkeypatch.setattr(score_tracking, "_to_tensorboard", fail)
    track_scores("tensorboard", folders, "ldm")
    assert (
        "warning: tensorboard did not take the scores (BrokenPipeError: the service is gone)" in capsys.readouterr().err
    )
