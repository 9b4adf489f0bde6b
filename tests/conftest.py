"""Fixtures that several test files share: small networks, clips, and the reference folder if it is available."""

import json
import os
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from small import REPOSITORY, SMALL
from small_ldm import DATA

from ldm.demo.videos import write_demo_videos
from ldm.encode import encode_latents
from ldm.encoding.settings import EncodeSettings
from ldm.networks.settings import TextSettings
from odvae import ODVAE
from odvae.clips.video_set import VideoSet
from odvae.packing.packing import pack_folder
from odvae.shards.tars import index_shards, shard_writer

torch.set_num_threads(1)  # networks as small as these are slower on two


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden values and real clips; tests that use it skip where it is not there."""
    folder = Path(os.environ.get("ODVAE_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"needs the reference folder, which is not at {folder} (set ODVAE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def image_vae() -> AutoencoderKL:
    """A small Stable-Diffusion-like image VAE in which every tensor matters (no gain is 1, no bias 0)."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **SMALL
    ).eval()
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vae


@pytest.fixture(scope="session")
def vae(image_vae: AutoencoderKL) -> ODVAE:
    """A small OD-VAE whose temporal kernels are all at work: not a fresh tail initialization."""
    torch.manual_seed(1)
    vae = ODVAE.from_image_vae(image_vae)
    for parameter in vae.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return vae.eval()


@pytest.fixture(scope="session")
def ldm_run(tmp_path_factory, vae) -> Path:
    """A run folder with vae/ and latents/ of 16 rendered videos, labeled by color."""
    folder = tmp_path_factory.mktemp("ldm")
    write_demo_videos(folder / "videos", 16, 9, 32, 8, seed=3, progress=False)
    pack_folder(folder / "videos", folder / "packed")
    (folder / "shards").mkdir()
    samples = index_shards([folder / "packed/00000.tar"])
    with shard_writer(folder / "shards/00000.tar") as writer:
        for sample in samples:
            members = {extension: sample.read(extension) for extension in sample.members}
            about = json.loads(members["json"]) | {"label": sample.read_text().split()[2]}
            writer.write({"__key__": sample.key, **members, "json": json.dumps(about).encode()})
    vae.save_pretrained(folder / "vae")
    videos = VideoSet(folder / "shards", DATA, "?")
    text = TextSettings(max_tokens=8, width=16, steps=3)
    encode_latents(EncodeSettings(), text, DATA, videos, folder / "vae", folder / "latents", seed=0)
    return folder
