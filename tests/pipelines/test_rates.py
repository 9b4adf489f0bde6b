"""Other compression rates through the pipelines: VAEs grown from those of a 4x8x8 run, their latents, their videos."""

import json
import shutil
from pathlib import Path

import pytest
from scripts import fail, succeed
from stages import command

from odvae.video.video_io import examine

pytestmark = pytest.mark.slow

# By rate: settings, and the shape (c, k, h, w) of the latents of 9x32x32 clips.
RATES = {
    "8x8x8": (
        ("vae.model.temporal_compression_ratio=8", "vae.init_from={run}/vae"),
        [4, 2, 4, 4],
    ),
    "4x16x16": (
        (
            "vae.model.spatial_compression_ratio=16",
            "vae.model.block_out_channels=[8,8,8,16,16]",
            "vae.init_image_vae={run}/vae/image_vae",
        ),
        [4, 3, 2, 2],
    ),
}


@pytest.mark.parametrize("rate", RATES)
def test_a_vae_grown_to_a_higher_rate_is_trained_and_its_latents_generate_videos(run, tmp_path, rate):
    settings, shape = RATES[rate]
    folder = tmp_path / rate
    shutil.copytree(run / "shards", folder / "shards")
    overrides = [*(setting.format(run=run) for setting in settings), "vae.image_phase=null"]
    succeed(*command("train_vae", folder, *overrides))
    shutil.copytree(run / "latents", folder / "latents")
    message = fail(*command("train_ldm", folder, *overrides))
    assert "was encoded by a VAE with other settings: its manifest's vae_config." in message
    shutil.rmtree(folder / "latents")
    for stage in ("encode_latents", "train_ldm"):
        succeed(*command(stage, folder, *overrides))
    assert list(json.loads((folder / "latents/manifest.json").read_text())["buckets"].values()) == [shape]
    printed = succeed(*command("sample_video", folder, *overrides, "--prompt", "a large red circle moves left"))
    video = Path(printed.split()[0])
    assert examine(video.read_bytes(), video.name).frames == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("vae.model.temporal_compression_ratio=8", "data.frames=13"), "data.frames must be 8k+1"),
        (("vae.model.spatial_compression_ratio=16",), "needs 4 levels that halve and one more"),
        (
            ("vae.model.temporal_compression_ratio=2", "vae.image_phase=null", "vae.init_from={run}/vae"),
            "temporal_compression_ratio=2 cannot begin from a VAE that compresses by 4",
        ),
        (
            (
                "vae.model.block_out_channels=[8,8,16]",
                "vae.model.spatial_compression_ratio=4",
                "vae.image_phase=null",
                "vae.init_image_vae={run}/vae/image_vae",
            ),
            "spatial_compression_ratio=4 cannot begin from a VAE that compresses by 8",
        ),
        (
            ("vae.model.latent_channels=8", "vae.image_phase=null", "vae.init_from={run}/vae"),
            "vae.model.latent_channels=8, but the OD-VAE",
        ),
        (
            (
                "vae.model.block_out_channels=[8,16,8,16,16]",
                "vae.model.spatial_compression_ratio=16",
                "vae.image_phase=null",
                "vae.init_image_vae={run}/vae/image_vae",
            ),
            "which at 4x16x16 has new first levels: [8, 8, 8, 16, 16]",
        ),
    ],
)
def test_a_rate_that_cannot_be_is_named_before_any_step(run, tmp_path, settings, message):
    shutil.copytree(run / "shards", tmp_path / "new/shards")
    said = fail(*command("train_vae", tmp_path / "new", *(setting.format(run=run) for setting in settings)))
    assert message in said
    assert not (tmp_path / "new/vae/metrics.jsonl").exists()
