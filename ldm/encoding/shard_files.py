"""Writing of one latent shard: its entries, and the record that marks it as done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm
from webdataset import TarWriter

from ldm.encoding.plan import PlannedClip, ShardJob
from ldm.encoding.settings import EncodeSettings
from ldm.encoding.source_hashes import SourceIdentity
from ldm.encoding.waits import Waits
from ldm.latents.entries import DTYPES, entry_key, pack_entry, pack_text, text_member
from ldm.latents.index_files import WrittenEntry, write_latent_index, written_rows
from ldm.networks.text_encoder import TextEncoder
from odvae.clips.clip import clip_rate
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import is_held_out
from odvae.latent_statistics import ChannelSums
from odvae.running.account import Account
from odvae.running.failures import Failures
from odvae.running.files import write_json
from odvae.running.hashing import checksum, file_fingerprint
from odvae.running.precision import precision_name
from odvae.shards.facts import about_sample
from odvae.shards.facts_journal import shard_index_path
from odvae.shards.samples import Sample
from odvae.shards.tars import shard_writer
from odvae.video_vae import VideoVAE


@dataclass(frozen=True)
class EncodingContext:
    """The models and settings with which all shards are encoded."""

    vae: VideoVAE
    vae_sha256: str
    text: TextEncoder | None
    """None: the captions are embedded separately."""
    max_tokens: int
    settings: EncodeSettings
    data: DataSettings

    @property
    def precision(self) -> str:
        """bf16 or fp32: that of the VAE on its device."""
        return precision_name(self.settings.precision, self.vae.device)


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of clips and its encoding. Where `reasons` is not None, the clip could not be read: ignore its rows."""

    clips: list[PlannedClip]
    captions: list[tuple[str, ...]]
    reasons: list[tuple[str, str] | None]
    """(kind, details)"""
    tensors: Future[EncodedTensors]


class EmbeddedCaptions(NamedTuple):
    """Embeddings of the captions of a batch of clips, or of videos, on the CPU."""

    text: Tensor  # (b, m, d), of the first captions
    text_mask: Tensor  # (b, m)
    more_text: Tensor  # (n, m, d), of all further captions, ordered by clip
    more_mask: Tensor  # (n, m)

    def of_each(self, captions: Sequence[tuple[str, ...]]) -> list[list[tuple[Tensor, Tensor]]]:
        """The embeddings (m, d) and masks (m,) of each clip with these captions; of one without, the empty one's."""
        further = iter(zip(self.more_text, self.more_mask, strict=True))
        first = zip(self.text, self.text_mask, captions, strict=True)
        return [[(text, mask), *(next(further) for _ in own[1:])] for text, mask, own in first]


@dataclass(frozen=True)
class EncodedTensors:
    """Encodings of a batch of clips, on the CPU."""

    mean: Tensor  # (b, c, k, h, w)
    std: Tensor
    texts: EmbeddedCaptions | None
    """None where the captions are embedded separately."""
    seconds: Mapping[str, float]
    """Which the kinds of work on the batch took (`Waits.seconds`)."""


@dataclass
class ShardResult:
    """Totals over the clips of one job, for its record."""

    entries: int = 0
    train_entries: int = 0
    captioned_entries: int = 0
    captioned_train_entries: int = 0
    captions: int = 0
    shape: tuple[int, ...] = ()
    entries_by_class: dict[str, int] = field(default_factory=dict)
    videos: dict[str, tuple[bool, str | None]] = field(default_factory=dict)
    """Key of a video with an entry -> whether it has a caption, and its class."""
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Key of a video of which a clip could not be encoded -> reason: (kind, details)."""
    sums: ChannelSums = field(default_factory=ChannelSums)
    written: list[WrittenEntry] = field(default_factory=list)
    """The shard's entries, for its index."""

    def count(self, video: str, captions: tuple[str, ...], label: str | None, is_train: bool) -> None:
        """Count an entry."""
        self.entries += 1
        self.train_entries += is_train
        self.captioned_entries += bool(captions)
        self.captioned_train_entries += bool(captions) and is_train
        self.captions += len(captions)
        if label is not None:
            self.entries_by_class[label] = self.entries_by_class.get(label, 0) + 1
        self.videos[video] = bool(captions), label

    def account(self) -> Account:
        """Account of the job's videos: those with at least one encoded clip count as used."""
        account = Account()
        for captioned, label in self.videos.values():
            account.use(captioned, label)
        for video, (kind, details) in self.failed.items():
            if video not in self.videos:
                account.leave_out(video, kind, details)
        return account


def write_shard(
    encoding: EncodingContext,
    job: ShardJob,
    batches: Iterator[EncodedBatch],
    failures: Failures,
    folder: Path,
    bar: tqdm,
    waits: Waits,
) -> ShardResult:
    """Write one latent shard; no file remains where no clip could be read."""
    result = ShardResult()
    with waits.at_end_of(shard_writer(folder / job.name), "disk") as shard:
        for batch in batches:
            begin = time.perf_counter()
            work = batch.tensors.result().seconds
            waits.divide(time.perf_counter() - begin, work)
            _write_batch(encoding, job, batch, shard, failures, result, waits)
            bar.update(len(batch.clips))
    if not result.entries:
        (folder / job.name).unlink(missing_ok=True)
    return result


def _write_batch(
    encoding: EncodingContext,
    job: ShardJob,
    batch: EncodedBatch,
    shard: TarWriter,
    failures: Failures,
    result: ShardResult,
    waits: Waits,
) -> None:
    settings, data, tensors = encoding.settings, encoding.data, batch.tensors.result()
    dtype = DTYPES[settings.dtype]
    texts = tensors.texts.of_each(batch.captions) if tensors.texts is not None else None
    for i, (clip, reason, captions) in enumerate(zip(batch.clips, batch.reasons, batch.captions, strict=True)):
        source = clip.sample
        if reason is not None:
            result.failed[source.key] = reason
            failures.add(source.name, reason[1])
            continue
        metadata: dict[str, Any] = {
            **({} if texts is None else about_captions(captions)),
            "source": source.key,
            "start": clip.start,
            "label": class_name(source),
            "flip": clip.flip,
            "frames": job.bucket.frames,
            "fps": clip_rate(source, data),
            **({"group": source.group} if source.group else {}),
        }
        mean, std = tensors.mean[i], tensors.std[i]
        stored_std = std if settings.posterior == "moments" else None
        (text, mask), *more = texts[i] if texts is not None else [(None, None)]
        entry = pack_entry(mean, stored_std, text, mask, dtype)
        key = entry_key(source.key, clip.index, clip.flip)
        members = {
            "safetensors": entry,
            "json": json.dumps(metadata).encode(),
            **{text_member(number): pack_text(*text, dtype) for number, text in enumerate(more, start=1)},
        }
        with waits.of("disk"):
            shard.write({"__key__": key, **members})
        checksums = {name: checksum(data) for name, data in members.items()}
        embedded = 0 if texts is None else len(captions)
        result.written.append(WrittenEntry(key, checksums, embedded, metadata["label"], source.group))
        is_train = not is_held_out(source.key, source.group, data.held_out)
        result.count(source.key, captions, metadata["label"], is_train)
        result.shape = tuple(mean.shape)
        if is_train:
            result.sums.add(mean, std)


def about_captions(captions: tuple[str, ...]) -> dict[str, Any]:
    """What an entry's .json says of the captions that are embedded."""
    return {"caption": captions[0] if captions else "", **({"captions": captions} if captions[1:] else {})}


def write_record(
    encoding: EncodingContext, job: ShardJob, result: ShardResult, source: SourceIdentity, folder: Path
) -> None:
    """Write the shard's index, and the job's record, which marks it as done and from which the manifest is built."""
    path = folder / job.name
    sha256 = file_fingerprint(path) if result.entries else ""
    if result.entries:
        rows = written_rows(path, result.written)
        write_latent_index(shard_index_path(folder, job.name), path, rows, sha256)
    mirrored = {clip.sample.key for clip in job.clips if clip.flip}
    videos = {clip.sample.key for clip in job.clips}
    record = {
        "name": job.name,
        "sha256": sha256,
        "bytes": path.stat().st_size if result.entries else 0,
        "entries": result.entries,
        "train_entries": result.train_entries,
        "bucket": job.bucket.name,
        "source": str(job.source),
        "source_sha256": source.sha256,
        "source_bytes": source.bytes,
        "source_mtime_ns": source.mtime_ns,
        "source_entries": job.samples,
        "of_source": job.of_source,
        "too_short": job.too_short,
        "videos": len(videos),
        "unmirrored": len(videos - mirrored),
        "captioned_entries": result.captioned_entries,
        "captioned_train_entries": result.captioned_train_entries,
        "captions": result.captions,
        "entries_by_class": result.entries_by_class,
        "failed": {key: details for key, (_, details) in result.failed.items()},
        "account": result.account().to_json(),
        "shape": list(result.shape),
        "vae_sha256": encoding.vae_sha256,
        "precision": encoding.precision,
        "sums": result.sums.to_json() if result.train_entries else None,
    }
    job.record(folder).parent.mkdir(exist_ok=True)
    write_json(job.record(folder), record)


def class_name(sample: Sample) -> str | None:
    """A video's class from its .json (`label`, a name or an integer); None where it has none."""
    label = about_sample(sample).get("label")
    return None if label is None else str(label)
