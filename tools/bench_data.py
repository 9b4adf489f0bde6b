"""Speed of reading clips and latents, as ratios that do not depend on a machine's speed. All in one run.

    python tools/bench_data.py SHARDS [--frames 17 --size 64 --workers 2]

1. Decoding: frames/s of our reader (workers with time and memory limits, seeds, shared memory) over PyAV alone in as
   many plain worker processes that open, decode, resize and crop the same clips. Target: 0.9.
2. Latents: clips/s of reading them for the LDM over decoding and encoding the same clips again. Target: 50.
3. Latents: bytes/s of reading them in the LDM's random order over reading the same files sequentially, both from
   disk (dropped from the page cache before). Target: 0.5.
4. Size: raw uint8 pixels over moments. Target: 44 at 33 frames, 4x8x8, 4 channels.
5. The share of the encoding time in which the encoder waits for clips.

The VAE is a small OD-VAE with random weights: a larger one would raise 2 and lower 5.
"""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch

from ldm.arguments import CommandParser
from ldm.encode import encode_latents
from ldm.encoding.encode_shards import encode_pieces
from ldm.encoding.settings import EncodeSettings
from ldm.latents.batches import latent_batches
from ldm.latents.entries import pack_entry
from ldm.latents.index_files import latent_rows, write_latent_index
from ldm.latents.latent_set import LatentEntries, LatentSet, open_latents
from ldm.latents.manifest import load_manifest
from ldm.networks.settings import TextSettings
from odvae import ODVAE
from odvae.clips.clip import fit_frames
from odvae.clips.dataset import ClipDataset
from odvae.clips.loader import endless_loader
from odvae.clips.samplers import BatchPlan, StepSampler
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.index.folder_index import FolderIndex
from odvae.index.merging import merge_indexes
from odvae.index.selection import Selection
from odvae.running.distributed import join_ranks
from odvae.running.errors import readable_errors
from odvae.running.files import read_json
from odvae.shards.samples import Sample
from odvae.shards.tars import shard_writer

BATCH = 4

# Entries of the disk benchmark: moments of 33x256x256 clips and CLIP's 77 tokens of width 768, about 160 MB.
ENTRIES, LATENT, TEXT = 600, (4, 9, 32, 32), (77, 768)


def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder of video shards (tools/make_shards.py)")
    parser.add_argument("--frames", type=int, default=17, help="frames per clip, 4k+1 (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="height and width, px (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=48, help="clips to decode (default: %(default)s)")
    options = parser.parse()
    join_ranks()
    size = {"frames": options.frames, "height": options.size, "width": options.size}
    data = DataSettings(**size, workers=options.workers, start="first", held_out=0.05)
    videos = VideoSet(options.shards, data, "python tools/make_shards.py")
    print(videos.describe())
    results = bench_decoding(videos, options.videos) | bench_latents(videos, options.videos) | bench_disk()
    print(json.dumps(results, indent=1))


def bench_decoding(videos: VideoSet, count: int) -> dict:
    """Frames/s of our reader and of bare PyAV, measured alternately so that other load affects both alike."""
    data = videos.data
    dataset = ClipDataset(videos.train, data, seed=0)
    samples = [dataset.source(number, 0) for number in range(count)]
    ours, bare = [], []
    for _ in range(3):
        bare.append(seconds(lambda: bare_decoding(samples, data)))
        ours.append(seconds(lambda: our_decoding(dataset, count)))
    frames = count // BATCH * BATCH * data.frames
    return {
        "bare_frames_per_second": round(frames / min(bare), 1),
        "our_frames_per_second": round(frames / min(ours), 1),
        "decoding_ratio": round(min(bare) / min(ours), 3),
    }


def our_decoding(dataset: ClipDataset, count: int) -> None:
    loader = endless_loader(dataset, StepSampler(BatchPlan(BATCH)))
    for _ in range(count // BATCH):
        next(loader)
    loader.close()


def bare_decoding(samples: list[Sample], data: DataSettings) -> None:
    """The baseline, without this project: a process pool, PyAV, the same resize and crop, a batch."""
    with multiprocessing.get_context("fork").Pool(data.workers, torch.set_num_threads, (1,)) as pool:
        clips = pool.imap(bare_clip, [(sample, data) for sample in samples])
        for _ in range(len(samples) // BATCH):
            torch.from_numpy(np.stack(list(islice(clips, BATCH))))


def bare_clip(task: tuple[Sample, DataSettings]) -> np.ndarray:
    sample, data = task
    with av.open(io.BytesIO(sample.read(sample.video_member))) as container:
        container.streams.video[0].codec_context.thread_count = 1
        chosen = islice(container.decode(video=0), 0, data.span, data.stride)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in chosen])
    return fit_frames(frames, data.height, data.width).numpy()


def bench_latents(videos: VideoSet, count: int) -> dict:
    """Speed of reading the latents of these videos, relative to decoding and encoding them again; their size."""
    data = videos.data
    torch.manual_seed(0)
    vae = ODVAE((16, 32, 48, 64), layers_per_block=1, latent_channels=4, norm_num_groups=8).eval()
    with tempfile.TemporaryDirectory() as work:
        vae.save_pretrained(f"{work}/vae")
        folder, settings = Path(work) / "latents", EncodeSettings(batch_size=BATCH)
        encode_latents(settings, TextSettings(steps=1), data, videos, Path(work) / "vae", folder, seed=0)
        manifest = load_manifest(folder)
        latents = open_latents(folder, manifest)
        reads = 5000
        reading = seconds(lambda: read_latents(latents, reads)) / (reads * BATCH)
        anew = seconds(lambda: decode_and_encode(videos, vae, count)) / (count // BATCH * BATCH)
        raw = data.frames * data.height * data.width * 3
        return {
            "latents_clips_per_second": round(1 / reading, 1),
            "anew_clips_per_second": round(1 / anew, 2),
            "latents_over_anew": round(anew / reading, 1),
            "raw_over_moments": round(raw / (2 * 2 * math.prod(manifest.shape)), 2),
            "waiting_for_decoded_clips": read_json(folder / "speed.json")["waiting"],
        }


def bench_disk() -> dict:
    """Speed of reading entries in the LDM's random order, relative to reading their files sequentially, from disk."""
    rng = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        shards = [Path(work) / f"{i:05d}.tar" for i in range(4)]
        for i, path in enumerate(shards):
            with shard_writer(path) as shard:
                for j in range(ENTRIES // len(shards)):
                    mean, std, text = (torch.randn(shape, generator=rng) for shape in (LATENT, LATENT, TEXT))
                    entry = pack_entry(mean, std, text, torch.ones(TEXT[:1], dtype=torch.bool), torch.bfloat16)
                    about = json.dumps({"caption": "", "source": f"{i}_{j}", "label": None}).encode()
                    shard.write({"__key__": f"{i}_{j}-000", "safetensors": entry, "json": about})
        parts = [Path(f"{path}.arrow") for path in shards]
        for path, part in zip(shards, parts, strict=True):
            write_latent_index(part, path, latent_rows(path), "")
        merge_indexes(Path(work) / "index.arrow", parts)
        index = FolderIndex(Path(work) / "index.arrow", Path(work))
        every = Selection(chunk.split >= 0 for chunk in index.chunks)
        latents = LatentSet({"all": LatentEntries(index, every)}, {}, [])
        size = sum(path.stat().st_size for path in shards)
        ours, plain = [], []
        for _ in range(5):
            ours.append(seconds(lambda: read_latents(latents, ENTRIES // BATCH), drop=shards))
            plain.append(seconds(lambda: [path.read_bytes() for path in shards], drop=shards))
    return {
        "latents_mb_per_second_from_disk": round(size / min(ours) / 1e6, 1),
        "plain_mb_per_second_from_disk": round(size / min(plain) / 1e6, 1),
        "latents_over_plain_read": round(min(plain) / min(ours), 3),
        "raw_over_shards_with_text": round(ENTRIES * 33 * 256 * 256 * 3 / size, 2),
    }


def read_latents(latents: LatentSet, batches: int) -> None:
    for _ in islice(latent_batches(latents, 0, BatchPlan(BATCH)), batches):
        pass


def decode_and_encode(videos: VideoSet, vae: ODVAE, count: int) -> None:
    loader = endless_loader(ClipDataset(videos.train, videos.data, 0), StepSampler(BatchPlan(BATCH)))
    for batch in islice(loader, count // BATCH):
        encode_pieces(vae, iter([batch["video"]]), streamed=False)


def seconds(work: Callable[[], object], drop: list[Path] | None = None) -> float:
    """Seconds that `work` takes; the files in `drop` are first dropped from the page cache."""
    for path in drop or []:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    with readable_errors():
        main()
