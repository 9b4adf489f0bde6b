"""Shards that the tests of clips stream."""

import pytest

from ldm.demo.videos import write_demo_videos
from odvae.packing.packing import PackingSettings, pack_folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    write_demo_videos(folder / "videos", 12, 9, 32, 8, seed=3, progress=False)
    pack_folder(folder / "videos", folder / "shards", PackingSettings(samples_per_shard=5, workers=0))
    return folder / "shards"
