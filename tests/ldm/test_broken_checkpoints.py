"""A checkpoint or model that is not whole is named, nothing is deleted, and the way back ends in the same weights."""

import json
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_ldm import WEIGHTS, settings, train

from ldm.networks.factory import load_network
from odvae.running.errors import InputError

SETTINGS = settings(optimization={"extra_ema_decays": (0.5,)}, optimizer="adamw")
NEWEST, BEFORE = "step_00000004", "step_00000002"


@pytest.fixture(scope="module")
def trained(ldm_run, tmp_path_factory):
    """A finished training with checkpoints after steps 2 and 4."""
    folder = tmp_path_factory.mktemp("trained") / "ldm"
    train(ldm_run, folder, SETTINGS)
    return folder


@pytest.fixture
def stopped(trained, tmp_path):
    """The same, as if it had been killed before its end."""
    shutil.copytree(trained, tmp_path / "ldm")
    (tmp_path / "ldm/stage.json").unlink()
    return tmp_path / "ldm"


def cut(file):
    file.write_bytes(file.read_bytes()[:-200])


def without_a_tensor(file):
    tensors = load_file(file)
    save_file({name: tensors[name] for name in sorted(tensors)[1:]}, file)


def everything_in(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "ema_0.safetensors", "ema_1.safetensors",
                                  "state_0.safetensors", "state.json"])  # fmt: skip
@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(bytes(file.stat().st_size)),
        lambda file: file.unlink(),
    ],
    ids=["cut", "empty", "zeros", "missing"],
)
def test_a_file_of_the_newest_that_is_not_whole_is_named_with_the_way_back(ldm_run, stopped, name, damage):
    if name == "state.json" and damage is cut:
        (stopped / "checkpoints" / NEWEST / name).write_text('{"format": 2, "st')
    else:
        damage(stopped / "checkpoints" / NEWEST / name)
    before = everything_in(stopped)
    with pytest.raises(InputError) as error:
        train(ldm_run, stopped, SETTINGS)
    message = str(error.value)
    assert str(stopped / "checkpoints" / NEWEST) in message
    assert name in message or "No such file" in message
    assert f"the training resumes from {BEFORE}, the previous one" in message
    assert before <= everything_in(stopped)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("ema_1.safetensors", cut),
        ("ema_0.safetensors", without_a_tensor),
        ("model.safetensors", without_a_tensor),
        ("state.json", lambda file: file.write_text('{"format": 2, "step": 4}')),
    ],
)
def test_the_way_back_that_the_error_names_ends_in_the_same_bits(ldm_run, trained, stopped, name, damage):
    damage(stopped / "checkpoints" / NEWEST / name)
    with pytest.raises(InputError) as error:
        train(ldm_run, stopped, SETTINGS)
    words = shlex.split(re.search(r"\((mv .*)\)", str(error.value))[1])
    subprocess.run(words, check=True)
    again = train(ldm_run, stopped, SETTINGS)
    expected = load_file(trained / WEIGHTS)
    assert all(torch.equal(again[key], tensor) for key, tensor in expected.items())
    assert (stopped / f"broken_{NEWEST}").is_dir()


def test_where_there_is_none_before_the_training_begins_again(ldm_run, stopped):
    shutil.rmtree(stopped / "checkpoints" / BEFORE)
    cut(stopped / "checkpoints" / NEWEST / "optimizer.bin")
    with pytest.raises(InputError, match=r"optimizer\.bin is truncated .*: the training starts from scratch"):
        train(ldm_run, stopped, SETTINGS)


@pytest.mark.parametrize("part", ["", "ema_0.5"])
def test_a_finished_model_that_is_not_whole_is_written_again_as_the_error_says(ldm_run, trained, tmp_path, part):
    shutil.copytree(trained, tmp_path / "ldm")
    cut(tmp_path / "ldm" / part / WEIGHTS)
    with pytest.raises(InputError, match=r"is truncated .* remove (\S+) and run: .*train_ldm") as error:
        load_network(tmp_path / "ldm" / part)
    record = re.search(r"remove (\S+) and run", str(error.value))[1]
    assert json.loads((tmp_path / "ldm/stage.json").read_text())["finished"]
    assert record == str(tmp_path / "ldm/stage.json")
    (tmp_path / "ldm/stage.json").unlink()
    train(ldm_run, tmp_path / "ldm", SETTINGS)
    assert (tmp_path / "ldm" / part / WEIGHTS).read_bytes() == (trained / part / WEIGHTS).read_bytes()
