"""Encodes video shards into latent shards: the VAE's posterior of each clip, and the embeddings of its captions.

There is one latent shard per video shard and bucket. Shards are written atomically; an interrupted run resumes with the
missing ones, on any number of processes, and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save as save_safetensors

from ldm.encoding.encode_shards import captions_of, encode_shard_jobs
from ldm.encoding.job_records import read_job_record
from ldm.encoding.plan import ShardJob, plan_shard_jobs
from ldm.encoding.settings import BucketSettings, EncodeSettings
from ldm.encoding.shard_files import DTYPES, EncodingContext
from ldm.latents.manifest import EMPTY_TEXT, HASHES, MANIFEST, TEXT_ENCODER_FOLDER, Manifest, ShardRecord, load_manifest
from ldm.networks.settings import LEARNED, TextSettings
from ldm.networks.text_encoder import TextEncoder, check_max_tokens, learn_text_encoder, load_text_encoder
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.latent_statistics import ChannelSums
from odvae.running.account import TOO_SHORT, Account
from odvae.running.distributed import decide_on_main_process
from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.running.files import atomic_file
from odvae.running.hashing import HashCache, file_fingerprint, weights_fingerprint
from odvae.running.precision import uses_bf16
from odvae.running.run_folder import code_version
from odvae.running.stage import Stage
from odvae.video_vae import VAELoader, VideoVAE, compression_of, load_vae


def encode_latents(
    settings: EncodeSettings,
    text: TextSettings,
    data: DataSettings,
    videos: VideoSet,
    vae_folder: Path,
    folder: Path,
    seed: int,
    needs_text: bool = False,
    *,
    load_vae: VAELoader = load_vae,
) -> None:
    """Encode every video (both splits) into `folder`, or resume an interrupted run; ranks share the shards.

    Prints an account of the videos at the end, and writes it to `account.json`. `needs_text`: a network will be trained
    with text conditioning, so captions are required. Raises InputError where there are none then, where the VAE is
    missing or does not take clips of these sizes, where the folder holds latents of another VAE, other settings or
    other videos, where another command is writing to it, and where more than `data.failures_allowed` of the videos
    cannot be decoded.
    """
    state = PartialState()
    if needs_text:
        check_captions(videos)
    vae = load_vae(vae_folder).to(state.device)
    settings.check_sizes(data, compression_of(vae))
    check_long_clips(settings, data, vae)
    with Stage(folder, {"encode": settings, "text": text, "data": data}):  # a finished folder is checked again too
        vae_sha256 = weights_fingerprint(vae)
        jobs = plan_shard_jobs(videos.samples, settings, data)
        waiting = set(decide_on_main_process(lambda: _waiting_jobs(folder, jobs, vae_sha256, vae_folder)))
        text_encoder = open_text_encoder(text, videos, folder, seed)
        check_max_tokens(text_encoder, text.max_tokens)
        text_encoder.model.to(state.device)
        encoding = EncodingContext(vae, vae_sha256, text_encoder, text.max_tokens, settings, data)
        todo = [job for job in jobs if job.name in waiting]
        encode_shard_jobs(encoding, todo[state.process_index :: state.num_processes], folder, len(videos.samples))
        state.wait_for_everyone()
        if state.is_main_process:
            if todo or not _manifest_lists(jobs, folder):
                _write_manifest(encoding, jobs, text, vae_folder, folder)
            account = account_of(videos, jobs, folder, settings.flip)
            account.save(folder)
            print(account.table(), flush=True)


def check_captions(videos: VideoSet) -> None:
    """Raise InputError where no training video has a caption that can be read."""
    if not any(captions and not isinstance(captions, Failure) for captions in map(captions_of, videos.train)):
        raise InputError(
            f"none of the {len(videos.train)} training videos has a caption, so nothing can be learned from text: pack "
            "them with their captions (docs/data.md has the layouts that are found), or set ldm.conditioning.kind to "
            "class or none"
        )


def account_of(videos: VideoSet, jobs: Sequence[ShardJob], folder: Path, flip: bool) -> Account:
    """Account of the videos: encoded ones, and the others with reasons."""
    account = Account("videos")
    for job in jobs:
        account.add(Account.from_json(read_job_record(job.record(folder))["account"]))
    clips = [clip for job in jobs for clip in job.clips]
    encoded = {clip.sample.key for clip in clips}
    for sample, reason, details in videos.unusable:
        account.leave_out(sample.key, reason, details)
    for sample in videos.samples:
        if sample.key not in encoded:
            account.leave_out(sample.key, TOO_SHORT)
    if flip and (unmirrored := encoded - {clip.sample.key for clip in clips if clip.flip}):
        account.notes.append(
            f"{len(unmirrored)} of {len(encoded)} videos have no mirrored clips: a caption or class mentions a side"
        )
    if account.used and not account.captioned:
        account.notes.append("no video has a caption: a text-conditional model cannot be trained on these latents")
    return account


def check_long_clips(settings: EncodeSettings, data: DataSettings, vae: VideoVAE) -> None:
    """Raise InputError for clips longer than `encode.stream_frames` where the VAE cannot encode in pieces."""
    longest = max(bucket.frames for bucket in settings.buckets_for(data))
    if longest > settings.stream_frames and not vae.streamable:
        raise InputError(
            f"clips of {longest} frames are encoded in pieces of encode.stream_frames={settings.stream_frames}, but "
            f"{type(vae).__name__} as it is configured needs the whole clip: set encode.stream_frames={longest}, which "
            "takes more memory, or encode shorter clips"
        )


def _waiting_jobs(folder: Path, jobs: Sequence[ShardJob], vae_sha256: str, vae_folder: Path) -> list[str]:
    """Names of the jobs that are not done. Raises InputError where the others had another VAE or other videos."""
    _check_same_vae(folder, vae_sha256, vae_folder)
    _check_same_videos(folder, jobs)
    return [job.name for job in jobs if not job.is_done(folder)]


def open_text_encoder(text: TextSettings, videos: VideoSet, folder: Path, seed: int) -> TextEncoder:
    """The text encoder of the settings; a "learned" one is first trained on the training videos' captions."""
    if text.encoder != LEARNED:
        return load_text_encoder(text.encoder)
    state, learned = PartialState(), folder / TEXT_ENCODER_FOLDER
    if state.is_main_process and not learned.exists():
        found = map(captions_of, videos.train)
        readable = [caption for captions in found if not isinstance(captions, Failure) for caption in captions]
        with one_thread():
            learn_text_encoder(readable or [""], text, learned, seed)
    state.wait_for_everyone()
    return load_text_encoder(learned)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: rounding depends on the number of threads, which depends on the number of ranks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _check_same_vae(folder: Path, vae_sha256: str, vae_folder: Path) -> None:
    for path in sorted((folder / "shards").glob("*.json")):
        record = read_job_record(path)
        if record["vae_sha256"] != vae_sha256:
            raise InputError(
                f"{folder / record['name']} was encoded by another VAE ({record['vae_sha256'][:16]}...) than "
                f"{vae_folder} ({vae_sha256[:16]}...); remove {folder} and run the same command again"
            )


def _check_same_videos(folder: Path, jobs: Sequence[ShardJob]) -> None:
    """Raise InputError for a folder whose latents are of video shards that have changed or are missing."""
    planned = {job.name: job for job in jobs}
    hashes = HashCache(folder / HASHES)
    for path in sorted((folder / "shards").glob("*.json")):
        record = read_job_record(path)
        again = f"remove {folder} and run the same command again"
        if record["name"] not in planned:
            raise InputError(
                f"{folder / record['name']} was encoded from {record['source']}, which no longer exists; {again}"
            )
        source = planned[record["name"]].source
        if hashes.sha256(source) != record["source_sha256"]:
            raise InputError(f"{source} was changed after its latents {record['name']} were encoded; {again}")
    hashes.save()


def _write_empty_text(encoding: EncodingContext, folder: Path) -> None:
    """Write the empty caption's embedding, which means "no text" in training and guidance."""
    embedding, mask = encoding.text.encode([""], encoding.max_tokens)
    tensors = {"text": embedding[0].to(DTYPES[encoding.settings.dtype]).cpu(), "text_mask": mask[0].cpu()}
    with atomic_file(folder / EMPTY_TEXT) as file:
        file.write(save_safetensors(tensors))


def _manifest_lists(jobs: Sequence[ShardJob], folder: Path) -> bool:
    """Whether there is a manifest of exactly these jobs' shards; an interrupted run may have left an older one."""
    if not (folder / MANIFEST).is_file():
        return False
    records = [read_job_record(job.record(folder)) for job in jobs]
    written = {record["name"]: record["sha256"] for record in records if record["entries"]}
    return written == {record.name: record.sha256 for record in load_manifest(folder).shards}


def _by_number_or_name(name: str) -> tuple[bool, int, str]:
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name


def _bucket_shapes(records: Sequence[dict], encoding: EncodingContext) -> dict[str, Any]:
    """Shapes of the buckets that are not empty. That of the `data` section comes first: it is sampled by default."""
    shapes = {record["bucket"]: tuple(record["shape"]) for record in records}
    buckets = (BucketSettings.of_clips(encoding.data), *encoding.settings.buckets)
    return {bucket.name: shapes[bucket.name] for bucket in buckets if bucket.name in shapes}


def _write_manifest(
    encoding: EncodingContext, jobs: Sequence[ShardJob], text: TextSettings, vae_folder: Path, folder: Path
) -> None:
    _write_empty_text(encoding, folder)
    records = [read_job_record(job.record(folder)) for job in jobs]
    parts = [ChannelSums.from_json(record["sums"]) for record in records if record["sums"]]
    if not parts:
        raise InputError("no training clip could be encoded, so the latents have no statistics")
    latents_mean, latents_std = sum(parts, ChannelSums()).mean_and_std()
    settings, data, full = encoding.settings, encoding.data, [record for record in records if record["entries"]]
    names = ("train_entries", "entries", "captioned_entries", "captioned_train_entries", "captions")
    train, entries, captioned, captioned_train, captions = (sum(record[name] for record in records) for name in names)
    by_class: Counter[str] = sum((Counter(record["entries_by_class"]) for record in records), Counter())
    classes = sorted(by_class, key=_by_number_or_name)
    manifest = Manifest(
        vae_sha256=encoding.vae_sha256,
        vae_config={key: value for key, value in encoding.vae.config.items() if not key.startswith("_")},
        vae_folder=str(vae_folder),
        text_encoder=TEXT_ENCODER_FOLDER if text.encoder == LEARNED else text.encoder,
        text_sha256=weights_fingerprint(encoding.text.model),
        text_width=encoding.text.width,
        text_tokens=encoding.max_tokens,
        empty_text_sha256=file_fingerprint(folder / EMPTY_TEXT),
        data=data.model_dump(mode="json"),
        resize=f"cover, {data.resize}, antialiased, center crop",
        clips_per_video=settings.clips_per_video,
        flip=settings.flip,
        posterior=settings.posterior,
        dtype=settings.dtype,
        precision="bf16" if uses_bf16(settings.precision, PartialState().device) else "fp32",
        held_out=data.held_out,
        buckets=_bucket_shapes(full, encoding),
        train_entries=train,
        held_out_entries=entries - train,
        captioned_entries=captioned,
        captioned_share=round(captioned / entries, 4),
        captioned_train_entries=captioned_train,
        captions=captions,
        classes=classes,
        entries_by_class={name: by_class[name] for name in classes},
        latents_mean=latents_mean,
        latents_std=latents_std,
        failed={key: reason for record in records for key, reason in record["failed"].items()},
        shards=[ShardRecord(**{key: record[key] for key in ShardRecord.__annotations__}) for record in full],
        code=code_version(),
    )
    manifest.save(folder)
