"""Resuming of an encoding that was killed, on another number of processes: the same bytes."""

import json
from pathlib import Path

import pytest
import yaml
from scripts import Script, on_ranks

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory, vae):
    """A run folder with seven shards and a VAE, and the latents of an undisturbed encoding on one process."""
    folder = tmp_path_factory.mktemp("resume")
    write_demo_videos(folder / "videos", 20, 9, 32, 8, seed=3, progress=False)
    pack_folder(folder / "videos", folder / "shards", PackingSettings(samples_per_shard=3, workers=0))
    vae.save_pretrained(folder / "vae")
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": str(folder), **SECTIONS}))
    experiment = load_settings(Experiment, folder / "config.yaml")
    assert isinstance(experiment.encode, EncodeSettings)
    videos = VideoSet(folder / "shards", experiment.data, "?")
    encode_latents(
        experiment.encode, experiment.text, experiment.data, videos, folder / "vae", folder / "undisturbed", seed=0
    )
    return folder


def comparable(path: Path) -> bytes | dict:
    """A file's bytes; of the manifest what does not say where and by which commit it was made."""
    if path.name != "manifest.json":
        return path.read_bytes()
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "code"}


@pytest.mark.slow
def test_an_encoding_killed_on_one_process_resumes_on_two_with_the_same_bytes(runs):
    words = ["pipelines/encode_latents.py", "--config", str(runs / "config.yaml")]
    script = Script(words)
    script.until(lambda: len(list((runs / "latents/shards").glob("*.json"))) >= 2)
    script.kill()
    assert not (runs / "latents/manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (runs / "latents/shards").glob("*.json")}
    assert 2 <= len(before) < 7
    on_ranks(2, *words)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    names = {str(path.relative_to(runs / "undisturbed")) for path in (runs / "undisturbed").rglob("*.*")}
    names -= {".lock", ".hashes.json", "speed.json", "stage.json"}
    assert len([name for name in names if name.endswith(".tar")]) == 7
    for name in names:
        assert comparable(runs / "latents" / name) == comparable(runs / "undisturbed" / name), name
    assert list((runs / "latents").rglob(".*.partial")) == []
