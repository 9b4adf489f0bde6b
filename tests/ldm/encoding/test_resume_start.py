"""The start of a resumed encoding: which video shards are hashed, planned and compared."""

import json
import os
import shutil

import pytest
from small_latents import DATA, ENCODE, encode

from ldm.demo.videos import write_demo_videos
from ldm.encoding import plan, resume, source_hashes
from ldm.encoding.settings import BucketSettings
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.errors import InputError
from odvae.running.hashing import file_fingerprint
from odvae.shards.tars import index_shards, shard_writer

BUCKETS = (BucketSettings(frames=9, height=32, width=32), BucketSettings(frames=5, height=32, width=32))
TWO_BUCKETS = ENCODE.model_copy(update={"buckets": BUCKETS, "clips_per_video": 1})


@pytest.fixture(scope="module")
def packed(tmp_path_factory, vae):
    """Three shards, each with videos of 9 and of 6 frames, and a VAE."""
    folder = tmp_path_factory.mktemp("packed")
    write_demo_videos(folder / "long", 9, 9, 32, 8, seed=3, progress=False)
    write_demo_videos(folder / "short", 9, 6, 32, 8, seed=4, progress=False)
    for name in ("long", "short"):
        pack_folder(folder / name, folder / f"packed_{name}", PackingSettings(samples_per_shard=9, workers=0))
    long, short = (index_shards([folder / f"packed_{name}/00000.tar"]) for name in ("long", "short"))
    (folder / "shards").mkdir()
    for i in range(3):
        with shard_writer(folder / f"shards/{i:05d}.tar") as writer:
            for sample in (*long[3 * i : 3 * i + 3], *short[3 * i : 3 * i + 3]):
                writer.write({"__key__": sample.key, **{name: sample.read(name) for name in sample.members}})
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def folder(packed, tmp_path):
    shutil.copytree(packed, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def hashed(monkeypatch):
    """Names of the video shards that are hashed."""
    found = []
    for module in (resume, source_hashes):
        monkeypatch.setattr(module, "fingerprint", lambda path: (found.append(path.name), file_fingerprint(path))[1])
    return found


def encode_again(folder):
    encode(folder, folder / "latents", encode=TWO_BUCKETS, data=DATA.model_copy(update={"frames": 9}))


def test_a_video_shard_with_several_buckets_is_hashed_once_in_its_life(folder, hashed):
    encode_again(folder)
    assert hashed == ["00000.tar", "00001.tar", "00002.tar"]
    assert len(list((folder / "latents").glob("*.tar"))) == 6
    encode_again(folder)
    (folder / "latents/5x32x32-00001.tar").unlink()  # encoded again, with the hash of the other bucket's record
    encode_again(folder)
    assert len(hashed) == 3
    assert len(list((folder / "latents").glob("*.tar"))) == 6


def test_only_a_shard_whose_time_changed_is_hashed_again_and_its_records_then_know_the_new_time(folder, hashed):
    encode_again(folder)
    hashed.clear()
    os.utime(folder / "shards/00001.tar", ns=(1, 1))
    encode_again(folder)
    encode_again(folder)
    assert hashed == ["00001.tar"]


def test_a_changed_shard_is_refused_also_with_the_size_it_had(folder, hashed):
    encode_again(folder)
    hashed.clear()
    shard = folder / "shards/00002.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"00002\.tar was changed after its latents .*00002\.tar were encoded"):
        resume.EncodedFolder(folder / "latents").check_same_videos(sources_of(folder), ["00002.tar"])
    assert hashed == ["00002.tar"]


def sources_of(folder):
    samples = index_shards(sorted((folder / "shards").glob("*.tar")))
    return resume.Sources(samples, TWO_BUCKETS, DATA.model_copy(update={"frames": 9}), seed=0)


def test_a_complete_shard_is_not_planned_again(folder, monkeypatch):
    encode_again(folder)
    planned = []
    real = plan.plan_source
    monkeypatch.setattr(
        resume, "plan_source", lambda source, *rest: (planned.append(source.name), real(source, *rest))[1]
    )
    manifest = (folder / "latents/manifest.json").read_bytes()
    (folder / "latents/manifest.json").unlink()
    encode_again(folder)
    assert planned == []
    assert (folder / "latents/manifest.json").read_bytes() == manifest
    (folder / "latents/shards/9x32x32-00002.json").unlink()
    encode_again(folder)
    assert set(planned) == {"00002.tar"}


def test_records_of_version_0_2_are_resumed(folder, hashed):
    encode_again(folder)
    before = json.loads((folder / "latents/manifest.json").read_text())
    (folder / "latents/manifest.json").unlink()
    hashed.clear()
    for path in (folder / "latents/shards").glob("*.json"):
        record = json.loads(path.read_text())
        for name in ("source_bytes", "source_mtime_ns", "of_source", "too_short", "videos", "unmirrored"):
            del record[name]
        path.write_text(json.dumps(record))
    encode_again(folder)
    assert hashed == ["00000.tar", "00001.tar", "00002.tar"]
    assert json.loads((folder / "latents/manifest.json").read_text()) == before
