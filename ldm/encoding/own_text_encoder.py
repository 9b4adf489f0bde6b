"""The text encoder of an encoding: a given one, or one that is first trained on the captions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save as save_safetensors

from ldm.encoding.encode_shards import captions_of
from ldm.latents.entries import DTYPES
from ldm.latents.manifest import EMPTY_TEXT, TEXT_ENCODER_FOLDER
from ldm.networks.settings import LEARNED, TextSettings
from ldm.networks.text_encoder import TextEncoder, check_max_tokens, learn_text_encoder, load_text_encoder
from odvae.clips.video_set import VideoSet
from odvae.running.distributed import TIMEOUT
from odvae.running.failures import Failure
from odvae.running.files import atomic_file
from odvae.running.folder_lock import exclusive_update
from odvae.running.stage import Stage


def open_text_encoder(text: TextSettings, videos: VideoSet, stage: Stage, seed: int) -> TextEncoder:
    """The text encoder of the settings; a "learned" one is first trained on captions, in the stage's folder.

    Of several parts that start together, one trains it and the others wait; at a URL, which has no locks, each that
    finds none trains the same one.
    """
    encoder = _open(text, videos, stage, seed)
    check_max_tokens(encoder, text.max_tokens)
    encoder.model.to(PartialState().device)
    return encoder


def _open(text: TextSettings, videos: VideoSet, stage: Stage, seed: int) -> TextEncoder:
    if text.encoder != LEARNED:
        return load_text_encoder(text.encoder)
    state, learned = PartialState(), stage.folder / TEXT_ENCODER_FOLDER
    if state.is_main_process and not learned.exists():
        with exclusive_update(stage.folder, ".text_encoder.lock", timeout=TIMEOUT.total_seconds()):
            if not learned.exists():
                learn_from_captions(text, videos, learned, seed)
    stage.exchange()
    return load_text_encoder(learned)


def learn_from_captions(text: TextSettings, videos: VideoSet, folder: Path, seed: int) -> None:
    """Train a text encoder on the training videos' captions into `folder`: the same bytes for any number of ranks."""
    found = map(captions_of, videos.train)
    readable = [caption for captions in found if not isinstance(captions, Failure) for caption in captions]
    with one_thread():
        learn_text_encoder(readable or [""], text, folder, seed)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: rounding depends on the number of threads, which depends on the number of ranks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_empty_text(encoder: TextEncoder, max_tokens: int, dtype: str, folder: Path) -> None:
    """Write the empty caption's embedding, which means "no text" in training and guidance."""
    embedding, mask = encoder.encode([""], max_tokens)
    tensors = {"text": embedding[0].to(DTYPES[dtype]).cpu(), "text_mask": mask[0].cpu()}
    with atomic_file(folder / EMPTY_TEXT) as file:
        file.write(save_safetensors(tensors))
