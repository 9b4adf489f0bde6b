"""A full disk at each place where stages write: named, nothing half-written, and the same call goes on."""

import shutil

import pytest
import torch
from full_disk import small_disk, stopped_by_the_full_disk
from safetensors.torch import load_file
from small_latents import encode
from small_ldm import WEIGHTS, settings, train
from url_folders import new_url

from ldm.train import train_ldm
from odvae.index.building import open_index
from odvae.index.video_rows import VideoIndexer
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.shards.facts import ExamineLimits
from odvae.shards.tars import list_shards
from odvae.storage.files import local_copy
from odvae.storage.trees import list_tree


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "disk/user"))
    with small_disk(tmp_path / "disk", 16) as found:
        yield found


def files(folder, pattern="*"):
    return {path.name: path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


def test_packing(ldm_run, disk, tmp_path):
    chosen = PackingSettings(workers=0, samples_per_shard=4)
    pack_folder(ldm_run / "videos", tmp_path / "out", chosen)
    said = stopped_by_the_full_disk(disk, lambda: pack_folder(ldm_run / "videos", disk.path / "out", chosen))
    assert any("0000" in message and ".tar: No space left" in message for message in said)
    assert files(disk.path / "out", "*.tar") == files(tmp_path / "out", "*.tar")


def test_the_index_of_shards(ldm_run, disk, tmp_path):
    pack_folder(ldm_run / "videos", tmp_path / "packed", PackingSettings(workers=0, samples_per_shard=2))
    for folder in (tmp_path / "calm", disk.path / "shards"):
        folder.mkdir()
        for shard in (tmp_path / "packed").glob("*.tar"):
            shutil.copy2(shard, folder)

    def index(folder):
        return open_index(folder, list_shards(folder, "?"), VideoIndexer(ExamineLimits(1, 20.0, 2.0)))

    index(tmp_path / "calm")
    said = stopped_by_the_full_disk(disk, lambda: index(disk.path / "shards"), growth=1)
    assert any("00000.tar.arrow: No space left" in message for message in said)
    assert any("/index.arrow: No space left" in message for message in said)
    assert files(disk.path / "shards/index") == files(tmp_path / "calm/index")
    assert files(disk.path / "shards", "*.arrow") == files(tmp_path / "calm", "*.arrow")


@pytest.mark.slow
def test_encoding(ldm_run, disk, tmp_path):
    encode(ldm_run, tmp_path / "latents")
    said = stopped_by_the_full_disk(disk, lambda: encode(ldm_run, disk.path / "latents"), growth=2)
    assert any("text_encoder" in message for message in said)
    assert any("00000.tar: No space left on device" in message for message in said)
    for pattern in ("*.tar", "*.arrow", "*.safetensors"):
        assert files(disk.path / "latents", pattern) == files(tmp_path / "latents", pattern)


CHOSEN = settings(steps=2, optimizer="adamw", optimization={"checkpoint_every": 1})


@pytest.mark.slow
def test_training(ldm_run, disk, tmp_path):
    expected = train(ldm_run, tmp_path / "ldm", CHOSEN)
    said = stopped_by_the_full_disk(disk, lambda: train(ldm_run, disk.path / "ldm", CHOSEN), growth=3)
    assert any("checkpoints" in message for message in said)
    check_same(load_file(disk.path / "ldm" / WEIGHTS), expected)


@pytest.mark.slow
def test_the_working_copy_of_a_run_at_a_url(ldm_run, disk, tmp_path, monkeypatch):
    monkeypatch.setenv("ODVAE_WORK", str(disk.path / "work"))
    expected = train(ldm_run, tmp_path / "ldm", CHOSEN)
    url = new_url()
    said = stopped_by_the_full_disk(
        disk, lambda: train_ldm(CHOSEN, ldm_run / "vae", ldm_run / "latents", url, 0), growth=3
    )
    assert said
    names = list_tree(url)
    assert not [name for name in names if name.endswith(".partial")]
    check_same(load_file(local_copy(url / WEIGHTS)), expected)


def check_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
