"""Trackers get metrics, images and videos."""

import shutil

import pytest
from scripts import fail, succeed
from stages import command

pytestmark = pytest.mark.slow


def test_a_tracker_gets_metrics_and_images(run, tmp_path):
    shutil.copytree(run / "shards", tmp_path / "board/shards")
    succeed(*command("train_vae", tmp_path / "board", "tracker=tensorboard"))
    events = sorted((tmp_path / "board/vae").rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_size)
    assert b"validation_psnr" in events[-1].read_bytes()
    assert b"strips" in events[-1].read_bytes()


def test_wandb_works_offline(run, tmp_path):
    pytest.importorskip("wandb", reason="needs the wandb extra")
    shutil.copytree(run / "shards", tmp_path / "offline/shards")
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    succeed(*command("train_vae", tmp_path / "offline", "tracker=wandb"), **offline)
    runs = list((tmp_path / "offline/vae").rglob("offline-run-*/*.wandb"))
    assert len(runs) == 2  # the image phase and the video phase
    assert any((path.parent / "files/media/images").is_dir() for path in runs)


def test_wandb_gets_the_videos_of_fixed_prompts(run, tmp_path):
    pytest.importorskip("wandb", reason="needs the wandb extra")
    for stage in ("shards", "vae", "latents"):
        shutil.copytree(run / stage, tmp_path / stage)
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    succeed(*command("train_ldm", tmp_path, "tracker=wandb", "ldm.sample_every=6"), **offline)
    assert list((tmp_path / "ldm").rglob("offline-run-*/files/media/videos/*.mp4"))


def test_wandb_without_a_key_and_a_terminal_is_an_error_with_the_ways_out(run, tmp_path):
    pytest.importorskip("wandb", reason="needs the wandb extra")
    shutil.copytree(run / "shards", tmp_path / "shards")
    nobody = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_MODE": "online", "NETRC": str(tmp_path / "none")}
    message = fail(*command("train_vae", tmp_path, "tracker=wandb"), **nobody)
    assert "error: tracker=wandb cannot be started" in message
    assert "WANDB_API_KEY" in message
    assert "WANDB_MODE=offline" in message
    assert "Traceback" not in message
