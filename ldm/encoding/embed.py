"""Embedding of captions alone, into shards of their own (`encode.text=separate` and `only`), without any video.

There is one shard of text per latent shard. It is written again where the captions of its video shard have changed, and
where the latent shard has. Interrupted runs, several processes and parts are as in the encoding of videos.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState
from torch import Tensor

from ldm.encoding.encode_shards import captions_of, embed_batch
from ldm.encoding.job_records import JobRecord, read_job_records
from ldm.encoding.own_text_encoder import open_text_encoder, write_empty_text
from ldm.encoding.parts import sources_of_part
from ldm.encoding.plan import samples_by_shard
from ldm.encoding.settings import EncodeSettings
from ldm.encoding.shard_files import EmbeddedCaptions, about_captions
from ldm.encoding.text_records import TextRecord, read_text_record, record_path, write_text_manifest
from ldm.encoding.threads import ComputeThreads
from ldm.latents.card import latents_card
from ldm.latents.entries import DTYPES, pack_text, source_key, text_member
from ldm.latents.index_files import open_index, write_latent_index
from ldm.latents.manifest import MANIFEST, load_manifest
from ldm.latents.text_index import has_index
from ldm.latents.text_manifest import TEXT_FOLDER
from ldm.networks.settings import LEARNED, TextSettings
from ldm.networks.text_encoder import TextEncoder
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.index.folder_index import FolderIndex
from odvae.index.rows import IndexRow
from odvae.running.distributed import wait_for_everyone
from odvae.running.errors import InputError
from odvae.running.failures import Failure, Failures
from odvae.running.files import write_json
from odvae.running.folder_lock import shared_writer
from odvae.running.hashing import checksum, file_fingerprint, weights_fingerprint
from odvae.running.progress import progress_over
from odvae.running.stage import Stage
from odvae.shards.dataset_card import write_card
from odvae.shards.facts_journal import shard_index_path
from odvae.shards.samples import Member, Sample, split_position
from odvae.shards.tars import index_shard, shard_writer


@dataclass(frozen=True)
class TextJob:
    """The captions of the videos in one latent shard."""

    latents: JobRecord
    keys: list[str]
    """The video of each entry of the latent shard."""
    is_train: list[bool]
    """Whether each entry is of the training split."""
    captions: dict[str, tuple[str, ...] | Failure]
    """Of each of these videos, in order."""

    @property
    def captions_checksum(self) -> str:
        """By which changed captions are recognized."""
        found = {key: one.reason if isinstance(one, Failure) else one for key, one in self.captions.items()}
        return f"{checksum(json.dumps(found).encode()):016x}"


def embed_stage(
    settings: EncodeSettings, text: TextSettings, data: DataSettings, videos: VideoSet, folder: Path, seed: int
) -> None:
    """Embed the captions of the latents in `folder` into `text/`, or resume; then write its manifest.

    With `settings.part` only a part's captions, with `settings.finish` only the manifest. Raises the errors of
    `embed_captions`, and InputError where there are no complete latents for a manifest, where text of a latent shard is
    missing, and where the text in the folder was made with other settings.
    """
    state, part, own = PartialState(), settings.chosen_part, folder / TEXT_FOLDER
    if part is None:
        load_manifest(folder)  # raises where the latents are not complete
    with contextlib.ExitStack() as held:
        if state.is_main_process:
            held.enter_context(shared_writer(folder))  # so that no one else removes what is being written
        sections = {"encode": {"dtype": settings.dtype}, "text": text}
        stage = held.enter_context(Stage(own, sections, shared=part is not None))
        encoder = open_text_encoder(text, videos, stage, seed)
        if not settings.finish:
            embed_captions(encoder, settings, text, data, videos, folder)
        wait_for_everyone()
        if part is None and state.is_main_process:
            write_empty_text(encoder, text.max_tokens, settings.dtype, own)
            write_text_manifest(encoder, settings, text, load_manifest(folder), folder)
            write_card(folder, latents_card(load_manifest(folder)))
    if state.is_main_process:
        of_part = f"part {part}: " if part is not None else ""
        print(f"{of_part}the captions are embedded in {own}", flush=True)


def embed_captions(
    encoder: TextEncoder,
    settings: EncodeSettings,
    text: TextSettings,
    data: DataSettings,
    videos: VideoSet,
    folder: Path,
) -> None:
    """Embed the captions of all latent shards in `folder` that have no right text; ranks share them.

    With `settings.part` only those of its video shards. Raises InputError where a latent shard's video is not in the
    video shard of the same name any more, where there is text of another encoder, and where more than
    `data.failures_allowed` of the videos have captions that cannot be read.
    """
    state = PartialState()
    sources = {path.name: samples for path, samples in samples_by_shard(videos.samples).items()}
    chosen = set(sources_of_part(sources, settings.chosen_part))
    if (folder / MANIFEST).is_file():
        open_index(folder, load_manifest(folder))  # which an earlier version did not write
    records = [one for one in read_job_records(folder).values() if one.entries and one.file in chosen]
    sha256, failures = (
        weights_fingerprint(encoder.model),
        Failures(len(videos.samples), data.failures_allowed, "videos"),
    )
    (folder / TEXT_FOLDER / "shards").mkdir(parents=True, exist_ok=True)
    with ComputeThreads(encoder.model.device) as threads:
        for latents in progress_over(records[state.process_index :: state.num_processes], "embedding", unit="shard"):
            job = _plan(folder, latents, sources[latents.file], data.held_out)
            if not _is_done(folder, job, sha256, text):
                _write(encoder, settings, text, job, sha256, folder, threads, failures)


def _plan(folder: Path, latents: JobRecord, samples: Sequence[Sample], held_out: float) -> TextJob:
    index = FolderIndex(shard_index_path(folder, latents.name), folder)
    keys = [source_key(index.key(row)) for row in range(len(index))]
    is_train = [bool(position >= held_out) for chunk in index.chunks for position in chunk.split]
    there = {sample.key: sample for sample in samples}
    if missing := [key for key in keys if key not in there]:
        raise InputError(
            f"{folder / latents.name} has latents of {missing[0]}, which is not in {latents.file} any more: captions "
            "are read from video shards of the same names, each with the same videos (data.shards)"
        )
    return TextJob(latents, keys, is_train, {key: captions_of(there[key]) for key in dict.fromkeys(keys)})


def _is_done(folder: Path, job: TextJob, encoder_sha256: str, text: TextSettings) -> bool:
    """Whether the text of these captions is there. Raises InputError for text of another encoder."""
    record = read_text_record(folder, job.latents.name)
    if record is None:
        return False
    again = f"remove {folder / TEXT_FOLDER} and run the same command again"
    if record.text_sha256 != encoder_sha256:
        raise InputError(
            f"{folder / TEXT_FOLDER / record.name} was embedded by another text encoder ({record.text_sha256[:16]}...) "
            f"than this one ({encoder_sha256[:16]}...); {again}"
        )
    has_same_captions = record.captions_checksum == job.captions_checksum
    if not has_same_captions and text.encoder == LEARNED:
        raise InputError(
            f"the captions in {job.latents.file} have changed since the text encoder in {folder / TEXT_FOLDER} was "
            f"trained on them (text.encoder={LEARNED}); {again}"
        )
    shard = folder / TEXT_FOLDER / record.name
    is_there = shard.is_file() and shard.stat().st_size == record.bytes and has_index(folder, record.of_manifest())
    return has_same_captions and is_there and record.latents_sha256 == job.latents.sha256


def _write(
    encoder: TextEncoder,
    settings: EncodeSettings,
    text: TextSettings,
    job: TextJob,
    encoder_sha256: str,
    folder: Path,
    threads: ComputeThreads,
    failures: Failures,
) -> None:
    """Write a shard of text, its index and, last, its record."""
    path, dtype = folder / TEXT_FOLDER / job.latents.name, DTYPES[settings.dtype]
    readable = {key: one for key, one in job.captions.items() if not isinstance(one, Failure)}
    checksums: dict[str, dict[str, int]] = {}
    with shard_writer(path) as shard:
        for key, captions, embedded in _embedded(encoder, readable, text.max_tokens, settings, threads):
            about = json.dumps(about_captions(captions)).encode()
            members = {"safetensors": pack_text(*embedded[0], dtype), "json": about}
            members |= {text_member(i): pack_text(*one, dtype) for i, one in enumerate(embedded[1:], start=1)}
            shard.write({"__key__": key, **members})
            checksums[key] = {name: checksum(content) for name, content in members.items()}
    failed = {key: one.reason for key, one in job.captions.items() if isinstance(one, Failure)}
    for key, reason in failed.items():
        failures.add(key, reason)
    sha256 = file_fingerprint(path)
    rows = _rows(path, job, checksums)
    write_latent_index(shard_index_path(folder / TEXT_FOLDER, path.name), path, rows, sha256)
    counts = [(len(readable.get(key, ())), is_train) for key, is_train in zip(job.keys, job.is_train, strict=True)]
    record = TextRecord(
        name=path.name,
        sha256=sha256,
        bytes=path.stat().st_size,
        entries=len(rows),
        latents_sha256=job.latents.sha256,
        text_sha256=encoder_sha256,
        captions_checksum=job.captions_checksum,
        captioned_entries=sum(count > 0 for count, _ in counts),
        captioned_train_entries=sum(count > 0 and is_train for count, is_train in counts),
        captions=sum(count for count, _ in counts),
        failed=failed,
    )
    write_json(record_path(folder, path.name), asdict(record))


def _embedded(
    encoder: TextEncoder,
    captions: Mapping[str, tuple[str, ...]],
    max_tokens: int,
    settings: EncodeSettings,
    threads: ComputeThreads,
) -> Iterator[tuple[str, tuple[str, ...], list[tuple[Tensor, Tensor]]]]:
    """Each video's key, captions, and their embeddings (m, d) with masks (m,); of one without, the empty caption's."""
    pending: deque[tuple[list[tuple[str, tuple[str, ...]]], Future[EmbeddedCaptions]]] = deque()

    def first() -> Iterator[tuple[str, tuple[str, ...], list[tuple[Tensor, Tensor]]]]:
        batch, future = pending.popleft()
        embedded = future.result().of_each([own for _, own in batch])
        yield from ((key, own, texts) for (key, own), texts in zip(batch, embedded, strict=True))

    items, size = list(captions.items()), settings.batch_size
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        own = [one for _, one in batch]
        pending.append((batch, threads.submit(embed_batch, encoder, own, max_tokens, size, DTYPES[settings.dtype])))
        if len(pending) > threads.count:
            yield from first()
    while pending:
        yield from first()


def _rows(path: Path, job: TextJob, checksums: Mapping[str, Mapping[str, int]]) -> list[IndexRow]:
    """A row for each entry of the latent shard: its video's key, and where the video's text is."""
    places: dict[str, dict[str, Member]] = {}
    for sample in index_shard(path) if checksums else []:
        known = checksums[sample.key]
        places[sample.key] = {name: one._replace(checksum=known[name]) for name, one in sample.members.items()}
    rows = []
    for key in job.keys:
        captions = job.captions[key]
        problem = f": {captions.reason}" if isinstance(captions, Failure) else ""
        count = 0 if isinstance(captions, Failure) else len(captions)
        rows.append(IndexRow(key, places.get(key, {}), split_position(key, ""), captions=count, problem=problem))
    return rows
