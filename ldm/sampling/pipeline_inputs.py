"""Checks of the pipeline's arguments against its VAE and network, before anything is computed."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from ldm.networks.factory import Network
from odvae.architecture.frame_counts import check_frame_count, check_frame_size, latent_frames
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


def check_components(pipeline: Any, *needed: str) -> None:
    """Raise InputError for components that a call needs and the pipeline was loaded or made without."""
    if missing := [name for name in needed if getattr(pipeline, name) is None]:
        raise InputError(
            f"this pipeline has no {' and no '.join(missing)} (None was given for it); videos cannot be made without"
        )


def count_videos(
    transformer: Network,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Any,
    negative_prompt_embeds: Any,
    class_label: LabelInput | None,
    num_videos: int | None,
) -> int:
    """The number of prompts, labels or videos. Raises InputError for conditions that the network needs or refuses."""
    config = transformer.config
    takes = {"prompt": config.text_width is not None, "class_label": config.class_names is not None}
    given = {
        "prompt": prompt is not None or prompt_embeds is not None,
        "class_label": class_label is not None,
    }
    for name in takes:
        if given[name] and not takes[name]:
            raise InputError(f"{name} was given, but this network does not take one")
        if takes[name] and not given[name]:
            raise InputError(f"this network needs a {name}")
    if (negative_prompt or negative_prompt_embeds is not None) and not takes["prompt"]:
        raise InputError("negative_prompt was given, but this network does not take a prompt")
    if not any(takes.values()):
        return 1 if num_videos is None else num_videos
    if num_videos is not None:
        raise InputError("num_videos is for unconditional networks: give one prompt or class label per video instead")
    if takes["class_label"]:
        return len(as_labels(class_label))
    return len(as_texts(prompt, "prompt") if prompt_embeds is None else prompt_embeds)


def check_latents(latents: Any, shape: tuple[int, ...]) -> None:
    """Raise InputError for initial noise that is no float tensor of this shape; None is allowed."""
    if latents is None:
        return
    found = (tuple(latents.shape), latents.is_floating_point()) if isinstance(latents, torch.Tensor) else type(latents)
    if found != (tuple(shape), True):
        raise InputError(f"latents must be a float tensor (videos, c, frames, height, width) = {shape}, found {found}")


def check_callback(callback: Any, names: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise InputError for what cannot be called after a step, and names of tensors that there are not."""
    if callback is not None and not callable(callback):
        raise InputError(f"callback_on_step_end must be a function, found {callback!r}")
    if unknown := [name for name in names if name not in allowed]:
        raise InputError(
            f"callback_on_step_end_tensor_inputs has {', '.join(map(str, unknown))}; allowed are {', '.join(allowed)}"
        )


def check_counts(given: Mapping[str, Any], optional: bool = False) -> None:
    """Raise InputError for anything but an integer >= 1 (or None, where they are `optional`), by its name."""
    for name, value in given.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1
        if not whole and not (optional and value is None):
            raise InputError(f"{name} must be an integer >= 1{' or None' if optional else ''}, found {value!r}")


def check_output_type(output_type: Any) -> None:
    """Raise InputError for an unknown type of frames."""
    if output_type not in ("np", "pt", "pil", "latent"):
        raise InputError(f"output_type={output_type!r}: allowed are np, pt, pil, latent")


def generators_of(generator: Any, count: int) -> list[torch.Generator | None]:
    """A generator for each video. Raises InputError for what is no torch.Generator, nor as many as videos."""
    single = generator is None or isinstance(generator, torch.Generator)
    several = generator if isinstance(generator, Sequence) and not isinstance(generator, str) else [generator]
    for one in () if single else several:
        if not isinstance(one, torch.Generator):
            raise InputError(
                f"generator must be a torch.Generator, or a list with one for each video, found {one!r}; for a seed: "
                "torch.Generator().manual_seed(SEED)"
            )
    return one_for_each(generator, single, count, f"{count} videos need one generator or {count}")


def latent_shape(
    transformer: Network, vae: VideoVAE | None, frames: int | None, height: int | None, width: int | None
) -> tuple[int, int, int, int]:
    """(c, k, h, w) of the latents of videos of this size; None: as in training.

    Raises InputError for sizes that the VAE or the network does not take.
    """
    t, h, w = transformer.config.sample_size
    if vae is None:
        if not frames == height == width is None:
            raise InputError("without a VAE, videos have the size of training: leave out num_frames, height and width")
        return transformer.config.latent_channels, t, h, w
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
    return [class_index(label, names) for label in as_labels(class_label)]


def as_labels(class_label: Any) -> list[int | str]:
    """One label or several as a list. Raises InputError for what is none, and for an empty list."""
    if isinstance(class_label, (str, numbers.Integral)):
        return [class_label]  # type: ignore[list-item]  # an integer
    if not isinstance(class_label, Sequence) or not class_label:
        raise InputError(f"class_label must be a name or index of a class, or a list of them, found {class_label!r}")
    return list(class_label)


def as_texts(texts: Any, name: str) -> list[str]:
    """One text or several as a list. Raises InputError, which calls them `name`, for anything else."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Sequence) or isinstance(texts, bytes) or not texts:
        raise InputError(f"{name} must be a text or a list of texts, found {texts!r}")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{name} must be a text or a list of texts, found a list with {text!r}")
    return list(texts)


def negative_prompts_of(negative_prompt: Any, count: int) -> list[str]:
    """A negative prompt for each of `count` prompts; empty ones where none is given.

    Raises InputError for what is no text, and for another number of texts.
    """
    if negative_prompt is None:
        return [""] * count
    as_texts(negative_prompt, "negative_prompt")
    message = f"{count} prompts need one negative_prompt or {count}"
    return one_for_each(negative_prompt, isinstance(negative_prompt, str), count, message)


def one_for_each(value: T | Sequence[T], single: bool, count: int, message: str) -> list[T]:
    """`value` repeated `count` times where it is a `single` one, else as a list.

    Raises InputError with "`message`, found N" for a list of another length.
    """
    values: list[Any] = [value] * count if single else list(value)  # type: ignore[arg-type]  # a sequence then
    if len(values) != count:
        raise InputError(f"{message}, found {len(values)}")
    return values
