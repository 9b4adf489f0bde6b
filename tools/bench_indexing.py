"""Measure the indexing of shards: entries a second of CPU time, which other processes disturb less than wall time.

    taskset -c 1 python tools/bench_indexing.py

Three numbers a round: making the indexes of shards of latents (4 kB and a .json an entry) and of videos (1 kB, .txt and
.json), and merging those of latents. Goal: 20,000 entries a second and core for the first two, on a warm disk.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ldm.arguments import CommandParser
from ldm.latents.entries import entry_key, pack_entry
from ldm.latents.index_files import latent_rows, write_latent_index
from odvae.index.building import INDEX, open_index
from odvae.index.merging import merge_indexes
from odvae.index.shard_rows import garbage_collected_by_shard
from odvae.index.video_rows import VideoIndexer
from odvae.running.errors import readable_errors
from odvae.running.seeds import numpy_generator
from odvae.shards.facts import ExamineLimits
from odvae.shards.facts_journal import shard_index_path
from odvae.shards.tars import shard_writer

PER_SHARD = 1000


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--entries", type=int, default=20_000, help="entries to index (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements (default: %(default)s)")
    options = parser.parse()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(bench_indexing(Path(folder), options.entries, options.rounds)))


def bench_indexing(folder: Path, entries: int, rounds: int) -> dict[str, list[int]]:
    """Entries/s of CPU time, of each round: of making the indexes of shards of latents and of videos from their data,
    and of merging those of latents."""
    found: dict[str, list[int]] = {"latents": [], "videos": [], "merged": []}
    latents, videos = (
        list(write_latent_shards(folder / "latents", entries)),
        write_video_shards(folder / "videos", entries),
    )
    for _ in range(rounds):
        begin = time.process_time()
        with garbage_collected_by_shard():
            for shard in latents:
                write_latent_index(shard_index_path(shard.parent, shard.name), shard, latent_rows(shard), "")
                gc.collect(1)
        found["latents"].append(round(entries / (time.process_time() - begin)))
        begin = time.process_time()
        merge_indexes(folder / INDEX, [shard_index_path(shard.parent, shard.name) for shard in latents])
        found["merged"].append(round(entries / (time.process_time() - begin)))
        shutil.rmtree(folder / "videos/index", ignore_errors=True)
        (folder / "videos" / INDEX).unlink(missing_ok=True)
        begin = time.process_time()
        open_index(folder / "videos", videos, VideoIndexer(ExamineLimits(workers=1, seconds=20.0, memory_gib=2.0)))
        found["videos"].append(round(entries / (time.process_time() - begin)))
    return found


def write_video_shards(folder: Path, entries: int) -> list[Path]:
    """Shards as `make_shards` writes them, but for the videos, which are random bytes that nobody decodes."""
    folder.mkdir(parents=True)
    rng = numpy_generator(0, "bench videos")
    facts: dict[str, object] = {
        "frames": 17,
        "fps": 8.0,
        "seconds": 2.125,
        "variable_rate": False,
        "height": 48,
        "width": 48,
    }
    shards = []
    for first in range(0, entries, PER_SHARD):
        shards.append(folder / f"{first // PER_SHARD:05d}.tar")
        with shard_writer(shards[-1]) as writer:
            for number in range(first, min(first + PER_SHARD, entries)):
                video, caption = rng.bytes(1000), "a red square moves"
                sha256 = hashlib.sha256(video).hexdigest()
                about: dict[str, object] = {"source": f"{number}.mp4", "sha256": sha256, "caption": caption}
                about |= {"label": None, "container": "mp4", **facts, "keyframes": [[0, 0], [12, 6144]]}
                members = {"mp4": video, "txt": caption.encode(), "json": json.dumps(about, indent=1).encode()}
                writer.write({"__key__": sha256[:16], **members})
    return shards


def write_latent_shards(folder: Path, entries: int) -> Iterator[Path]:
    folder.mkdir(parents=True)
    rng = numpy_generator(0, "bench")
    text, mask = torch.zeros(4, 16), torch.ones(4, dtype=torch.bool)
    for first in range(0, entries, PER_SHARD):
        path = folder / f"{first // PER_SHARD:05d}.tar"
        with shard_writer(path) as writer:
            for number in range(first, min(first + PER_SHARD, entries)):
                mean = torch.from_numpy(rng.standard_normal((4, 2, 8, 8), np.float32))
                about = {"caption": "a red square", "source": f"{number:016x}", "label": None, "flip": False}
                data = pack_entry(mean, mean.abs(), text, mask, torch.bfloat16)
                members = {"safetensors": data, "json": json.dumps(about).encode()}
                writer.write({"__key__": entry_key(f"{number:016x}", 0), **members})
        yield path


if __name__ == "__main__":
    with readable_errors():
        main()
