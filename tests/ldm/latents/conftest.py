"""Encoded videos that the tests of latents share."""

import pytest
from small_latents import encode

from ldm.demo.videos import write_demo_videos
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, vae):
    """A folder with shards/, vae/ and latents/ of twelve small videos."""
    folder = tmp_path_factory.mktemp("encoded")
    write_demo_videos(folder / "videos", 12, 9, 32, 8, seed=3, progress=False)
    pack_folder(folder / "videos", folder / "shards", PackingSettings(samples_per_shard=5))
    vae.save_pretrained(folder / "vae")
    encode(folder, folder / "latents")
    return folder
