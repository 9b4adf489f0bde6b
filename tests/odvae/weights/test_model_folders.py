"""Damaged folders of models and checkpoints are refused by name, whatever the libraries raise."""

import json
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from small_networks import make_dit
from torch import nn

from ldm.networks.factory import load_network
from odvae.running.errors import InputError
from odvae.train import image_vae_is_trained
from odvae.training.checkpoints import FORMAT
from odvae.training.settings import OptimizationSettings
from odvae.training.state import TrainingState
from odvae.video_vae import load_vae
from odvae.weights.model_sizes import check_sizes
from odvae.weights.pretrained import loading


class PanicException(BaseException):
    """As of a library in Rust."""


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shapes"), PanicException("index"), InputError("no")])
def test_whatever_loading_raises_is_an_input_error_that_names_the_folder(error):
    message = r"my/folder cannot be loaded as a VAE: "
    with pytest.raises(InputError, match=message), loading("my/folder", "my/folder", "a VAE"):
        raise error


def test_an_interrupt_passes():
    with pytest.raises(KeyboardInterrupt), loading("my/folder", "my/folder", "a VAE"):
        raise KeyboardInterrupt


def test_sizes_that_no_model_has_are_refused_before_anything_is_built():
    check_sizes({"depth": 28, "width": 1152, "class_names": ["a"], "rope_theta": 1e12, "norm": True}, "x")
    for config in ({"depth": 10**5}, {"layers_per_block": 10**5}, {"widths": [8, 10**9]}, {"a": {"width": -(10**9)}}):
        with pytest.raises(InputError, match=r"x: .*larger than any model's"):
            check_sizes(config, "x")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text(json.dumps({"_class_name": ["DiT"]})),
        lambda folder: (folder / "config.json").write_text(json.dumps({"_class_name": "DiT", "depth": 10**6})),
        lambda folder: (folder / "config.json").write_text(json.dumps({"_class_name": "DiT", "width": "wide"})),
        lambda folder: (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 100),
        lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(),
    ],
)
def test_a_damaged_network_or_vae_names_its_folder(tmp_path, vae, change):
    make_dit().save_pretrained(tmp_path / "dit")
    vae.save_pretrained(tmp_path / "vae")
    for name, load in (("dit", load_network), ("vae", load_vae)):
        load(tmp_path / name)
        change(tmp_path / name)
        with pytest.raises(InputError, match=str(tmp_path / name)):
            load(tmp_path / name)


@pytest.fixture
def training(tmp_path):
    """A training's state, as often as it is asked for, in one folder, with a checkpoint after step 1 and step 2."""

    def make():
        torch.manual_seed(0)
        settings = OptimizationSettings(steps=4, batch_size=2)
        return TrainingState(nn.Linear(4, 4), settings, tmp_path, "none", "test")

    for step in (1, 2):
        make().checkpoints.save(step)
    return make


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "ema_0.safetensors", "state_0.safetensors"])
def test_a_checkpoint_that_was_cut_short_is_named_and_so_is_the_way_on(tmp_path, training, name):
    newest = tmp_path / "checkpoints/step_00000002"
    (newest / name).write_bytes((newest / name).read_bytes()[:-30])
    with pytest.raises(
        InputError, match=rf"{newest}/{name} is truncated .*resumes from step_00000001, the previous one"
    ):
        training().checkpoints.load_latest()
    shutil.rmtree(newest)
    assert training().checkpoints.load_latest() == 1


@pytest.mark.parametrize("state", ["[]", '{"format": 2}', "{", '{"format": 2, "step": "2", "ranks": 1}'])
def test_a_damaged_state_of_a_checkpoint_is_named(tmp_path, training, state):
    (tmp_path / "checkpoints/step_00000002/state.json").write_text(state)
    with pytest.raises(InputError, match=r"step_00000002/state\.json"):
        training().checkpoints.load_latest()


def test_of_an_image_vae_that_is_complete_the_checkpoints_may_go(tmp_path):
    folder, video = tmp_path / "vae/image_vae", tmp_path / "vae"
    for step in (2, 4):
        (folder / f"checkpoints/step_{step:08d}").mkdir(parents=True)
        facts = {"format": FORMAT, "step": step, "ranks": 1, "global_batch": 2, "sharded": False}
        (folder / f"checkpoints/step_{step:08d}/state.json").write_text(json.dumps(facts))
    (video / "checkpoints/step_00000001").mkdir(parents=True)
    (folder / "config.json").touch()
    assert image_vae_is_trained(folder, 4, video)
    (folder / "checkpoints/step_00000004/state.json").write_text("")
    with pytest.raises(InputError, match=r"state\.json .*image_vae is complete and is used") as error:
        image_vae_is_trained(folder, 4, video)
    subprocess.run(shlex.split(re.search(r"\((mv .*)\)", str(error.value))[1]), check=True)
    assert image_vae_is_trained(folder, 4, video)
    assert (folder / "broken_checkpoints/step_00000002/state.json").is_file()
