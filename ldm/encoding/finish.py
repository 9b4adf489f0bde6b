"""The end of an encoding, when all jobs are done: manifest and account, from the jobs' records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.encoding.job_records import UNKNOWN_PRECISION, JobRecord
from ldm.encoding.own_text_encoder import write_empty_text
from ldm.encoding.resume import EncodedFolder, Outline, Sources
from ldm.encoding.settings import BucketSettings
from ldm.encoding.shard_files import EncodingContext
from ldm.latents.card import latents_card
from ldm.latents.index_files import write_folder_index
from ldm.latents.manifest import EMPTY_TEXT, MANIFEST, TEXT_ENCODER_FOLDER, Manifest, ShardRecord, load_manifest
from ldm.latents.text_manifest import TEXT_FOLDER
from ldm.networks.settings import LEARNED, TextSettings
from odvae.clips.video_set import VideoSet
from odvae.latent_statistics import ChannelSums
from odvae.running.account import TOO_SHORT, Account, shown_names
from odvae.running.errors import InputError
from odvae.running.hashing import file_fingerprint, weights_fingerprint
from odvae.running.run_folder import code_version
from odvae.shards.dataset_card import write_card


def finish(
    encoding: EncodingContext,
    sources: Sources,
    videos: VideoSet,
    text: TextSettings,
    vae_folder: Path,
    encoded: EncodedFolder,
) -> Account:
    """Write manifest and account of a folder whose jobs are all done. Returns the account.

    Raises InputError where more than `data.failures_allowed` of the videos could not be encoded, by all processes and
    parts together, and where there is no training clip.
    """
    folder = encoded.folder
    outlines = [sources.outline(name, encoded.of_source(name)) for name in sources.named]
    records = [encoded.records[name] for outline in outlines for name in outline.names]
    _check_failures(records, len(videos.samples), encoding.data.failures_allowed)
    if not _manifest_lists(records, folder):
        _write_manifest(encoding, records, text, vae_folder, folder)
    account = account_of(videos, outlines, records, encoding.settings.flip)
    account.save(folder)
    return account


def account_of(videos: VideoSet, outlines: Sequence[Outline], records: Sequence[JobRecord], flip: bool) -> Account:
    """Account of the videos: encoded ones, and the others with reasons."""
    account = Account("videos")
    for record in records:
        account.add(Account.from_json(record.account))
    for sample, reason, details in videos.unusable():
        account.leave_out(sample.key, reason, details)
    for outline in outlines:
        for key in outline.too_short:
            account.leave_out(key, TOO_SHORT)
    if flip and (unmirrored := sum(outline.unmirrored for outline in outlines)):
        total = sum(outline.videos for outline in outlines)
        account.notes.append(
            f"{unmirrored} of {total} videos have no mirrored clips: a caption or class mentions a side"
        )
    if account.used and not account.captioned:
        account.notes.append("no video has a caption: a text-conditional model cannot be trained on these latents")
    return account


def _check_failures(records: Sequence[JobRecord], videos: int, share: float) -> None:
    """Raise InputError where too many videos have failed over all runs; each run has counted only its own."""
    failed = {key: reason for record in records for key, reason in record.failed.items()}
    if len(failed) > share * videos:
        listed = "".join(f"\n  {key}: {reason}" for key, reason in list(failed.items())[:20])
        raise InputError(
            f"{len(failed)} of {videos} videos could not be used, more than data.failures_allowed={share:g} of "
            f"them:{listed}"
        )


def encoded_precision(records: Sequence[JobRecord], folder: Path) -> str:
    """The precision in which the VAE encoded all shards; UNKNOWN_PRECISION where the record of one does not say it.

    Raises InputError where it differs between shards.
    """
    shards: dict[str, list[str]] = {}
    for record in records:
        shards.setdefault(record.precision, []).append(record.name)
    known = {precision: names for precision, names in shards.items() if precision != UNKNOWN_PRECISION}
    if len(known) > 1:
        rarest = min(known, key=lambda precision: len(known[precision]))
        listed = "; ".join(f"{precision}: {shown_names(names)}" for precision, names in sorted(known.items()))
        raise InputError(
            f"the shards in {folder} were not all encoded in the same precision ({listed}): encode.precision=auto is "
            f"bf16 on some devices and fp32 on others. To have the {len(known[rarest])} of them in {rarest} encoded "
            f'again, remove their records, the files in {folder / "shards"} with "precision": "{rarest}", and run '
            "the same command (or their parts) where the others were encoded"
        )
    return next(iter(known)) if known.keys() == shards.keys() else UNKNOWN_PRECISION


def _manifest_lists(records: Sequence[JobRecord], folder: Path) -> bool:
    """Whether there is a manifest of exactly these shards; an interrupted run may have left an older one."""
    if not (folder / MANIFEST).is_file():
        return False
    written = {record.name: record.sha256 for record in records if record.entries}
    return written == {record.name: record.sha256 for record in load_manifest(folder).shards}


def by_number_or_name(name: str) -> tuple[bool, int, str]:
    """Sort key of classes: integers by value, before names."""
    return not name.isdecimal(), int(name) if name.isdecimal() else 0, name


def _bucket_shapes(records: Sequence[JobRecord], encoding: EncodingContext) -> dict[str, Any]:
    """Shapes of the buckets that are not empty. That of the `data` section comes first: it is sampled by default."""
    shapes = {record.bucket: tuple(record.shape) for record in records}
    buckets = (BucketSettings.of_clips(encoding.data), *encoding.settings.buckets)
    return {bucket.name: shapes[bucket.name] for bucket in buckets if bucket.name in shapes}


def _write_manifest(
    encoding: EncodingContext, records: Sequence[JobRecord], text: TextSettings, vae_folder: Path, folder: Path
) -> None:
    encoder = encoding.text
    if encoder is not None:
        write_empty_text(encoder, encoding.max_tokens, encoding.settings.dtype, folder)
    parts = [ChannelSums.from_json(record.sums) for record in records if record.sums]
    if not parts:
        raise InputError("no training clip could be encoded, so the latents have no statistics")
    latents_mean, latents_std = sum(parts, ChannelSums()).mean_and_std()
    settings, data, full = encoding.settings, encoding.data, [record for record in records if record.entries]
    names = ("train_entries", "entries", "captioned_entries", "captioned_train_entries", "captions")
    train, entries, captioned, captioned_train, captions = (
        0
        if encoder is None and name not in ("train_entries", "entries")
        else sum(getattr(one, name) for one in records)
        for name in names
    )
    by_class: Counter[str] = sum((Counter(record.entries_by_class) for record in records), Counter())
    classes = sorted(by_class, key=by_number_or_name)
    manifest = Manifest(
        vae_sha256=encoding.vae_sha256,
        vae_config={key: value for key, value in encoding.vae.config.items() if not key.startswith("_")},
        vae_folder=str(vae_folder),
        **_about_text(encoding, text, folder),
        data=data.model_dump(mode="json"),
        resize=f"cover, {data.resize}, antialiased, center crop",
        clips_per_video=settings.clips_per_video,
        flip=settings.flip,
        posterior=settings.posterior,
        dtype=settings.dtype,
        precision=encoded_precision(full, folder),
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
        failed={key: reason for record in records for key, reason in record.failed.items()},
        shards=[ShardRecord(**{key: getattr(record, key) for key in ShardRecord.__annotations__}) for record in full],
        code=code_version(),
    )
    write_folder_index(folder, manifest)
    write_card(folder, latents_card(manifest))
    manifest.save(folder)


def _about_text(encoding: EncodingContext, text: TextSettings, folder: Path) -> dict[str, Any]:
    """What the manifest says of the text encoder; of text in a folder of its own, where it is."""
    encoder = encoding.text
    if encoder is None:
        zeros = {"text_width": 0, "text_tokens": 0}
        return {"text_encoder": TEXT_FOLDER, "text_sha256": "", "empty_text_sha256": "", **zeros}
    return {
        "text_encoder": TEXT_ENCODER_FOLDER if text.encoder == LEARNED else text.encoder,
        "text_sha256": weights_fingerprint(encoder.model),
        "text_width": encoder.width,
        "text_tokens": encoding.max_tokens,
        "empty_text_sha256": file_fingerprint(folder / EMPTY_TEXT),
    }
