"""A tracker that cannot start is an error with the ways out; one that fails later costs its own records alone."""

import importlib.util
import json
import types

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from safetensors.torch import load_file
from small_ldm import WEIGHTS, settings

from ldm.train import train_ldm
from ldm.training.diffusion_batches import LatentData
from odvae.running.errors import InputError
from odvae.running.files import read_object
from odvae.running.run_folder import code_version
from odvae.training.optimization import make_accelerator
from odvae.training.tracking import WANDB_RUN, MetricsLog
from odvae.video.video_io import examine


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_an_error(tmp_path, monkeypatch, tracker):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"tracker={tracker}: {tracker} is not installed; pip install {tracker}, or"):
        make_accelerator("fp32", tracker, tmp_path, "x")


def test_a_tracker_that_cannot_start_is_an_error_with_its_reason_and_the_ways_out(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("api_key not configured (no-tty)")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    with pytest.raises(InputError, match=r"api_key not configured.*WANDB_API_KEY.*WANDB_MODE=offline.*tracker=none"):
        make_accelerator("fp32", "wandb", tmp_path, "x")
    with pytest.raises(InputError, match=r"tracker=tensorboard cannot be started .*tracker=none"):
        make_accelerator("fp32", "tensorboard", tmp_path, "x")


@pytest.mark.parametrize("method", ["log", "log_images", "finish"])
def test_a_tracker_that_fails_later_is_said_once_and_the_training_ends_in_the_same_weights(
    ldm_run, tmp_path, monkeypatch, capsys, method
):
    calls = []

    def fail(self, *_, **__):
        calls.append(method)
        raise BrokenPipeError("the service is gone")

    chosen = settings(steps=3, sample_every=2, optimization={"validate_every": 3})
    for name, tracker in (("with", "tensorboard"), ("without", "none")):
        if tracker != "none":
            pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
            monkeypatch.setattr(TensorBoardTracker, method, fail)
        train_ldm(chosen, ldm_run / "vae", ldm_run / "latents", tmp_path / name, 0, tracker)
    assert calls == [method]
    said = capsys.readouterr().err
    assert said.count("warning: tensorboard failed") == 1
    assert "(BrokenPipeError: the service is gone) and gets no more data; the training continues" in said
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in ("with", "without"))
    assert all(torch.equal(one[key], other[key]) for key in other)
    rows = [json.loads(line) for line in (tmp_path / "with/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]


def test_an_error_that_is_no_trackers_is_not_swallowed(ldm_run, tmp_path, monkeypatch):
    def fail(self, *_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Accelerator, "log", fail)
    with pytest.raises(ZeroDivisionError):
        train_ldm(settings(steps=1), ldm_run / "vae", ldm_run / "latents", tmp_path, 0, "none")


def test_a_video_is_written_at_the_rate_that_is_given(tmp_path):
    log = MetricsLog(tmp_path, Accelerator(cpu=True), resumed_at=0)
    log.video(3, "videos", np.zeros((5, 16, 16, 3), np.uint8), fps=12.5)
    assert examine(tmp_path / "videos/000003.mp4", "x").fps == pytest.approx(12.5)


def test_the_rate_of_logged_samples_is_that_of_the_first_held_out_clip():
    data = LatentData.__new__(LatentData)
    about = [json.dumps({"fps": rate}).encode() for rate in (12.5, 30.0)]
    entries = [types.SimpleNamespace(name="x", members={"json": 0}, read=lambda _, text=text: text) for text in about]
    data.latents = types.SimpleNamespace(held_out={"empty": [], "bucket": entries})
    assert data.frame_rate() == 12.5


def test_a_tracker_gets_the_settings_and_the_code_and_a_restart_goes_on_in_the_same_run(ldm_run, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, project, init_kwargs: started.append(init_kwargs))
    for steps in (2, 3):
        train_ldm(settings(steps=steps), ldm_run / "vae", ldm_run / "latents", tmp_path / "ldm", 0, "wandb")
    first, second = (one["wandb"] for one in started)
    assert first["id"] == second["id"] == read_object(tmp_path / "ldm" / WANDB_RUN)["id"]
    assert second["config"]["ldm"]["optimization"]["steps"] == 3
    assert second["config"]["code"]["commit"] == code_version()["commit"]
    assert (first["resume"], first["dir"]) == ("allow", str(tmp_path / "ldm"))


def test_tensorboard_gets_the_settings_as_text(ldm_run, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    train_ldm(settings(steps=1), ldm_run / "vae", ldm_run / "latents", tmp_path, 0, "tensorboard")
    events = b"".join(path.read_bytes() for path in tmp_path.rglob("events.out.tfevents.*"))
    assert b"learning_rate" in events
    assert code_version()["commit"][:12].encode() in events
