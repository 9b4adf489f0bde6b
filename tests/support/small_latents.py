"""Encoding of a few small videos for tests: settings, call, entries, class names of the videos."""

import json
import shutil
from pathlib import Path

from ldm.encode import encode_latents
from ldm.encoding.settings import EncodeSettings
from ldm.latents.latent_set import LatentSet, open_latents
from ldm.latents.manifest import load_manifest
from ldm.networks.settings import TextSettings
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.shards.tars import index_shards, list_shards, shard_writer

DATA = DataSettings(frames=5, height=32, width=32, held_out=0.3, workers=0)
TEXT = TextSettings(max_tokens=8, width=16, steps=3)
ENCODE = EncodeSettings(batch_size=3, clips_per_video=2)


def encode(folder, out, needs_text=False, **changes):
    settings = {"encode": ENCODE, "text": TEXT, "data": DATA, **changes}
    videos = VideoSet(folder / "shards", settings["data"], "?")
    arguments = (settings["encode"], settings["text"], settings["data"], videos)
    encode_latents(*arguments, folder / "vae", out, seed=0, needs_text=needs_text)


def encode_in_four_shards(run: Path, folder: Path, settings: EncodeSettings) -> None:
    """vae/, shards/ and latents/ in `folder`: those of a run, its videos in four shards, encoded again."""
    shutil.copytree(run / "vae", folder / "vae")
    (folder / "shards").mkdir()
    samples = index_shards(list_shards(run / "shards", "?"))
    for i in range(4):
        with shard_writer(folder / f"shards/{i:05d}.tar") as writer:
            for sample in samples[i::4]:
                writer.write({"__key__": sample.key, **sample.read_all()})
    encode(folder, folder / "latents", encode=settings)


def opened(folder: Path) -> LatentSet:
    """The entries of a latent folder, by its manifest."""
    return open_latents(folder, load_manifest(folder))


def entries_of(folder: Path):
    """(training, held-out) entries of the only bucket."""
    latents = opened(folder)
    (bucket,) = load_manifest(folder).buckets
    return latents.train[bucket], latents.held_out[bucket]


def relabel(shard, labels):
    """Give the shard's samples class names, in order (None: none)."""
    samples = index_shards([shard])
    contents = [{ext: sample.read(ext) for ext in sample.members} for sample in samples]
    with shard_writer(shard) as writer:
        for sample, members, label in zip(samples, contents, labels, strict=True):
            about = json.loads(members["json"]) | ({} if label is None else {"label": label})
            writer.write({"__key__": sample.key, **members, "json": json.dumps(about).encode()})
