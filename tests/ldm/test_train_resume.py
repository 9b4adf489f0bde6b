"""Resuming of a training, after a signal, on another number of ranks, and sharded, gives the same weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from scripts import on_ranks
from small_ldm import WEIGHTS, evicted_at, settings, train
from torch.distributed.fsdp import MixedPrecisionPolicy

from ldm.experiment import Experiment
from ldm.networks.settings import ConditioningSettings
from ldm.train import train_ldm
from odvae.running.errors import InputError
from odvae.running.settings import load_settings
from odvae.training.optimization import sharded_policy


@pytest.mark.parametrize("in_background", [False, True])
def test_sigterm_saves_and_a_resumed_run_is_bitwise_equal(ldm_run, tmp_path, in_background):
    expected = train(ldm_run, tmp_path / "whole", settings(optimization={"extra_ema_decays": (0.5,)}))
    chosen = settings(optimization={"extra_ema_decays": (0.5,), "async_checkpoints": in_background})
    with evicted_at(3) as stopped:
        train(ldm_run, tmp_path / "ldm", chosen)
    assert stopped.value.code == 143
    assert (tmp_path / "ldm/checkpoints/step_00000003/state.json").is_file()
    again = train(ldm_run, tmp_path / "ldm", chosen)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    half = "ema_0.5/" + WEIGHTS
    assert (tmp_path / "ldm" / half).read_bytes() == (tmp_path / "whole" / half).read_bytes()


def test_a_run_resumes_only_with_the_same_global_batch_and_the_error_lists_other_differences(ldm_run, tmp_path):
    train(ldm_run, tmp_path / "ldm", settings(steps=2))
    for _ in range(2):  # a refused command leaves no trace that the next one takes for a finished run
        with pytest.raises(InputError, match=r"4 samples per step \(1 ranks\), but this run has 8"):
            train(ldm_run, tmp_path / "ldm", settings(steps=4, optimization={"gradient_accumulation_steps": 2}))
    with pytest.raises(InputError, match=r"ldm\.conditioning\.kind: was 'text', now 'none'"):
        train(ldm_run, tmp_path / "ldm", settings(steps=4, conditioning=ConditioningSettings(kind="none")))


def test_a_run_is_not_shortened_after_it_was_trained(ldm_run, tmp_path):
    """The weights of step 4 would be saved as those of 2 steps."""
    train(ldm_run, tmp_path / "ldm", settings(steps=4))
    with pytest.raises(InputError, match=r"ldm was trained for 4 steps already, more than steps=2: give at least 4"):
        train(ldm_run, tmp_path / "ldm", settings(steps=2))


def test_a_run_does_not_resume_with_other_latents(ldm_run, tmp_path):
    shutil.copytree(ldm_run / "latents", tmp_path / "latents")
    train_ldm(settings(steps=2), ldm_run / "vae", tmp_path / "latents", tmp_path / "ldm", 0)
    manifest = json.loads((tmp_path / "latents/manifest.json").read_text())
    (tmp_path / "latents/manifest.json").write_text(json.dumps(manifest | {"train_entries": 99}))
    with pytest.raises(InputError, match=r"latents\.train_entries: was \d+, now 99"):
        train_ldm(settings(steps=2), ldm_run / "vae", tmp_path / "latents", tmp_path / "ldm", 0)


CONFIG = """
run: {run}
data: {{frames: 9, height: 32, width: 32, held_out: 0.25, workers: 0}}
ldm:
  dit: {{width: 32, depth: 2, heads: 2}}
  optimization: {{steps: 6, batch_size: 4, optimizer: sgd, learning_rate: 2e-2, checkpoint_every: 2, log_every: 6}}
"""


def launch(ranks, folder, *overrides, sharded=None):
    script = ["tests/support/launch_sharded.py", sharded] if sharded else []
    on_ranks(ranks, *script, "pipelines/train_ldm.py", "--config", str(folder / "config.yaml"), *overrides)
    return load_file(folder / "ldm" / WEIGHTS)


def stop_at(folder, step):
    """As if the run had been killed right after the checkpoint of this step."""
    for checkpoint in (folder / "ldm/checkpoints").glob("step_*"):
        if int(checkpoint.name[5:]) > step:
            shutil.rmtree(checkpoint)
    (folder / "ldm" / WEIGHTS).unlink()
    (folder / "ldm/stage.json").unlink()


def worst(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def one_rank(ldm_run, tmp_path_factory):
    """A whole run of one process: (its folder, its weights)."""
    folder = tmp_path_factory.mktemp("one_rank")
    for name in ("vae", "latents"):
        shutil.copytree(ldm_run / name, folder / name)
    (folder / "config.yaml").write_text(CONFIG.format(run=folder))
    chosen = load_settings(Experiment, folder / "config.yaml").ldm
    return folder, train(folder, folder / "ldm", chosen)


@pytest.mark.slow
def test_a_run_killed_on_one_rank_resumes_on_two_with_the_same_weights(one_rank, tmp_path):
    folder, expected = one_rank
    shutil.copytree(folder, tmp_path / "run")
    stop_at(tmp_path / "run", 4)
    again = launch(2, tmp_path / "run", f"run={tmp_path / 'run'}", "ldm.optimization.batch_size=2")
    assert json.loads((tmp_path / "run/ldm/checkpoints/step_00000006/state.json").read_text())["ranks"] == 2
    assert worst(again, expected) < 1e-6


@pytest.mark.slow
def test_sharded_ranks_train_save_and_load_like_one_process(one_rank, tmp_path):
    """With the optimizer that large runs use, whose one kernel updates all shards."""
    folder, _ = one_rank
    for name in ("vae", "latents"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "config.yaml").write_text(CONFIG.format(run=tmp_path).replace("sgd, learning_rate: 2e-2", "adamw"))
    expected = train(tmp_path, tmp_path / "one_process", load_settings(Experiment, tmp_path / "config.yaml").ldm)
    going_on = "ldm.optimization.async_checkpoints=true"
    sharded = launch(2, tmp_path, "ldm.optimization.batch_size=2", going_on, sharded="fsdp2")
    assert worst(sharded, expected) < 1e-6
    stop_at(tmp_path, 4)
    assert list((tmp_path / "ldm/checkpoints/step_00000004/pytorch_model_fsdp_0").glob("*.distcp"))
    whole_batch = "ldm.optimization.batch_size=1"
    assert worst(launch(4, tmp_path, whole_batch, sharded="fsdp2"), sharded) < 1e-6
    stop_at(tmp_path, 4)
    assert worst(launch(4, tmp_path, whole_batch, sharded="hsdp"), sharded) < 1e-6
    stop_at(tmp_path, 0)  # from the beginning: two copies of two shards
    assert worst(launch(4, tmp_path, whole_batch, sharded="hsdp"), sharded) < 1e-6


@pytest.mark.slow
def test_weights_gathered_in_bf16_train_nearly_as_those_in_fp32(one_rank, tmp_path):
    folder, _ = one_rank
    half = ["ldm.optimization.batch_size=2", "ldm.optimization.precision=bf16"]
    weights = {}
    for name in ("fp32", "bf16"):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("ldm"))
        run = f"run={tmp_path / name}"
        weights[name] = launch(
            2, tmp_path / name, run, *half, f"ldm.optimization.sharded_precision={name}", sharded="fsdp2"
        )
    assert all(value.dtype == torch.float32 for value in weights["bf16"].values())
    assert 0 < worst(weights["bf16"], weights["fp32"]) < 1e-3


def test_weights_gathered_in_bf16_need_a_training_in_bf16():
    assert sharded_policy("fp32", bf16=True) == MixedPrecisionPolicy()
    assert sharded_policy("bf16", bf16=True).reduce_dtype == torch.float32
    with pytest.raises(InputError, match="needs a training in bf16: set precision=bf16"):
        sharded_policy("bf16", bf16=False)
