"""Encodes video shards into latent shards: the VAE's posterior of each clip, and the embeddings of its captions.

There is one latent shard per video shard and bucket. Shards are written atomically; an interrupted run resumes with the
missing ones, on any number of processes, and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState

from ldm.encoding.encode_shards import captions_of, describe_speed, encode_shard_jobs
from ldm.encoding.finish import finish
from ldm.encoding.parts import share_of_jobs
from ldm.encoding.resume import EncodedFolder, Sources
from ldm.encoding.settings import EncodeSettings
from ldm.encoding.shard_files import EncodingContext
from ldm.latents.manifest import TEXT_ENCODER_FOLDER
from ldm.networks.settings import LEARNED, TextSettings
from ldm.networks.text_encoder import TextEncoder, check_max_tokens, learn_text_encoder, load_text_encoder
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.running.distributed import decide_on_main_process
from odvae.running.errors import InputError
from odvae.running.failures import Failure
from odvae.running.files import write_json
from odvae.running.hashing import weights_fingerprint
from odvae.running.stage import Stage
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
        sources = Sources(videos.samples, settings, data, seed)
        waiting, hashes = decide_on_main_process(lambda: _find_waiting(folder, sources, vae_sha256, vae_folder))
        text_encoder = open_text_encoder(text, videos, folder, seed)
        check_max_tokens(text_encoder, text.max_tokens)
        text_encoder.model.to(state.device)
        encoding = EncodingContext(vae, vae_sha256, text_encoder, text.max_tokens, settings, data)
        jobs = share_of_jobs(sources.jobs(waiting), state.process_index, state.num_processes)
        speed = encode_shard_jobs(encoding, jobs, folder, len(videos.samples), hashes)
        if speed is not None and state.is_main_process:
            print(describe_speed(speed), flush=True)
            write_json(folder / SPEED, speed)
        state.wait_for_everyone()
        if state.is_main_process:
            print(finish(encoding, sources, videos, text, vae_folder, folder).table(), flush=True)


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


def _find_waiting(
    folder: Path, sources: Sources, vae_sha256: str, vae_folder: Path
) -> tuple[dict[str, list[str]], dict[Path, str]]:
    """The jobs that are not done, by video shard, and the hashes of video shards that are known.

    Raises InputError where the others had another VAE or other videos, and where no video is long enough.
    """
    encoded = EncodedFolder(folder)
    encoded.check_same_vae(vae_sha256, vae_folder)
    encoded.check_same_videos(sources, sources.named)
    waiting = encoded.waiting(sources, sources.named)
    if not waiting and not encoded.records:
        raise InputError("no video is long enough for any of encode.buckets")
    return waiting, encoded.known_hashes(sources)


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
