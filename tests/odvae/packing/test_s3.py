"""Packing from one bucket into another, of a real S3 server, with worker processes."""

import fsspec
import pytest
from s3_servers import moto_in_a_process, needs_moto, upload_folder, use_s3

from ldm.demo.videos import write_demo_videos
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings

pytestmark = [pytest.mark.slow, needs_moto]
SETTINGS = PackingSettings(workers=1, samples_per_shard=3)


def test_a_bucket_of_videos_becomes_the_shards_that_a_folder_does(tmp_path, monkeypatch):
    monkeypatch.setenv("ODVAE_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("ODVAE_CACHE", str(tmp_path / "cache"))
    write_demo_videos(tmp_path / "videos", 8, 9, 32, 8, seed=0, progress=False)
    here = pack_folder(tmp_path / "videos", tmp_path / "shards", SETTINGS)
    with moto_in_a_process() as url:
        use_s3(monkeypatch, url)
        upload_folder(tmp_path / "videos", "videos")
        fsspec.filesystem("s3").mkdir("runs")
        there = pack_folder("s3://videos", "s3://runs/x/shards", SETTINGS)
        assert (there.videos, there.shards) == (here.videos, here.shards) == (8, 3)
        for shard in sorted((tmp_path / "shards").glob("*.tar")):
            assert fsspec.filesystem("s3").cat(f"runs/x/shards/{shard.name}") == shard.read_bytes()
        data = DataSettings(frames=9, height=32, width=32, held_out=0.5, workers=0)
        found = VideoSet("s3://runs/x/shards", data, "?")
        local = VideoSet(tmp_path / "shards", data, "?")
        assert [one.read_all() for one in found.samples] == [one.read_all() for one in local.samples]
