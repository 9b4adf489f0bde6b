"""A run folder whose videos are to be encoded, its undisturbed latents, and whether other latents are the same."""

import json
from pathlib import Path

import yaml

from ldm.demo.videos import write_demo_videos
from ldm.encode import encode_latents
from ldm.encoding.settings import EncodeSettings
from ldm.experiment import Experiment
from odvae.clips.video_set import VideoSet
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.settings import load_settings

SECTIONS = {
    "data": {"frames": 5, "height": 32, "width": 32, "held_out": 0.3, "workers": 1},
    "text": {"max_tokens": 8, "width": 16, "steps": 3},
    "encode": {
        "batch_size": 3,
        "clips_per_video": 2,
        "flip": True,
        "buckets": [{"frames": 5, "height": 32, "width": 32}, {"frames": 1, "height": 32, "width": 32}],
    },
}

# What says when and by which processes the latents were made. (`code` in the manifest does too.)
_OF_A_RUN = {"speed.json", "stage.json"}


def prepare_run(folder: Path, vae) -> None:
    """Seven shards, a VAE, a config.yaml, and in `undisturbed/` the latents of an undisturbed encoding."""
    write_demo_videos(folder / "videos", 20, 9, 32, 8, seed=3, progress=False)
    pack_folder(folder / "videos", folder / "shards", PackingSettings(samples_per_shard=3, workers=0))
    vae.save_pretrained(folder / "vae")
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": str(folder), **SECTIONS}))
    encode_in_process(folder, folder / "undisturbed")


def encode_in_process(folder: Path, latents: Path, *overrides: str, vae: Path | None = None) -> None:
    """Encode the videos of `folder` into `latents`, with overrides as on the command line."""
    experiment = load_settings(Experiment, folder / "config.yaml", overrides)
    assert isinstance(experiment.encode, EncodeSettings)
    videos = VideoSet(folder / "shards", experiment.data, "?")
    arguments = (experiment.encode, experiment.text, experiment.data, videos)
    encode_latents(*arguments, vae or folder / "vae", latents, seed=experiment.seed)


def comparable(path: Path) -> bytes | dict:
    """A file's bytes; of the manifest what does not say where and by which commit it was made."""
    if path.name != "manifest.json":
        return path.read_bytes()
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "code"}


def assert_same_latents(latents: Path, undisturbed: Path, shards: int = 7) -> None:
    """All files are the same, byte for byte, but for those that say how they were made; nothing is half-written."""
    names = {str(path.relative_to(undisturbed)) for path in undisturbed.rglob("*.*")} - _OF_A_RUN
    names = {name for name in names if not name.endswith(".lock")}
    assert len([name for name in names if name.endswith(".tar")]) == shards
    for name in names:
        assert comparable(latents / name) == comparable(undisturbed / name), name
    assert list(latents.rglob(".*.partial")) == []
