"""Text-, class-, image-conditional and unconditional video generation, as a diffusers pipeline."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ldm.diffusion.objective import objective_of
from ldm.diffusion.settings import ObjectiveSettings
from ldm.networks.conditioning import NO_LABEL, Condition
from ldm.networks.network import Network
from ldm.networks.text_encoder import check_prompts, encode_captions, load_text_encoder
from ldm.sampling.decode import decode_in_pieces
from ldm.sampling.guidance import Guidance, guided_prediction
from ldm.sampling.pipeline_folder import PipelineFolderMixin
from ldm.sampling.pipeline_inputs import (
    as_texts,
    check_counts,
    check_output_type,
    check_same_latents,
    class_indices,
    count_videos,
    generators_of,
    latent_shape,
    negative_prompts_of,
    one_for_each,
)
from ldm.sampling.schedulers import check_scheduler, check_steps, sample_latents
from odvae.running.errors import InputError
from odvae.running.hashing import weights_fingerprint
from odvae.video_vae import VideoVAE


@dataclass
class TextToVideoOutput(BaseOutput):
    """`frames`: numpy (b, t, h, w, 3) in [0, 1], or torch (b, t, 3, h, w) in [0, 1], or for each video a list of
    Pillow's images, or latents (b, c, k, h, w)."""

    frames: np.ndarray | Tensor | list[list[Image]]


class TextToVideoPipeline(PipelineFolderMixin, DiffusionPipeline):
    """Generates videos with a trained network.

    With one generator per video and `batch_size=1`, a video is the same to the last bit whichever others are generated
    in the same call, on one machine with one number of threads.

    Args:
        text_encoder, tokenizer: for networks with text conditioning. None: `text_encoder_name` is loaded at its first
            use.
        text_encoder_name, text_sha256: folder or hub name of the text encoder, and the fingerprint of its weights.
        model_card: text of the README.md of a saved or published pipeline.

    Raises InputError where scheduler, VAE and network do not belong together.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
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
        negative_prompt: str | Sequence[str] | None = None,
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
        """Generate one video per prompt or class label, or `num_videos` with an unconditional network.

        Args:
            prompt: one or several, for networks with text conditioning.
            negative_prompt: prompt that guidance leads away from; one for all videos, one per video, or none (None).
            class_label: a class by its name or, where no class has that name, by its index.
            image: the first frame, float (3, h, w) in [-1, 1]; one for all videos, or one per video. For networks with
                first-frame conditioning.
            num_frames, height, width: sizes that the VAE takes (OD-VAE: 4k+1 frames, multiples of 8 pixels); by default
                those of training.
            guidance_scale: scale of classifier-free guidance; up to 1 there is none.
            guidance_interval, guidance_rescale: see `ldm.sampling.guidance.Guidance`.
            generator: one for all videos, or one per video, which makes each independent of the others.
            batch_size: videos computed together. More than 1 is faster for small networks, but rounding then depends on
                a video's position in its batch. The last batch is padded to the same size.
            truncate_prompts: truncate prompts of too many tokens, as captions in training; else they are an error.
            output_type: "np", "pt", "pil" or "latent", see `TextToVideoOutput`.

        Raises InputError for invalid arguments, before anything is computed.
        """
        check_scheduler(self.scheduler, self.objective)
        check_output_type(output_type)
        check_counts({"num_inference_steps": num_inference_steps, "batch_size": batch_size})
        sizes = {"num_videos": num_videos, "num_frames": num_frames, "height": height, "width": width}
        check_counts(sizes, optional=True)
        check_steps(self.scheduler, num_inference_steps)
        guidance = Guidance(guidance_scale, guidance_interval, guidance_rescale)
        count = count_videos(self.transformer, prompt, negative_prompt, class_label, num_videos)
        generators = generators_of(generator, count)
        shape = latent_shape(self.transformer, self.vae, num_frames, height, width)
        self._check_prompts(count, prompt, negative_prompt, truncate_prompts)
        condition, unconditional = self._conditions(count, prompt, negative_prompt, class_label, image, shape)
        noise = self._initial_noise(shape, generators)
        latents = self._denoise(noise, condition, unconditional, num_inference_steps, guidance, batch_size)
        if condition.first_frame is not None and image is not None:
            latents[:, :, :1] = condition.first_frame  # exactly the given frame
        frames = latents if output_type == "latent" else self._decode(latents, output_type)
        self.maybe_free_model_hooks()
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
        """Latents of all videos, `batch_size` at a time; the last batch is padded with repeated videos."""
        batches = []
        for first in range(0, len(noise), batch_size):
            rows = torch.arange(first, first + batch_size, device=noise.device) % len(noise)
            chosen = condition.map(itemgetter(rows))
            chosen_unconditional = None if unconditional is None else unconditional.map(itemgetter(rows))
            predict = guided_prediction(self.transformer, chosen, chosen_unconditional, guidance)
            batches.append(
                sample_latents(predict, noise[rows], self.scheduler, self.objective, steps, guidance, self.progress_bar)
            )
        return torch.cat(batches)[: len(noise)]

    def _initial_noise(self, shape: tuple[int, ...], generators: Sequence[torch.Generator | None]) -> Tensor:
        rows = [
            torch.randn(shape, generator=g, device=g.device if g else None).to(self._execution_device)
            for g in generators
        ]
        return torch.stack(rows).to(self.transformer.dtype)

    def _conditions(
        self, count: int, prompt: Any, negative_prompt: Any, class_label: Any, image: Any, shape: tuple[int, ...]
    ) -> tuple[Condition, Condition | None]:
        """The conditions, and the negative or empty ones for guidance (None for an unconditional network)."""
        config, device = self.transformer.config, self._execution_device
        first, given = self._first_frames(count, image, shape)
        if config.text_width is not None:
            negative = negative_prompts_of(negative_prompt, count)
            embedded = [self._encode_one_by_one(captions) for captions in (as_texts(prompt, "prompt"), negative)]
            conditional, unconditional = (Condition(text, mask, None, first, given) for text, mask in embedded)
            return conditional, unconditional
        if config.class_names is not None:
            labels = torch.tensor(class_indices(class_label, config.class_names), device=device)
            none = torch.full_like(labels, NO_LABEL)
            return Condition(None, None, labels, first, given), Condition(None, None, none, first, given)
        return Condition(first_frame=first, first_frame_given=given), None

    def _check_prompts(self, count: int, prompt: Any, negative_prompt: Any, truncate: bool) -> None:
        if self.transformer.config.text_width is None:
            return
        self._load_text_encoder()
        limit = sys.maxsize if truncate else self.transformer.config.text_tokens
        negative = [text for text in negative_prompts_of(negative_prompt, count) if text]
        check_prompts(self.tokenizer, [*as_texts(prompt, "prompt"), *negative], limit)

    def _encode_one_by_one(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings and masks; each caption is encoded alone, so that rounding does not depend on the others."""
        with_what = (self.transformer.config.text_tokens, self._execution_device)
        encode = functools.partial(encode_captions, self.tokenizer, self.text_encoder)
        unique = {caption: encode([caption], *with_what) for caption in dict.fromkeys(captions)}
        text, masks = zip(*(unique[caption] for caption in captions), strict=True)
        return torch.cat(text), torch.cat(masks)

    def _first_frames(self, count: int, image: Any, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        """Normalized latents (b, c, 1, h, w) of the images, and whether they are given (b,).

        None for networks without first-frame conditioning; zeros and False where no image is given.
        """
        if not self.transformer.config.first_frame:
            if image is not None:
                raise InputError("image was given, but this network was not trained to take a first frame")
            return None, None
        c, _, h, w = shape
        device = self._execution_device
        if image is None:
            return torch.zeros(count, c, 1, h, w, device=device), torch.zeros(count, dtype=torch.bool, device=device)
        single = isinstance(image, Tensor) and image.ndim == 3
        if not isinstance(image, (Tensor, Sequence)) or not all(isinstance(frame, Tensor) for frame in image):
            raise InputError(f"image must be a tensor (3, h, w) in [-1, 1], or a list of them, found {type(image)}")
        images = one_for_each(image, single, count, f"{count} videos need one image or {count}")
        size = (3, h * self.vae.spatial_compression_ratio, w * self.vae.spatial_compression_ratio)
        for i, frame in enumerate(images):
            if tuple(frame.shape) != size:
                raise InputError(f"image {i} is {tuple(frame.shape)}, but the videos' first frames are {size}")
        encoded = [self._encode_image(frame) for frame in images]
        return torch.cat(encoded), torch.ones(count, dtype=torch.bool, device=device)

    def _encode_image(self, image: Tensor) -> Tensor:
        """An image (3, h, w) in [-1, 1] -> normalized latents (1, c, 1, h, w): the posterior's mean."""
        video = image.to(self._execution_device, self.vae.dtype)[None, :, None]
        mean, std = (
            torch.tensor(values, device=video.device).view(1, -1, 1, 1, 1)
            for values in (self.transformer.config.latents_mean, self.transformer.config.latents_std)
        )
        return (self.vae.encode(video).latent_dist.mean.float() - mean) / std

    def _decode(self, latents: Tensor, output_type: str) -> np.ndarray | Tensor | list[list[Image]]:
        """Frames of the output type. Each video is decoded alone, so that rounding does not depend on the others."""
        videos = [torch.cat(list(self.decode_in_pieces(video[None])), dim=2) for video in latents]
        video = torch.cat(videos) / 2 + 0.5  # (b, 3, t, h, w)
        if output_type == "pt":
            return video.transpose(1, 2)
        frames = video.permute(0, 2, 3, 4, 1).cpu().numpy()
        return [VideoProcessor.numpy_to_pil(one) for one in frames] if output_type == "pil" else frames

    def decode_in_pieces(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents (b, c, k, h, w) of output_type="latent" -> pieces (b, 3, t_j, H, W) of the videos, in [-1, 1].

        Memory does not depend on the videos' length.
        """
        return decode_in_pieces(
            self.vae, latents, self.transformer.config.latents_mean, self.transformer.config.latents_std
        )

    def _load_text_encoder(self) -> None:
        """Load a text encoder that was saved by reference. Raises InputError where its weights are not the same."""
        if self.text_encoder is not None:
            return
        name, expected = self.config.text_encoder_name, self.config.text_sha256
        if name is None:
            raise InputError("this pipeline has neither a text encoder nor the name of one: export the run again")
        text = load_text_encoder(name)
        found = weights_fingerprint(text.model)
        if expected is not None and found != expected:
            raise InputError(
                f"{name} is not the text encoder the network was trained with: its weights' sha256 is {found[:16]}..., "
                f"the expected one {expected[:16]}..."
            )
        self.register_modules(text_encoder=text.model.to(self._execution_device), tokenizer=text.tokenizer)
