"""The cards of folders of shards and latents: `datasets` takes the shards, and nothing else, for the data."""

import json

import pytest
import yaml
from small_latents import ENCODE, encode

from ldm.latents.manifest import load_manifest
from odvae.packing.packing import pack_folder
from odvae.shards.dataset_card import CARD, dataset_card


def head_of(card: str) -> dict:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


@pytest.fixture(scope="module")
def packed(ldm_run, tmp_path_factory):
    """The videos of the run, packed again."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack_folder(ldm_run / "videos", out)
    return out


def test_a_folder_of_shards_says_what_is_in_it(packed):
    card = (packed / CARD).read_text()
    head = head_of(card)
    assert head["configs"] == [{"config_name": "default", "data_files": "*.tar"}]
    assert "| videos | 16 (144 frames, " in card
    assert "make_shards.py videos shards`" in card  # the names alone, not where they are on this machine
    assert str(packed.parent) not in card


def test_a_folder_of_latents_says_what_is_in_it(ldm_run):
    card, manifest = (ldm_run / "latents" / CARD).read_text(), load_manifest(ldm_run / "latents")
    assert head_of(card)["configs"] == [{"config_name": "default", "data_files": "*.tar"}]
    assert f"| clips | {manifest.train_entries} to train, {manifest.held_out_entries} held out, in 1 shards |" in card
    assert manifest.vae_sha256[:16] in card


def test_text_in_shards_of_its_own_is_a_configuration_of_its_own(ldm_run, tmp_path):
    encode(ldm_run, tmp_path / "latents", encode=ENCODE.model_copy(update={"text": "separate"}))
    configs = head_of((tmp_path / "latents" / CARD).read_text())["configs"]
    assert {one["config_name"]: one["data_files"] for one in configs} == {"default": "*.tar", "text": "text/*.tar"}


def test_a_name_does_not_break_the_table():
    card = dataset_card("x", "About.", {"classes": "a|b\nc", "none": ""}, "1\n", {"default": "*.tar"}, {}, [])
    assert "| classes | a\\|b c |\n" in card
    assert "none" not in card


def test_datasets_reads_both(ldm_run, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    videos = list(datasets.load_dataset(str(packed), split="train", streaming=True, cache_dir=tmp_path))
    assert len(videos) == 16
    assert videos[0]["mp4"]["bytes"][4:8] == b"ftyp"
    assert videos[0]["txt"] == videos[0]["json"]["caption"] != ""
    entries = list(datasets.load_dataset(str(ldm_run / "latents"), split="train", streaming=True, cache_dir=tmp_path))
    manifest = load_manifest(ldm_run / "latents")
    assert len(entries) == manifest.train_entries + manifest.held_out_entries
    assert json.loads(entries[0]["safetensors"][8 : 8 + int.from_bytes(entries[0]["safetensors"][:8], "little")])
