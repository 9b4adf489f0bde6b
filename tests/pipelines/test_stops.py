"""Stages that are killed, interrupted or out of disk space can be resumed."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from scripts import Script, fail, succeed
from small_vae import rows_without_rates
from stages import SMALLEST, WEIGHTS, command

pytestmark = pytest.mark.slow


def kill_after(words, checkpoint: Path):
    """Start a script and kill -9 it and its children as soon as a checkpoint is there."""
    script = Script(words)
    script.until(checkpoint.exists)
    script.kill()


@pytest.mark.parametrize("phase", ["image_vae/checkpoints/step_00000001", "checkpoints/step_00000002"])
def test_killed_and_resumed_vae_training_is_bitwise_equal(run, tmp_path, phase):
    shutil.copytree(run / "shards", tmp_path / "run/shards")
    kill_after(command("train_vae", tmp_path / "run"), tmp_path / "run/vae" / phase)
    assert not (tmp_path / "run/vae" / WEIGHTS).exists()
    succeed(*command("train_vae", tmp_path / "run"))
    assert (tmp_path / "run/vae" / WEIGHTS).read_bytes() == (run / "vae" / WEIGHTS).read_bytes()
    log = "vae/metrics.jsonl"
    assert rows_without_rates(tmp_path / "run" / log) == rows_without_rates(run / log)


def test_killed_and_resumed_ldm_training_is_bitwise_equal(run, tmp_path):
    for stage in ("vae", "latents"):
        shutil.copytree(run / stage, tmp_path / "run" / stage)
    kill_after(command("train_ldm", tmp_path / "run"), tmp_path / "run/ldm/checkpoints/step_00000002")
    assert not (tmp_path / "run/ldm" / WEIGHTS).exists()
    succeed(*command("train_ldm", tmp_path / "run"))
    assert (tmp_path / "run/ldm" / WEIGHTS).read_bytes() == (run / "ldm" / WEIGHTS).read_bytes()


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_resumes(run, tmp_path):
    shutil.copytree(run / "shards", tmp_path / "run/shards")
    words = command("train_vae", tmp_path / "run", "vae.video_phase.checkpoint_every=1000")
    script = Script(words)
    script.until((tmp_path / "run/vae/metrics.jsonl").exists)
    os.kill(script.process.pid, signal.SIGINT)
    assert script.wait() == 130
    assert "run the same command again to resume" in script.stdout
    assert list((tmp_path / "run/vae/checkpoints").glob("step_*"))
    succeed(*words)
    assert (tmp_path / "run/vae" / WEIGHTS).read_bytes() == (run / "vae" / WEIGHTS).read_bytes()


def test_a_signal_to_the_command_of_all_stages_ends_the_running_one_as_it_does_alone(run, tmp_path):
    shutil.copytree(run / "shards", tmp_path / "run/shards")
    script = Script(["tools/run_stages.py", *SMALLEST, f"run={tmp_path / 'run'}"])
    script.until((tmp_path / "run/vae/metrics.jsonl").exists)
    os.kill(script.process.pid, signal.SIGTERM)
    assert script.wait() == 143
    assert "run the same command again to resume" in script.stdout
    assert list((tmp_path / "run/vae/checkpoints").glob("step_*"))
    assert "encode_latents.py" not in script.stdout.partition("run the same command again")[2]


def test_a_full_disk_is_a_clear_error_and_existing_files_stay(run, tmp_path):
    shutil.copytree(run / "shards", tmp_path / "run/shards")
    # No file may grow beyond 40 kB: the first checkpoint does not fit.
    message = fail(*command("train_vae", tmp_path / "run"), file_size=40_000)
    assert "error: " in message
    assert "run the same command again" in message
    assert not list((tmp_path / "run/vae").rglob("step_*"))
    assert (tmp_path / "run/shards/00000.tar").read_bytes() == (run / "shards/00000.tar").read_bytes()
