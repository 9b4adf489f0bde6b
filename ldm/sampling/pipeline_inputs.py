"""Checks of the pipeline's arguments against its VAE and network, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from ldm.networks.factory import Network
from odvae.frame_counts import check_frame_count, check_frame_size, latent_frames
from odvae.running.errors import InputError
from odvae.video_vae import VideoVAE

T = TypeVar("T")
LabelInput = int | str | Sequence[int | str]


def check_same_latents(vae: VideoVAE, transformer: Network) -> None:
    """Raise InputError for a network that was trained on latents of another VAE, as far as the configs differ."""
    channels, trained = vae.config.latent_channels, transformer.config.latent_channels
    if channels != trained:
        raise InputError(
            f"the VAE has {channels} latent channels, but the network was trained on latents with {trained}: it needs "
            "another VAE"
        )


def count_videos(
    transformer: Network, prompt: str | Sequence[str] | None, class_label: LabelInput | None, num_videos: int | None
) -> int:
    """The number of videos to generate. Raises InputError for conditions that the network needs or does not take."""
    config = transformer.config
    takes = {"prompt": config.text_width is not None, "class_label": config.class_names is not None}
    given = {"prompt": prompt is not None, "class_label": class_label is not None}
    for name in takes:
        if given[name] and not takes[name]:
            raise InputError(f"{name} was given, but this network does not take one")
        if takes[name] and not given[name]:
            raise InputError(f"this network needs a {name}")
    if not any(takes.values()):
        return 1 if num_videos is None else num_videos
    if num_videos is not None:
        raise InputError("num_videos is for unconditional networks: give as many prompts or class labels")
    conditions: Any = prompt if takes["prompt"] else class_label
    return 1 if isinstance(conditions, (str, int)) else len(conditions)


def latent_shape(
    transformer: Network, vae: VideoVAE, frames: int | None, height: int | None, width: int | None
) -> tuple[int, int, int, int]:
    """(c, k, h, w) of the latents of videos of this size; None: as in training.

    Raises InputError for sizes that the VAE or the network does not take.
    """
    t, h, w = transformer.config.sample_size
    factor = vae.spatial_compression_ratio
    if frames is not None:
        check_frame_count(frames, vae.temporal_compression_ratio, "num_frames")
        t = latent_frames(frames, vae.temporal_compression_ratio)
    height, width = (h * factor if height is None else height), (w * factor if width is None else width)
    check_frame_size(height, width, factor)
    shape = (transformer.config.latent_channels, t, height // factor, width // factor)
    transformer.token_grid(torch.empty(1, *shape, device="meta"))  # raises where the patches do not divide it
    return shape


def class_index(label: int | str, names: Sequence[str]) -> int:
    """The index of a class given by its name or, where no class has that name, by its index."""
    if str(label) in names:
        return list(names).index(str(label))
    if str(label).isdecimal() and int(label) < len(names):
        return int(label)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise InputError(f"class {label!r} is unknown; allowed are 0 to {len(names) - 1} or their names: {listed}")


def class_indices(class_label: LabelInput, names: Sequence[str]) -> list[int]:
    """`class_index` of one label or of each of several."""
    labels = [class_label] if isinstance(class_label, (int, str)) else class_label
    return [class_index(label, names) for label in labels]


def as_list(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def one_for_each(value: T | Sequence[T], single: bool, count: int, message: str) -> list[T]:
    """`value` repeated `count` times where it is a `single` one, else as a list.

    Raises InputError with "`message`, found N" for a list of another length.
    """
    values: list[Any] = [value] * count if single else list(value)  # type: ignore[arg-type]  # a sequence then
    if len(values) != count:
        raise InputError(f"{message}, found {len(values)}")
    return values
