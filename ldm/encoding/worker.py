"""From decoded clips to latent shards: what one process does with its share of the jobs."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm
from webdataset import TarWriter

from ldm.encoding.plan import DeclaredClip, ShardJob
from ldm.encoding.settings import EncodeSettings
from ldm.encoding.threads import ComputeThreads
from ldm.latents.entries import entry_key, pack_entry
from ldm.networks.text_encoder import TextEncoder
from odvae.clips.clip import load_clip
from odvae.clips.pool import ClipPool
from odvae.clips.settings import ClipSettings, DataSettings
from odvae.clips.video_set import is_held_out
from odvae.latent_statistics import ChannelSums
from odvae.running.errors import InputError
from odvae.running.files import write_json
from odvae.running.hashing import file_fingerprint
from odvae.running.progress import progress_bar
from odvae.running.worker_pool import Failure, Failures
from odvae.shards.facts import about_sample
from odvae.shards.samples import Sample
from odvae.shards.tars import shard_writer
from odvae.video.pixels import to_float
from odvae.video_vae import VideoVAE

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class EncodingJob:
    """Everything that encodes: the VAE, the text encoder and how their outputs are kept."""

    vae: VideoVAE
    vae_sha256: str
    text: TextEncoder
    max_tokens: int
    settings: EncodeSettings
    data: DataSettings


@dataclass
class ShardResult:
    """What the clips of one job came to."""

    entries: int = 0
    train_entries: int = 0
    shape: tuple[int, ...] = ()
    classes: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    sums: ChannelSums = field(default_factory=ChannelSums)


def encode_shard_jobs(encoder: EncodingJob, jobs: Sequence[ShardJob], folder: Path, videos: int) -> None:
    """Encode some jobs, one after the other; their clips are decoded ahead, across the jobs' bounds.

    `videos` is the number of all videos, of which `data.failures_allowed` is a share.
    """
    if not jobs:
        return
    settings, data = encoder.settings, encoder.data
    pieces = [
        (clip, piece, clip.start + offset)
        for job in jobs
        for batch in job.batches(settings)
        for piece, offset in job.pieces(settings, data)
        for clip in batch
    ]
    shapes = [piece.shape for _, piece, _ in pieces]
    failures = Failures(videos, data.failures_allowed, "videos")
    total, begin = sum(len(job.clips) for job in jobs), time.monotonic()
    with ComputeThreads(next(encoder.vae.parameters()).device) as threads, ThreadPoolExecutor(1) as hasher:
        slots = (threads.count + 1) * settings.batch_size if data.workers else 1
        with (
            ClipPool(_load_piece, max(shapes, key=math.prod), slots, data, lambda task: task[0].sample.name) as pool,
            progress_bar("encoding", 0, total, unit="clip") as bar,
        ):
            decoded = pool.in_order(zip(pieces, shapes, strict=True))
            for job in jobs:
                source_sha256 = hasher.submit(file_fingerprint, job.source)
                batches = _encoded_batches(encoder, job, decoded, threads)
                result = _write_shard(encoder, job, batches, failures, folder, bar)
                _write_record(encoder, job, result, source_sha256.result(), folder)
        idle, seconds = threads.idle_share, time.monotonic() - begin
    if PartialState().is_main_process:
        print(f"{total / seconds:.1f} clips/s; the encoder waited for clips {idle:.1%} of the time", flush=True)
        write_json(folder / "speed.json", {"clips": total, "seconds": round(seconds, 3), "waiting": round(idle, 4)})


def _load_piece(task: tuple[DeclaredClip, ClipSettings, int]) -> Tensor:
    clip, piece, start = task
    return load_clip(clip.sample, piece, start, flip=clip.flip)


@dataclass(frozen=True)
class EncodedBatch:
    """Clips and what becomes of them; where `reasons` has one, the clip could not be read and its rows mean nothing."""

    clips: list[DeclaredClip]
    captions: list[str]
    reasons: list[str | None]
    tensors: Future[tuple[Tensor, ...]]  # mean, std (b, c, k, h, w), text (b, m, d), text_mask (b, m), on CPU


def _encoded_batches(
    encoder: EncodingJob,
    job: ShardJob,
    decoded: Iterator[Tensor | Failure],
    threads: ComputeThreads,
) -> Iterator[EncodedBatch]:
    """The job's batches in order; as many more as there are threads are encoded meanwhile."""
    pending: deque[EncodedBatch] = deque()
    pieces = job.pieces(encoder.settings, encoder.data)
    for clips in job.batches(encoder.settings):
        found = [caption_of(clip.sample) for clip in clips]
        reasons = [caption.reason if isinstance(caption, Failure) else None for caption in found]
        captions = ["" if isinstance(caption, Failure) else caption for caption in found]
        videos = _read_pieces(pieces, decoded, reasons)
        if len(pieces) == 1:
            videos = iter(list(videos))
        tensors = threads.submit(_encode_batch, encoder, videos, captions, len(pieces) > 1)
        if len(pieces) > 1:
            wait([tensors])  # it reads the pieces itself, one after the other, so that no more is in memory
        pending.append(EncodedBatch(clips, captions, reasons, tensors))
        if len(pending) > threads.count:
            yield pending.popleft()
    yield from pending


def _encode_batch(
    encoder: EncodingJob, videos: Iterator[Tensor], captions: list[str], streamed: bool
) -> tuple[Tensor, ...]:
    moments = encode_pieces(encoder.vae, videos, streamed)
    return tuple(tensor.cpu() for tensor in (*moments, *encoder.text.encode(captions, encoder.max_tokens)))


def _read_pieces(
    pieces: list[tuple[ClipSettings, int]], decoded: Iterator[Tensor | Failure], reasons: list[str | None]
) -> Iterator[Tensor]:
    """The pieces of a batch of clips in turn, uint8 (b, t, h, w, 3); black where one failed, with its reason noted."""
    for piece, _ in pieces:
        video = torch.zeros((len(reasons), *piece.shape), dtype=torch.uint8)
        for i in range(len(reasons)):
            clip = next(decoded)
            if isinstance(clip, Failure):
                reasons[i] = clip.reason
            else:
                video[i] = clip
        yield video


@torch.no_grad()
def encode_pieces(vae: VideoVAE, pieces: Iterator[Tensor], streamed: bool) -> tuple[Tensor, Tensor]:
    """uint8 clips in pieces (b, t_i, h, w, 3) -> posterior mean and std (b, c, k, h, w) of the whole, in float32.

    Not `streamed`: there is one piece. Streamed pieces give what the whole clip would, in memory that does not grow
    with its length; raises InputError for a VAE whose function needs the whole clip.
    """
    device = next(vae.parameters()).device
    videos = (to_float(piece.to(device)) for piece in pieces)
    posteriors = list(vae.encode_stream(videos)) if streamed else [vae.encode(next(videos)).latent_dist]
    mean, std = ([getattr(posterior, name).float() for posterior in posteriors] for name in ("mean", "std"))
    return torch.cat(mean, dim=2), torch.cat(std, dim=2)


def _write_shard(
    encoder: EncodingJob, job: ShardJob, batches: Iterator[EncodedBatch], failures: Failures, folder: Path, bar: tqdm
) -> ShardResult:
    """Write one latent shard; none where no clip could be read."""
    result = ShardResult()
    with shard_writer(folder / job.name) as shard:
        for batch in batches:
            _write_batch(encoder, job, batch, shard, failures, result)
            bar.update(len(batch.clips))
    if not result.entries:
        (folder / job.name).unlink()
    return result


def _write_batch(
    encoder: EncodingJob, job: ShardJob, batch: EncodedBatch, shard: TarWriter, failures: Failures, result: ShardResult
) -> None:
    settings, data, tensors = encoder.settings, encoder.data, batch.tensors.result()
    for clip, reason, caption, mean, std, text, mask in zip(
        batch.clips, batch.reasons, batch.captions, *tensors, strict=True
    ):
        source = clip.sample
        if reason is not None:
            result.failed[source.key] = reason
            failures.add(source.name, reason)
            continue
        about = {
            "caption": caption,
            "source": source.key,
            "start": clip.start,
            "label": class_name(source),
            "flip": clip.flip,
            "frames": job.bucket.frames,
        }
        kept_std = std if settings.posterior == "moments" else None
        shard.write(
            {
                "__key__": entry_key(source.key, clip.index, clip.flip),
                "safetensors": pack_entry(mean, kept_std, text, mask, DTYPES[settings.dtype]),
                "json": json.dumps(about).encode(),
            }
        )
        result.entries += 1
        result.shape = tuple(mean.shape)
        if about["label"] is not None:
            result.classes.add(about["label"])
        if not is_held_out(source.key, data.held_out):
            result.train_entries += 1
            result.sums.add(mean, std)


def _write_record(encoder: EncodingJob, job: ShardJob, result: ShardResult, source_sha256: str, folder: Path) -> None:
    """The job is done: what the manifest is made of."""
    path = folder / job.name
    record = {
        "name": job.name,
        "sha256": file_fingerprint(path) if result.entries else "",
        "bytes": path.stat().st_size if result.entries else 0,
        "entries": result.entries,
        "train_entries": result.train_entries,
        "bucket": job.bucket.name,
        "source": str(job.source),
        "source_sha256": source_sha256,
        "source_entries": job.samples,
        "classes": sorted(result.classes),
        "failed": result.failed,
        "shape": list(result.shape),
        "vae_sha256": encoder.vae_sha256,
        "sums": result.sums.to_json() if result.train_entries else None,
    }
    job.record(folder).parent.mkdir(exist_ok=True)
    write_json(job.record(folder), record)


def caption_of(sample: Sample) -> str | Failure:
    """A video's caption, or why there is none that can be read."""
    try:
        return sample.read_text()
    except InputError as error:
        return Failure(str(error))


def class_name(sample: Sample) -> str | None:
    """The class a video shows, from its .json (`label`, a name or a number); None where it has none."""
    label = about_sample(sample).get("label")
    return None if label is None else str(label)
