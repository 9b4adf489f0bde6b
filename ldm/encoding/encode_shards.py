"""Encoding of one process's share of the jobs: from decoded clips to latent shards."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.encoding.plan import PlannedClip, ShardJob
from ldm.encoding.shard_files import (
    EmbeddedCaptions,
    EncodedBatch,
    EncodedTensors,
    EncodingContext,
    write_record,
    write_shard,
)
from ldm.encoding.source_hashes import SourceHashes
from ldm.encoding.target import open_target
from ldm.encoding.threads import ComputeThreads
from ldm.encoding.waits import Waits, describe_waits
from ldm.latents.entries import DTYPES
from ldm.networks.text_encoder import TextEncoder
from odvae.clips.clip import load_clip
from odvae.clips.pool import ClipPool
from odvae.clips.settings import ClipSettings
from odvae.running.account import BAD_CAPTION, UNREADABLE
from odvae.running.errors import InputError
from odvae.running.failures import Failure, Failures
from odvae.running.precision import autocast
from odvae.running.progress import progress_bar
from odvae.shards.captions import captions_in
from odvae.shards.samples import Sample
from odvae.video.pixels import to_float
from odvae.video_vae import VideoVAE

# Decoded clips that may be waiting for each worker.
_SLOTS_PER_WORKER = 4


def decode_slots(workers: int, batch_size: int, threads: int) -> int:
    """How many decoded clips may be waiting in memory, each as large as the largest one (or its largest piece).

    They follow the workers, so that each always has a clip to decode, also while an earlier one takes longer: with a
    small batch, fewer slots would leave workers idle. One batch for each thread and one in advance is the least.
    """
    return max(_SLOTS_PER_WORKER * workers, (threads + 1) * batch_size) if workers else 1


def encode_shard_jobs(
    encoding: EncodingContext,
    jobs: Sequence[ShardJob],
    folder: Path,
    videos: int,
    hashes: Mapping[Path, str] | None = None,
) -> dict[str, Any] | None:
    """Encode jobs one after the other into `folder`, which may be at a URL; clips are decoded in advance, also those
    of later jobs.

    `videos` is the number of all videos, of which `data.failures_allowed` is a share; `hashes` are the sha256 of video
    shards that are known. Returns the speed and what was waited for, None without jobs.
    """
    if not jobs:
        return None
    settings, data = encoding.settings, encoding.data
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
    with ComputeThreads(encoding.vae.device) as threads, ThreadPoolExecutor(1) as hasher:
        slots = decode_slots(data.workers, settings.batch_size, threads.count)
        with (
            open_target(folder) as target,
            ClipPool(_load_piece, max(shapes, key=math.prod), slots, data, lambda task: task[0].sample.name) as pool,
            progress_bar("encoding", 0, total, unit="clip") as bar,
        ):
            waits, sources = Waits(), SourceHashes(hasher, hashes or {})
            decoded = pool.in_order(zip(pieces, shapes, strict=True))
            for job in jobs:
                sources.start(job.source)
                batches = _encoded_batches(encoding, job, decoded, threads, waits)
                result = write_shard(encoding, job, batches, failures, target.folder, bar, waits)
                with waits.of("disk"):
                    write_record(encoding, job, result, sources.identity(job.source), target.folder)
                    target.deliver(job.name)
        speed = {"clips": total, "seconds": round(time.monotonic() - begin, 3), "waiting": round(threads.idle_share, 4)}
    return speed | {"waits": waits.shares()}


def describe_speed(speed: Mapping[str, Any]) -> str:
    """Speed and waits of `encode_shard_jobs` as text."""
    return (
        f"{speed['clips'] / speed['seconds']:.1f} clips/s; waited for {describe_waits(speed['waits'])} of the time; "
        f"the VAE was idle {speed['waiting']:.1%}"
    )


def _load_piece(task: tuple[PlannedClip, ClipSettings, int]) -> Tensor:
    clip, piece, start = task
    return load_clip(clip.sample, piece, start, flip=clip.flip)


def _encoded_batches(
    encoding: EncodingContext,
    job: ShardJob,
    decoded: Iterator[Tensor | Failure],
    threads: ComputeThreads,
    waits: Waits,
) -> Iterator[EncodedBatch]:
    """The job's batches in order; up to one more batch per thread is encoded in advance."""
    pending: deque[EncodedBatch] = deque()
    pieces = job.pieces(encoding.settings, encoding.data)
    for clips in job.batches(encoding.settings):
        with waits.of("disk"):
            found = [captions_of(clip.sample) for clip in clips]
        reasons = [(BAD_CAPTION, captions.reason) if isinstance(captions, Failure) else None for captions in found]
        captions = [() if isinstance(captions, Failure) else captions for captions in found]
        videos = _read_pieces(pieces, decoded, reasons)
        if len(pieces) == 1:
            with waits.of("decode"):
                videos = iter(list(videos))
        tensors = threads.submit(_encode_batch, encoding, videos, captions, len(pieces) > 1)
        if len(pieces) > 1:
            waits.divide(*_wait_for(tensors))  # the thread reads one piece after the other: only one is in memory
        pending.append(EncodedBatch(clips, captions, reasons, tensors))
        if len(pending) > threads.count:
            yield pending.popleft()
    yield from pending


def _wait_for(tensors: Future[EncodedTensors]) -> tuple[float, Mapping[str, float]]:
    """Wait for a batch -> (the seconds that took, the seconds that each kind of work on it took)."""
    begin = time.perf_counter()
    work = tensors.result().seconds
    return time.perf_counter() - begin, work


def _encode_batch(
    encoding: EncodingContext, videos: Iterator[Tensor], captions: list[tuple[str, ...]], streamed: bool
) -> EncodedTensors:
    work = Waits()
    with work.of("vae"), autocast(encoding.settings.precision, encoding.vae.device):
        mean, std = (moment.cpu() for moment in encode_pieces(encoding.vae, _timed(videos, work), streamed))
    work.seconds["vae"] -= work.seconds["decode"]
    texts = None
    if encoding.text is not None:
        with work.of("text"):
            settings = encoding.settings
            dtype = DTYPES[settings.dtype]
            texts = embed_batch(encoding.text, captions, encoding.max_tokens, settings.batch_size, dtype)
    return EncodedTensors(mean, std, texts, work.seconds)


def embed_batch(
    encoder: TextEncoder, captions: Sequence[tuple[str, ...]], max_tokens: int, batch_size: int, dtype: torch.dtype
) -> EmbeddedCaptions:
    """Embed all captions of some videos, each on its own: the first ones together, then the others in batches."""
    first = [own[0] if own else "" for own in captions]
    text, text_mask = (tensor.cpu() for tensor in encoder.encode(first, max_tokens))
    further = [caption for own in captions for caption in own[1:]]
    parts = [encoder.encode(further[i : i + batch_size], max_tokens) for i in range(0, len(further), batch_size)]
    # Converted at once, since a video may have dozens of captions.
    converted = [(embedding.to(dtype).cpu(), mask.cpu()) for embedding, mask in parts]
    more, more_mask = [torch.cat(tensors) for tensors in zip(*converted, strict=True)] or [torch.empty(0)] * 2
    return EmbeddedCaptions(text, text_mask, more, more_mask)


def _timed(videos: Iterator[Tensor], work: Waits) -> Iterator[Tensor]:
    """The pieces; waiting for them counts as decoding."""
    while True:
        with work.of("decode"):
            video = next(videos, None)
        if video is None:
            return
        yield video


def _read_pieces(
    pieces: Sequence[tuple[ClipSettings, int]],
    decoded: Iterator[Tensor | Failure],
    reasons: list[tuple[str, str] | None],
) -> Iterator[Tensor]:
    """The pieces of a batch of clips in order, uint8 (b, t, h, w, 3); failed ones are black, and `reasons` is set."""
    for piece, _ in pieces:
        video = torch.zeros((len(reasons), *piece.shape), dtype=torch.uint8)
        for i in range(len(reasons)):
            clip = next(decoded)
            if isinstance(clip, Failure):
                reasons[i] = (UNREADABLE, clip.reason)
            else:
                video[i] = clip
        yield video


@torch.no_grad()
def encode_pieces(vae: VideoVAE, pieces: Iterator[Tensor], streamed: bool) -> tuple[Tensor, Tensor]:
    """uint8 clips in pieces (b, t_i, h, w, 3) -> posterior mean and std (b, c, k, h, w) of the whole, in float32.

    `streamed` False: there is one piece. True: the result equals that of the whole clip, in memory that does not grow
    with its length; raises InputError for a VAE that needs the whole clip.
    """
    videos = _on_device(pieces, vae.device)
    posteriors = list(vae.encode_stream(videos)) if streamed else [vae.encode(next(videos)).latent_dist]
    mean, std = ([getattr(posterior, name).float() for posterior in posteriors] for name in ("mean", "std"))
    return torch.cat(mean, dim=2), torch.cat(std, dim=2)


def _on_device(pieces: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """uint8 pieces (b, t_i, h, w, 3) -> float ones (b, 3, t_i, h, w) in [-1, 1] on the device."""
    for piece in pieces:
        yield to_float(piece.to(device))


def captions_of(sample: Sample) -> tuple[str, ...] | Failure:
    """A video's captions, or the reason why they cannot be read."""
    try:
        return captions_in(sample)
    except InputError as error:
        return Failure(str(error))
    except OSError as error:
        return Failure(f"{sample.name}: its caption cannot be read ({error.strerror})")
