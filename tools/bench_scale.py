"""What a rank spends on the index of a large folder of latents: time to start, memory, a batch, an epoch's order.

    python tools/bench_scale.py [--entries 10000000] [--ranks 8] [--work FOLDER]

A folder is made as encoding would leave it, but its shards have their sizes only, no data (sparse files), so that an
index of 10 M entries takes 2 GB of disk. Measured, in processes of their own:

1. Start of a rank: manifest, sizes of the shards, index, the two splits, the first batch's entries. Goal: 2 s, 200 MB.
   Memory is what the start adds to a process that has imported everything. `own` pages are its alone; those of the
   index are the page cache's, mapped. `pss` counts both, and a page of several processes by its share.
2. That of several ranks at once, together, over that of one (`pss`), and again after 300 batches. Goal: 1.5.
3. A batch of 16: choosing and finding its entries, all but reading them. Goal: 2 ms.
4. The order of an epoch: its first samples, and what it stores.
5. Mixing of `shuffle: blocks`, with 1 and 8 parts, against `exact`: of a global batch of 256, how many shards it is
   from and the largest share of one; the distance of neighbors in the order, over that of independent samples.

With `--also N`, a folder of N entries is measured as well, and 100 M by a line through both.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic.type_adapter  # noqa: F401 - as a command does, when it reads its settings
import torch

from ldm.arguments import CommandParser
from ldm.latents.batches import IndexedBatches
from ldm.latents.entries import entry_key, pack_text
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import EMPTY_TEXT, Manifest, ShardRecord, check_latents, load_manifest
from odvae.clips.permutation import shuffled_index
from odvae.clips.sample_order import SampleOrder
from odvae.clips.samplers import BatchPlan, BucketSampler
from odvae.index.building import INDEX
from odvae.index.rows import CHUNK, SCHEMA, Header, IndexedShard
from odvae.running.errors import readable_errors
from odvae.running.files import atomic_file, write_json
from odvae.running.hashing import file_fingerprint
from odvae.running.seeds import numpy_generator
from odvae.training.optimization import sample_order
from odvae.training.settings import OptimizationSettings

# An entry of 33x256x256 clips: moments in bf16 and CLIP's 77 tokens of width 768, and its .json.
ENTRY, ABOUT, PER_SHARD = 270_336, 200, 1000
BUCKETS = {"33x256x256": (4, 9, 32, 32), "1x256x256": (4, 1, 32, 32)}
HELD_OUT, BATCH = 0.01, 16
VAE_SHA256 = "f" * 64


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000, help="entries of the folder (default: %(default)s)")
    parser.add_argument("--also", type=int, default=0, help="measure a folder of so many entries as well")
    parser.add_argument("--ranks", type=int, default=8, help="processes that start at once (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder for the files, which are kept (default: a temporary one)")
    options = parser.parse()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        results: dict[str, Any] = {}
        for entries in filter(None, (options.also, options.entries)):
            folder = work / f"latents_{entries}"
            if not (folder / "manifest.json").is_file():
                make_folder(folder, entries)
            results[f"{entries}"] = measure(folder, entries, options.ranks)
        if options.also:
            results["100000000 by arithmetic"] = extrapolate(results, options.also, options.entries)
        results["mixing"] = bench_mixing(options.entries)
    print(json.dumps(results, indent=1))


def make_folder(folder: Path, entries: int) -> None:
    """A folder of latents without data: sparse shards, manifest, `index.arrow`."""
    (folder / "vae").mkdir(parents=True)
    write_json(folder / "vae/config.json", {})
    (folder / EMPTY_TEXT).write_bytes(pack_text(torch.zeros(2, 4), torch.ones(2, dtype=torch.bool), torch.bfloat16))
    names, size, records = list(BUCKETS), PER_SHARD * (ENTRY + 4096), []
    for number in range(-(-entries // PER_SHARD)):
        bucket = names[number % 10 == 9]
        rows = min(PER_SHARD, entries - number * PER_SHARD)
        sha256 = f"{number:064x}"
        records.append(ShardRecord(f"{bucket}-{number:05d}.tar", sha256, size, rows, bucket, "?", "0" * 64, PER_SHARD))
        with open(folder / records[-1].name, "wb") as file:
            file.truncate(size)
    held_out = write_index(folder / INDEX, records, entries)
    manifest_of(records, entries, held_out, file_fingerprint(folder / EMPTY_TEXT)).save(folder)


def write_index(path: Path, records: list[ShardRecord], entries: int) -> int:
    """An index as merging writes it, from random columns. Returns the number of held-out entries."""
    shards = [IndexedShard(one.name, one.bytes, 0, one.entries, sha256=one.sha256) for one in records]
    header = Header(shards, ["json", "safetensors"], [], "latents", [])
    held_out, rng = 0, np.random.default_rng(0)
    with atomic_file(path) as file, pa.ipc.new_file(file, header.schema()) as writer:
        for first in range(0, entries, CHUNK):
            rows = np.arange(first, min(first + CHUNK, entries))
            split = rng.random(len(rows))
            held_out += int((split < HELD_OUT).sum())
            writer.write_batch(random_batch(rows, split, rng))
    return held_out


def random_batch(rows: np.ndarray, split: np.ndarray, rng: np.random.Generator) -> pa.RecordBatch:
    count, place = len(rows), rows % PER_SHARD * (ENTRY + 4096)
    keys = [entry_key(f"{key:016x}", 0).encode() for key in rng.integers(0, 2**63, count).tolist()]
    members = pa.StructArray.from_arrays(
        [
            pa.array(np.tile(np.array([0, 1], np.int16), count)),
            pa.array(np.stack([place + 512, place + 2048], 1).reshape(-1)),
            pa.array(np.tile(np.array([ABOUT, ENTRY], np.int64), count)),
            pa.array(rng.integers(0, 2**64, 2 * count, dtype=np.uint64)),
        ],
        fields=list(SCHEMA.field("members").type.value_type),
    )
    of_members = pa.LargeListArray.from_arrays(pa.array(np.arange(0, 2 * count + 1, 2)), members)
    columns: dict[str, Any] = {"key": keys, "shard": rows // PER_SHARD, "members": of_members, "split": split}
    columns |= {"captions": np.ones(count, np.int32), "label": np.full(count, -1)}
    for name, kind in ((field.name, field.type) for field in SCHEMA):
        if name not in columns:
            empty = [] if pa.types.is_large_list(kind) else b"" if pa.types.is_large_binary(kind) else 0
            columns[name] = [empty] * count
    arrays = [
        value if isinstance(value, pa.Array) else pa.array(value, SCHEMA.field(name).type)
        for name, value in ((name, columns[name]) for name in SCHEMA.names)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def manifest_of(records: list[ShardRecord], entries: int, held_out: int, empty_text: str) -> Manifest:
    return Manifest(
        vae_sha256=VAE_SHA256, vae_config={}, vae_folder="vae", text_encoder="hub/name", text_sha256="0" * 64,
        text_width=768, text_tokens=77, empty_text_sha256=empty_text, data={}, resize="cover", clips_per_video=1,
        flip=False, posterior="moments", dtype="bf16", held_out=HELD_OUT, buckets=BUCKETS,
        train_entries=entries - held_out, held_out_entries=held_out, captioned_entries=entries, captioned_share=1.0,
        captioned_train_entries=entries - held_out, captions=entries, classes=[], entries_by_class={},
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4, failed={}, shards=records, code={},
    )  # fmt: skip


def measure(folder: Path, entries: int, ranks: int) -> dict[str, Any]:
    """One rank, then several at once, each in a process of its own."""
    start_ranks(folder, 1)  # whose reading fills the page cache
    (alone,) = start_ranks(folder, 1)
    together = start_ranks(folder, ranks)
    totals = {name: sum(one[name] for one in together) for name in ("pss_mb", "later_pss_mb")}
    return {
        "index_bytes_an_entry": round((folder / INDEX).stat().st_size / entries, 1),
        "one_rank": alone,
        f"{ranks}_ranks": {
            "slowest_start_seconds": max(one["start_seconds"] for one in together),
            "largest_own_mb": max(one["own_mb"] for one in together),
        }
        | {f"{name}_together": round(total, 1) for name, total in totals.items()}
        | {f"{name}_over_one": round(total / alone[name], 2) for name, total in totals.items()},
    }


def start_ranks(folder: Path, ranks: int) -> list[dict[str, float]]:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(ranks), context.Queue()
    processes = [context.Process(target=run_rank, args=(folder, barrier, results)) for _ in range(ranks)]
    for process in processes:
        process.start()
    return [results.get(timeout=120) for _ in processes]


def run_rank(folder: Path, barrier: Any, results: Any) -> None:
    """Start as training does; then batches. All ranks are alive while memory is measured."""
    barrier.wait()
    before, begin = memory(), time.perf_counter()
    manifest = load_manifest(folder)
    check_latents(folder, manifest, VAE_SHA256, folder / "vae")
    latents = open_latents(folder, manifest)
    buckets = [entries for entries in latents.train.values() if len(entries)]
    sampler = iter(BucketSampler([len(one) for one in buckets], 0, BatchPlan(BATCH)))
    drawn = IndexedBatches(buckets, [], 0, SampleOrder())
    for draw in next(sampler):
        drawn.find(draw, attempt=0)
    start = time.perf_counter() - begin
    barrier.wait()
    after = memory()
    barrier.wait()
    batches = []
    for _ in range(300):
        begin = time.perf_counter()
        draws = next(sampler)
        for draw in draws:
            drawn.find(draw, attempt=0)
        batches.append(time.perf_counter() - begin)
    barrier.wait()
    later = memory()
    barrier.wait()
    count = len(buckets[0])
    begin = time.perf_counter()
    for i in range(1000):
        shuffled_index(count + i, count, 0)  # the second epoch's
    results.put(
        {
            "start_seconds": round(start, 3),
            "own_mb": round(after["own"] - before["own"], 1),
            "pss_mb": round(after["pss"] - before["pss"], 1),
            "later_own_mb": round(later["own"] - before["own"], 1),
            "later_pss_mb": round(later["pss"] - before["pss"], 1),
            "own_mb_before": round(before["own"], 1),
            "batch_ms": round(1e3 * float(np.median(batches)), 3),
            "batch_ms_95th": round(1e3 * float(np.percentile(batches, 95)), 3),
            "order_us_a_sample": round((time.perf_counter() - begin) * 1e3, 2),
        }
    )


def memory() -> dict[str, float]:
    """MB of this process: its own pages, that are of no file, and its proportional share of all."""
    values: dict[str, float] = {}
    with open("/proc/self/smaps_rollup") as file:
        for line in file.readlines()[1:]:
            name, kilobytes = line.split()[:2]
            values[name] = int(kilobytes) / 1e3
    return {"own": values["Anonymous:"], "pss": values["Pss:"]}


def extrapolate(results: dict[str, Any], small: int, large: int) -> dict[str, float]:
    """Time and memory of a start at 100 M entries, by a line through two measured sizes."""
    one, other = (results[f"{entries}"]["one_rank"] for entries in (small, large))
    return {
        name: round(other[name] + (other[name] - one[name]) / (large - small) * (100_000_000 - large), 2)
        for name in ("start_seconds", "own_mb", "pss_mb")
    }


def bench_mixing(count: int, batch: int = 256) -> dict[str, dict[str, float]]:
    """How well each order mixes `count` entries in shards of PER_SHARD."""
    settings = OptimizationSettings(shuffle="blocks")
    blocks = {
        f"blocks, parts={parts}": sample_order(settings.model_copy(update={"shuffle_parts": parts}), BatchPlan(batch))
        for parts in (1, 8)
    }
    steps = numpy_generator(0, "steps").integers(count // batch, 2 * (count // batch), 50).tolist()  # of an epoch
    found = {}
    for name, order in {"exact": SampleOrder(), **blocks}.items():
        drawn = np.array([[order.index(step * batch + i, count, 0) for i in range(batch)] for step in steps])
        shards = [np.unique(one // PER_SHARD, return_counts=True)[1] for one in drawn]
        found[name] = {
            "shards_of_a_batch": round(float(np.mean([len(counts) for counts in shards])), 1),
            "largest_share_of_a_shard": round(float(np.mean([counts.max() / batch for counts in shards])), 4),
            "neighbor_distance": round(float(np.abs(np.diff(drawn)).mean() / (count / 3)), 4),
        }
    return found


if __name__ == "__main__":
    with readable_errors():
        main()
