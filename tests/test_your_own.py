"""The code in docs/your_own.md runs and is short."""

import re

import pytest
import yaml
from small import REPOSITORY

from odvae.running.errors import InputError
from odvae.running.files import read_json, read_json_lines
from odvae.video.video_io import decode

BLOCKS = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "docs/your_own.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """What the blocks' script defined, after it ran in an empty folder."""
    folder, names = tmp_path_factory.mktemp("own"), {"__name__": "your_own"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"docs/your_own.md, block {number}", "exec"), names)
    return names | {"folder": folder / "runs/own"}


def test_each_piece_has_less_than_forty_lines():
    assert len(BLOCKS) == 6
    assert all(len([line for line in block.splitlines() if line.strip()]) < 40 for block in BLOCKS)


def test_the_pieces_train_encode_and_sample(own):
    run = own["folder"]
    assert read_json(run / "latents/manifest.json")["buckets"] == {"9x32x32": [8, 5, 4, 4]}
    (sample,) = (run / "samples").glob("*.mp4")
    assert len(list(decode(sample, "x"))) == 9
    assert read_json(run / "ldm/config.json")["_class_name"] == "ConvNet"
    assert read_json(run / "vae/config.json")["latents_std"]


def test_the_custom_loss_falls_and_is_logged_by_its_name(own):
    for folder, name in (("ldm", "loss"), ("ldm_huber", "loss"), ("vae_charbonnier", "charbonnier")):
        values = [row[name] for row in read_json_lines(own["folder"] / folder / "metrics.jsonl") if name in row]
        assert values
    psnr = [row for row in read_json_lines(own["folder"] / "vae/metrics.jsonl") if "validation_psnr" in row]
    assert psnr[-1]["validation_psnr"] > 10
    losses = [
        [row for row in read_json_lines(own["folder"] / folder / "metrics.jsonl") if "held_out_loss" in row][-1]
        for folder in ("ldm", "ldm_huber")
    ]
    assert losses[1]["held_out_loss"] < losses[0]["held_out_loss"]  # Huber's is the smaller measure


def test_a_run_does_not_resume_with_another_loss(own):
    record = yaml.safe_load((own["folder"] / "ldm_huber/experiment.yaml").read_text())
    assert record["own"] == {"make_network": "your_own.ConvNet", "loss": "your_own.huber"}
    run = own["folder"]
    with pytest.raises(InputError, match=r"own\.loss: was 'your_own\.huber', now None"):
        own["train_ldm"](own["settings"], run / "vae", run / "latents", run / "ldm_huber", seed=0, **own["overrides"])
    with pytest.raises(InputError, match=r"set vae\.init=random"):
        own["train_vae"](own["VAESettings"](), own["data"], own["videos"], run / "x", seed=0, make_vae=own["PatchVAE"])
