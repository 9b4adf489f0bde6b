"""Encodes video shards into latent shards: the VAE's posterior of each clip, and the embeddings of its captions.

There is one latent shard per video shard and bucket. Shards are written atomically; an interrupted run resumes with the
missing ones, on any number of processes, and ends with the same bytes. So do parts (`encode.part=i/n`), which run
independently, on any machines; `encode.finish=true` then writes the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ldm.encoding.embed import embed_stage
from ldm.encoding.encode_shards import describe_speed, encode_shard_jobs
from ldm.encoding.finish import finish
from ldm.encoding.own_text_encoder import open_text_encoder
from ldm.encoding.parts import describe_missing, note_part, share_of_jobs, sources_of_part
from ldm.encoding.plan import ShardJob
from ldm.encoding.ray_engine import EncodingRecipe, encode_on_ray
from ldm.encoding.resume import EncodedFolder, Sources, count_of, record_vae
from ldm.encoding.settings import EncodeSettings
from ldm.encoding.shard_files import EncodingContext
from ldm.latents.manifest import TEXT_ENCODER_FOLDER
from ldm.networks.settings import TextSettings
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.cluster.parts import Part
from odvae.running.distributed import decide_on_main_process
from odvae.running.errors import InputError
from odvae.running.files import write_json
from odvae.running.hashing import weights_fingerprint
from odvae.running.precision import precision_name
from odvae.running.stage import Stage
from odvae.storage.mirror import needed_to_resume
from odvae.storage.paths import is_remote
from odvae.video_vae import VAELoader, VideoVAE, compression_of, load_vae

SPEED = "speed.json"


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

    `settings.part`: encode only this part of the shards; other parts may run at the same time. `settings.finish`:
    encode nothing; check that what the parts encoded is complete, and finish it. `settings.text`: "separate" embeds the
    captions after the videos are encoded, "only" does nothing else (`ldm.encoding.embed`).

    Prints an account of the videos at the end, and writes it to `account.json`. `needs_text`: a network will be trained
    with text conditioning, so captions are required. Raises InputError where there are none then, where the VAE is
    missing or does not take clips of these sizes, where the folder holds latents of another VAE, other settings or
    other videos, where another command is writing to it, and where more than `data.failures_allowed` of the videos
    cannot be decoded.
    """
    state = PartialState()
    check_launch(settings, state, folder)
    if needs_text:
        check_captions(videos)
    if settings.text == "only":
        embed_stage(settings, text, data, videos, folder, seed)
        return
    vae = load_vae(vae_folder).to(state.device)
    settings.check_sizes(data, compression_of(vae))
    check_long_clips(settings, data, vae)
    part = settings.chosen_part
    sections = {"encode": settings.recorded, "text": text, "data": data}
    label = f"{part.number}-of-{part.count}" if part else ""
    with Stage(folder, sections, shared=part is not None, label=label) as stage:  # a finished one is checked again too
        sources = Sources(videos.samples, settings, data, seed)
        vae_sha256 = weights_fingerprint(vae)
        waiting, hashes = decide_on_main_process(
            lambda: _find_waiting(stage, sources, settings, check_vae(stage, vae, vae_sha256, vae_folder))
        )
        text_encoder = None if settings.text == "separate" else open_text_encoder(text, videos, stage, seed)
        encoding = EncodingContext(vae, vae_sha256, text_encoder, text.max_tokens, settings, data)
        jobs = share_of_jobs(sources.jobs(waiting), state.process_index, state.num_processes)
        speed = _encode(encoding, jobs, hashes, folder, len(videos.samples), (load_vae, vae_folder))
        if speed is not None and state.is_main_process:
            print(describe_speed(speed), flush=True)
            note_speed(stage.folder, part, speed)
        stage.exchange(records_and_indexes if part is None else needed_to_resume)
        if part is None and state.is_main_process:
            encoded = encoded_folder(stage)
            print(finish(encoding, sources, videos, text, vae_folder, encoded).table(), flush=True)
    if part is not None and state.is_main_process:
        print(describe_part(part, sources), flush=True)
    if settings.text == "separate":
        embed_stage(settings, text, data, videos, folder, seed)


def describe_part(part: Part, sources: Sources) -> str:
    """What a part has done, as text."""
    names = sources_of_part(sources.named, part)
    return f"part {part}: the latents of its {len(names)} of {len(sources.named)} video shards are complete"


def check_launch(settings: EncodeSettings, state: PartialState, folder: Path) -> None:
    """Raise InputError for several processes that each would use the cluster, and for text of its own at a URL."""
    if settings.engine == "ray" and state.num_processes > 1:
        raise InputError(
            f"encode.engine=ray is one command that has the cluster's processes work, but this is one of "
            f"{state.num_processes}: run it without accelerate launch"
        )
    if settings.text != "with_latents" and is_remote(folder):
        raise InputError(f"encode.text={settings.text} writes to plain paths only, not to {folder}")


def check_captions(videos: VideoSet) -> None:
    """Raise InputError where no training video has a caption that can be read."""
    if not videos.has_training_captions:
        raise InputError(
            f"none of the {len(videos.train)} training videos has a caption, so nothing can be learned from text: pack "
            "them with their captions (docs/data.md has the layouts that are found), or set ldm.conditioning.kind to "
            "class or none"
        )


def check_long_clips(settings: EncodeSettings, data: DataSettings, vae: VideoVAE) -> None:
    """Raise InputError for clips longer than `encode.stream_frames` where the VAE cannot encode in pieces."""
    longest = max(bucket.frames for bucket in settings.buckets_for(data))
    if longest > settings.stream_frames and not vae.streamable:
        raise InputError(
            f"clips of {longest} frames are encoded in pieces of encode.stream_frames={settings.stream_frames}, but "
            f"{type(vae).__name__} as it is configured needs the whole clip: set encode.stream_frames={longest}, which "
            "takes more memory, or encode shorter clips"
        )


def _encode(
    encoding: EncodingContext,
    jobs: Sequence[ShardJob],
    hashes: Mapping[Path, str],
    folder: Path,
    videos: int,
    vae: tuple[VAELoader, Path],
) -> dict[str, Any] | None:
    """Encode the jobs, in this process or on a Ray cluster. Returns the speed, None without jobs."""
    settings, data = encoding.settings, encoding.data
    if settings.engine == "processes":
        return encode_shard_jobs(encoding, jobs, folder, videos, hashes)
    text, here = None if encoding.text is None else encoding.text.name, os.getcwd()
    if text is not None and is_remote(folder) and Path(text).name == TEXT_ENCODER_FOLDER:  # this machine's copy
        text = str(folder / TEXT_ENCODER_FOLDER)
    recipe = EncodingRecipe(*vae, encoding.vae_sha256, text, encoding.max_tokens, settings, data, folder, videos, here)
    return encode_on_ray(recipe, jobs, hashes)


def _find_waiting(
    stage: Stage, sources: Sources, settings: EncodeSettings, encoded: EncodedFolder
) -> tuple[dict[str, list[str]], dict[Path, str]]:
    """The jobs of this part that are not done, by video shard, and the hashes of video shards that are known.

    Raises InputError where the others had other videos or another precision, where no video is long enough, and where a
    folder that is to be finished lacks shards.
    """
    chosen = sources_of_part(sources.named, settings.chosen_part)
    encoded.check_same_videos(sources, chosen)
    waiting = encoded.waiting(sources, chosen)
    if settings.chosen_part is not None:
        note_part(stage.folder, settings.chosen_part, {"video_shards": len(chosen), "shards_left": count_of(waiting)})
    elif waiting and settings.finish:
        raise InputError(describe_missing(stage.folder, sources.named, waiting))
    elif not waiting and not encoded.records:
        raise InputError("no video is long enough for any of encode.buckets")
    if waiting and settings.engine == "processes":
        encoded.check_same_precision(precision_name(settings.precision, PartialState().device))
    return waiting, encoded.known_hashes(sources)


def check_vae(stage: Stage, vae: VideoVAE, vae_sha256: str, vae_folder: Path) -> EncodedFolder:
    """Record the VAE in the folder, or raise InputError where it is another than that of the folder's shards.

    Returns what the folder has.
    """
    encoded = encoded_folder(stage)
    encoded.check_same_vae(vae_sha256, vae_folder)
    with stage.updating():  # of several parts, the first decides
        record_vae(stage.folder, vae, vae_sha256, vae_folder)
    return encoded


def encoded_folder(stage: Stage) -> EncodedFolder:
    """What the folder has, as far as its records were fetched."""
    return EncodedFolder(stage.folder, None if stage.mirror is None else stage.mirror.listing)


def records_and_indexes(names: Collection[str]) -> list[str]:
    """Of the files of latents at a URL those from which the manifest is made: all but the shards."""
    return [name for name in names if not name.endswith(".tar")]


def note_speed(folder: Path, part: Part | None, speed: Mapping[str, Any]) -> None:
    """Write the speed: `speed.json`, or a part's own file."""
    if part is None:
        write_json(folder / SPEED, speed)
    else:
        note_part(folder, part, {"shards_left": 0, **speed})
