"""Text (or a class, or nothing, or an image) to video, as a diffusers pipeline."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ldm.diffusion.objective import objective_of
from ldm.diffusion.settings import ObjectiveSettings
from ldm.networks.conditioning import NO_LABEL, Condition
from ldm.networks.network import Network
from ldm.networks.text_encoder import check_prompts, encode_captions, load_text_encoder
from ldm.sampling.decode import decode_in_pieces
from ldm.sampling.pipeline_folder import PipelineFolderMixin
from ldm.sampling.schedulers import Guidance, check_scheduler, guided_prediction, sample_latents
from odvae.frame_counts import check_frame_count, check_picture_size, latent_frames
from odvae.running.errors import InputError
from odvae.running.hashing import weights_fingerprint
from odvae.video_vae import VideoVAE


@dataclass
class TextToVideoOutput(BaseOutput):
    """`frames`: numpy (b, t, h, w, 3) in [0, 1], or torch (b, t, 3, h, w) in [0, 1], or latents (b, c, k, h, w)."""

    frames: np.ndarray | Tensor


class TextToVideoPipeline(PipelineFolderMixin, DiffusionPipeline):
    """Generates videos with a trained network.

    Each video's noise comes from its own generator, and with `batch_size=1` each is computed alone: then it is the same
    to the last bit whichever others are asked for, in whatever order, on one machine and number of threads.

    Args:
        text_encoder, tokenizer: for networks with text conditioning. None: `text_encoder_name` is loaded when
            it is needed.
        text_encoder_name, text_sha256: where the text encoder comes from, and the fingerprint of its weights.
        model_card: what a saved or published pipeline says of itself: its README.md.
    """

    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012 (diffusers' name and type)

    def __init__(
        self,
        vae: VideoVAE,
        transformer: Network,
        scheduler: SchedulerMixin,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder_name: str | None = None,
        text_sha256: str | None = None,
        model_card: str | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, transformer=transformer, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(text_encoder_name=text_encoder_name, text_sha256=text_sha256, model_card=model_card)
        check_scheduler(scheduler, self.objective)
        check_same_latents(vae, transformer)

    @property
    def objective(self) -> ObjectiveSettings:
        return objective_of(self.transformer.config)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] = "",
        class_label: int | str | Sequence[int | str] | None = None,
        image: Tensor | Sequence[Tensor] | None = None,
        num_videos: int | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 1,
        truncate_prompts: bool = False,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> TextToVideoOutput | tuple:
        """Generate one video a prompt (or class label, or `num_videos` of an unconditional network).

        Args:
            negative_prompt: what guidance leads away from; one for all, or one each.
            class_label: a class by its name, or by its number where no class has that for a name.
            image: the first frame, float (3, h, w) in [-1, 1]; one for all, or one each. For networks that take one.
            num_frames, height, width: sizes that the VAE takes (OD-VAE: 4k+1 frames, multiples of 8 pixels); by default
                what the network was trained on.
            guidance_scale: 1 follows the condition as trained; larger follows it more (classifier-free guidance).
            guidance_interval, guidance_rescale: see `ldm.sampling.schedulers.Guidance`.
            generator: one for all videos, or one each, which makes each independent of the others.
            batch_size: videos computed together. More than 1 is faster for small networks; a video then differs by
                rounding with its place among others. The last batch is filled up, so all have the same shape.
            truncate_prompts: cut prompts of too many tokens, as training cut captions; else they are an error.
            output_type: "np", "pt" or "latent".

        Raises InputError, before anything is computed, for what the network cannot take.
        """
        check_scheduler(self.scheduler, self.objective)
        if output_type not in ("np", "pt", "latent"):
            raise InputError(f"output_type={output_type!r}: allowed are np, pt, latent")
        count = self._count(prompt, class_label, num_videos)
        shape = self._latent_shape(num_frames, height, width)
        self._check_prompts(prompt, negative_prompt, truncate_prompts)
        condition, unconditional = self._conditions(count, prompt, negative_prompt, class_label, image, shape)
        guidance = Guidance(guidance_scale, tuple(guidance_interval), guidance_rescale)
        noise = self._initial_noise(count, shape, generator)
        latents = self._denoise(noise, condition, unconditional, num_inference_steps, guidance, batch_size)
        if condition.first_frame is not None and image is not None:
            latents[:, :, :1] = condition.first_frame  # what was given, exactly
        frames = latents if output_type == "latent" else self._decode(latents, output_type)
        return TextToVideoOutput(frames=frames) if return_dict else (frames,)

    def _denoise(
        self,
        noise: Tensor,
        condition: Condition,
        unconditional: Condition | None,
        steps: int,
        guidance: Guidance,
        batch_size: int,
    ) -> Tensor:
        """Latents of all videos, `batch_size` at a time; the last batch repeats videos to be as large as the others."""
        made = []
        for first in range(0, len(noise), batch_size):
            rows = torch.arange(first, first + batch_size, device=noise.device) % len(noise)
            chosen = [
                None if c is None else c.map(lambda part, rows=rows: part[rows]) for c in (condition, unconditional)
            ]
            predict = guided_prediction(self.transformer, *chosen, guidance)
            made.append(
                sample_latents(predict, noise[rows], self.scheduler, self.objective, steps, guidance, self.progress_bar)
            )
        return torch.cat(made)[: len(noise)]

    def _count(self, prompt: Any, class_label: Any, num_videos: int | None) -> int:
        config = self.transformer.config
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
        asked = prompt if takes["prompt"] else class_label
        return 1 if isinstance(asked, (str, int)) else len(asked)

    def _latent_shape(self, frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int, int]:
        t, h, w = self.transformer.config.sample_size
        factor = self.vae.spatial_compression_ratio
        if frames is not None:
            check_frame_count(frames, self.vae.temporal_compression_ratio, "num_frames")
            t = latent_frames(frames, self.vae.temporal_compression_ratio)
        height, width = (h * factor if height is None else height), (w * factor if width is None else width)
        check_picture_size(height, width, factor)
        shape = (self.transformer.config.latent_channels, t, height // factor, width // factor)
        self.transformer.token_grid(torch.empty(1, *shape, device="meta"))  # whether the patches divide it
        return shape

    def _initial_noise(
        self, count: int, shape: tuple[int, ...], generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> Tensor:
        generators = [generator] * count if generator is None or isinstance(generator, torch.Generator) else generator
        if len(generators) != count:
            raise InputError(f"{count} videos need one generator or {count}, found {len(generators)}")
        rows = [
            torch.randn(shape, generator=g, device=g.device if g else None).to(self._execution_device)
            for g in generators
        ]
        return torch.stack(rows).to(self.transformer.dtype)

    def _conditions(
        self, count: int, prompt: Any, negative_prompt: Any, class_label: Any, image: Any, shape: tuple[int, ...]
    ) -> tuple[Condition, Condition | None]:
        """What the videos are conditioned on, and what guidance compares with (None where there is nothing)."""
        config, device = self.transformer.config, self._execution_device
        first, given = self._first_frames(count, image, shape)
        if config.text_width is not None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            negative = [negative_prompt] * count if isinstance(negative_prompt, str) else list(negative_prompt)
            if len(negative) != count:
                raise InputError(f"{count} prompts need one negative_prompt or {count}, found {len(negative)}")
            sides = [self._encode_one_by_one(captions) for captions in (prompts, negative)]
            conditional, unconditional = (Condition(*side, None, first, given) for side in sides)
            return conditional, unconditional
        if config.class_names is not None:
            labels = torch.tensor([self._class_number(label) for label in self._listed(class_label)], device=device)
            none = torch.full_like(labels, NO_LABEL)
            return Condition(None, None, labels, first, given), Condition(None, None, none, first, given)
        return Condition(first_frame=first, first_frame_given=given), None

    def _check_prompts(self, prompt: Any, negative_prompt: Any, truncate: bool) -> None:
        if self.transformer.config.text_width is None:
            return
        self._load_text_encoder()
        asked = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
        limit = sys.maxsize if truncate else self.transformer.config.text_tokens
        check_prompts(self.tokenizer, [*asked, *(text for text in negative if text)], limit)

    def _encode_one_by_one(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings and masks; each caption alone, so that it is the same among any others."""
        tokens = self.transformer.config.text_tokens
        unique = {c: encode_captions(self.tokenizer, self.text_encoder, [c], tokens) for c in dict.fromkeys(captions)}
        text, masks = zip(*(unique[caption] for caption in captions), strict=True)
        return torch.cat(text), torch.cat(masks)

    def _first_frames(self, count: int, image: Any, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        """Normalized latents (b, c, 1, h, w) of the images, and whether they were given."""
        if not self.transformer.config.first_frame:
            if image is not None:
                raise InputError("image was given, but this network was not trained to take a first frame")
            return None, None
        c, _, h, w = shape
        device = self._execution_device
        if image is None:
            return torch.zeros(count, c, 1, h, w, device=device), torch.zeros(count, dtype=torch.bool, device=device)
        images = [image] * count if isinstance(image, Tensor) and image.ndim == 3 else list(image)
        if len(images) != count:
            raise InputError(f"{count} videos need one image or {count}, found {len(images)}")
        size = (3, h * self.vae.spatial_compression_ratio, w * self.vae.spatial_compression_ratio)
        for number, one in enumerate(images):
            if tuple(one.shape) != size:
                raise InputError(f"image {number} is {tuple(one.shape)}, but the videos' first frames are {size}")
        encoded = [self._encode_image(one) for one in images]
        return torch.cat(encoded), torch.ones(count, dtype=torch.bool, device=device)

    def _encode_image(self, image: Tensor) -> Tensor:
        """An image (3, h, w) in [-1, 1] -> normalized latents (1, c, 1, h, w): the posterior's mean."""
        video = image.to(self._execution_device, self.vae.dtype)[None, :, None]
        mean, std = (
            torch.tensor(values, device=video.device).view(1, -1, 1, 1, 1)
            for values in (self.transformer.config.latents_mean, self.transformer.config.latents_std)
        )
        return (self.vae.encode(video).latent_dist.mean.float() - mean) / std

    def _class_number(self, label: int | str) -> int:
        names = list(self.transformer.config.class_names)
        if str(label) in names:
            return names.index(str(label))
        if str(label).isdecimal() and int(label) < len(names):
            return int(label)
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise InputError(f"class {label!r} is unknown; allowed are 0 to {len(names) - 1} or their names: {shown}")

    def _listed(self, class_label: Any) -> list[int | str]:
        return [class_label] if isinstance(class_label, (int, str)) else list(class_label)

    def _decode(self, latents: Tensor, output_type: str) -> np.ndarray | Tensor:
        """Each video alone and in the same pieces, so that it is the same among any others."""
        videos = [torch.cat(list(self.decode_in_pieces(one[None])), dim=2) for one in latents]
        video = torch.cat(videos) / 2 + 0.5  # (b, 3, t, h, w)
        return video.transpose(1, 2) if output_type == "pt" else video.permute(0, 2, 3, 4, 1).cpu().numpy()

    def decode_in_pieces(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents (b, c, k, h, w), as output_type="latent" gives them -> videos (b, 3, t_j, h, w) in [-1, 1], in order.

        Memory does not depend on the video's length.
        """
        return decode_in_pieces(
            self.vae, latents, self.transformer.config.latents_mean, self.transformer.config.latents_std
        )

    def _load_text_encoder(self) -> None:
        """A text encoder that was saved by reference is loaded at its first use, and must be the very same."""
        if self.text_encoder is not None:
            return
        name, expected = self.config.text_encoder_name, self.config.text_sha256
        if name is None:
            raise InputError("this pipeline has neither a text encoder nor the name of one: a part is missing")
        text = load_text_encoder(name)
        found = weights_fingerprint(text.model)
        if expected is not None and found != expected:
            raise InputError(f"{name} is another text encoder ({found[:16]}...) than the trained ({expected[:16]}...)")
        self.register_modules(text_encoder=text.model.to(self._execution_device), tokenizer=text.tokenizer)


def check_same_latents(vae: VideoVAE, transformer: Network) -> None:
    """Raise InputError for a network that was trained on latents of another VAE, as far as their configs tell."""
    channels, trained = vae.config.latent_channels, transformer.config.latent_channels
    if channels != trained:
        raise InputError(f"the VAE has {channels} latent channels, the network was trained on {trained}: another VAE's")
