"""Groups of videos are on one side of the split, from packing through the index to the latents."""

import json
import shutil

import pytest
from small_latents import encode

from ldm.encoding.settings import EncodeSettings
from ldm.latents.index_files import latent_rows
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import load_manifest
from odvae.clips.remote_clips import why_not
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet, is_held_out
from odvae.index.folder_index import FolderIndex
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.errors import InputError
from odvae.shards.facts_journal import shard_index_path
from odvae.shards.samples import group_in
from odvae.shards.tars import index_shards, list_shards

DATA = DataSettings(frames=5, height=16, width=16, held_out=0.5, workers=0)
NAMES = [f"class{i % 2}/v_Class{i % 2}_g{i % 6:02d}_c{i:02d}.mp4" for i in range(16)]


@pytest.fixture(scope="module")
def packed(ldm_run, tmp_path_factory):
    """vae/ of a run, and shards/ of its videos, named as UCF101's are, in six groups."""
    folder = tmp_path_factory.mktemp("groups")
    shutil.copytree(ldm_run / "vae", folder / "vae")
    samples = index_shards(list_shards(ldm_run / "shards", "?"))
    for name, sample in zip(NAMES, samples, strict=True):
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "videos" / name).write_bytes(sample.read("mp4"))
    pack_folder(folder / "videos", folder / "shards", PackingSettings(groups=r"v_\w+_g\d+", labels="folders"))
    return folder


def test_the_videos_of_a_group_are_in_one_split(packed):
    videos = VideoSet(packed / "shards", DATA, "?")
    groups = [{one.group for one in split} for split in (videos.train, videos.held_out)]
    assert groups[0] & groups[1] == set()
    assert sorted(groups[0] | groups[1]) == sorted(f"v_Class{i % 2}_g{i:02d}" for i in range(6))
    assert min(map(len, groups)) > 0
    for sample in videos.samples:
        about = sample.read_json()
        assert sample.group == group_in(about)
        streamed = {"__key__": sample.key, "__url__": "x.tar", "mp4": b"", "json": json.dumps(about).encode()}
        assert (why_not(streamed, DATA) == "held out from training") == (sample.group in groups[1])


def test_latents_have_the_groups_and_the_split_of_their_videos(packed):
    videos = VideoSet(packed / "shards", DATA, "?")
    encode(packed, packed / "latents", data=DATA, encode=EncodeSettings(batch_size=4))
    manifest = load_manifest(packed / "latents")
    latents, (bucket,) = open_latents(packed / "latents", manifest), manifest.buckets
    for entries, split in ((latents.train[bucket], videos.train), (latents.held_out[bucket], videos.held_out)):
        assert sorted(entry.read_json()["source"] for entry in entries) == sorted(one.key for one in split)
        assert {entry.group for entry in entries} == {one.group for one in split}
    for record in manifest.shards:
        written = FolderIndex(shard_index_path(packed / "latents", record.name), packed / "latents")
        assert [written.row(i) for i in range(len(written))] == latent_rows(packed / "latents" / record.name)


def test_a_video_without_a_group_is_split_by_its_key(tmp_path, packed):
    pack_folder(packed / "videos", tmp_path / "out", PackingSettings(groups="v_Class0_g00"))
    videos = VideoSet(tmp_path / "out", DATA, "?")
    for split, held_out in ((videos.train, False), (videos.held_out, True)):
        for sample in split:
            assert is_held_out(sample.key, sample.group, 0.5) == held_out
            assert sample.group in ("", "v_Class0_g00")


def test_expressions_that_are_none_or_find_nothing_are_refused(tmp_path, packed):
    with pytest.raises(ValueError, match="is no regular expression"):
        PackingSettings(groups="(")
    with pytest.raises(InputError, match=r"groups=_h\\d: the expression is found in none of the 16 paths"):
        pack_folder(packed / "videos", tmp_path / "out", PackingSettings(groups=r"_h\d"))
    assert not (tmp_path / "out").exists()
