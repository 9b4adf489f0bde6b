"""Training into a run folder at a URL: the weights of one on the disk, resumed on another machine."""

import json
import secrets
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small_ldm import WEIGHTS, settings, train

from ldm.networks.provenance import Provenance
from ldm.train import train_ldm
from odvae.running.errors import InputError
from odvae.storage.files import local_copy
from odvae.storage.paths import open_path, work_folder
from odvae.storage.trees import list_tree


@pytest.fixture
def url(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / "cache"))
    return open_path(f"memory://{secrets.token_hex(4)}/run/ldm")


def steps_at(url: Path) -> list[str]:
    return sorted({name.split("/")[1] for name in list_tree(url) if name.startswith("checkpoints/")})


@pytest.mark.parametrize("in_background", [False, True])
def test_a_training_at_a_url_resumes_on_another_machine_with_the_weights_of_an_undisturbed_one(
    ldm_run, url, tmp_path, monkeypatch, in_background
):
    every = {"checkpoint_every": 1, "checkpoints_total_limit": 2, "async_checkpoints": in_background}
    chosen = {"optimizer": "adamw", "optimization": every}
    expected = train(ldm_run, tmp_path / "ldm", settings(steps=5, **chosen))
    train_ldm(settings(steps=3, **chosen), ldm_run / "vae", ldm_run / "latents", url, 0)
    assert steps_at(url) == ["step_00000002", "step_00000003"]
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "another machine"))
    train_ldm(settings(steps=5, **chosen), ldm_run / "vae", ldm_run / "latents", url, 0)
    assert steps_at(url) == ["step_00000004", "step_00000005"]
    found = load_file(local_copy(url / WEIGHTS))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not (work_folder(url) / "checkpoints/step_00000002").exists()
    rows = [json.loads(line) for line in local_copy(url / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]


def test_a_checkpoint_whose_upload_was_cut_off_is_not_resumed_from(ldm_run, url, tmp_path, monkeypatch):
    chosen = settings(steps=2, optimization={"checkpoint_every": 1, "checkpoints_total_limit": 5})
    train_ldm(chosen, ldm_run / "vae", ldm_run / "latents", url, 0)
    url.joinpath("checkpoints/step_00000002/state.json").unlink()
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "another machine"))
    longer = settings(steps=3, optimization={"checkpoint_every": 1, "checkpoints_total_limit": 5})
    train_ldm(longer, ldm_run / "vae", ldm_run / "latents", url, 0)
    assert "checkpoints/step_00000002/state.json" in list_tree(url)
    expected = train(ldm_run, tmp_path / "ldm", longer)
    found = load_file(local_copy(url / WEIGHTS))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_damaged_checkpoint_at_a_url_is_named_by_its_url(ldm_run, url, tmp_path, monkeypatch):
    chosen = {"optimization": {"checkpoint_every": 1}}
    train_ldm(settings(steps=2, **chosen), ldm_run / "vae", ldm_run / "latents", url, 0)
    url.joinpath("checkpoints/step_00000002/model.safetensors").write_bytes(b"damaged")
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "another machine"))
    with pytest.raises(
        InputError,
        match=rf"{url}/checkpoints/step_00000002/model\.safetensors .*remove {url}/checkpoints/step_00000002 and run",
    ):
        train_ldm(settings(steps=3, **chosen), ldm_run / "vae", ldm_run / "latents", url, 0)


@pytest.mark.parametrize(
    ("latents", "ldm", "expected"),
    [
        ("memory://b/run/latents", "memory://b/run/ldm", "../latents/text_encoder"),
        ("run/latents", "run/ldm", "../latents/text_encoder"),
        ("memory://b/run/latents", "run/ldm", "memory://b/run/latents/text_encoder"),
    ],
)
def test_the_text_encoder_of_the_latents_is_recorded_relative_to_the_ldm_folder(latents, ldm, expected):
    manifest = SimpleNamespace(
        text_encoder="text_encoder",
        own_text_encoder=lambda folder: folder / "text_encoder",
        vae_sha256="",
        text_sha256="",
        data={},
    )
    assert Provenance.of_latents(manifest, open_path(latents), open_path(ldm)).text_encoder == expected


def test_a_text_encoder_is_found_from_the_ldm_folder_at_a_url(url):
    assert (
        Provenance("", "../latents/text_encoder", "", {}, "").text_encoder_in(url)
        == f"{url.parent}/latents/text_encoder"
    )
    assert Provenance("", "google/t5", "", {}, "").text_encoder_in(url) == "google/t5"
