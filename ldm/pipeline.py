"""Text to video as a diffusers pipeline: OD-VAE, DiT, scheduler and text encoder in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ldm.dit import DiT
from ldm.text import encode_captions
from odvae.inputs import SPACE_FACTOR, TIME_FACTOR
from odvae.model import ODVAE
from odvae.shared.clips import check_frames
from odvae.shared.errors import InputError


@dataclass
class TextToVideoOutput(BaseOutput):
    """`frames`: numpy (b, t, h, w, 3) in [0, 1], or torch (b, t, 3, h, w) in [0, 1], or latents."""

    frames: np.ndarray | Tensor


class TextToVideoPipeline(DiffusionPipeline):
    """Generates videos from prompts.

    The initial noise is drawn a video from its own generator, on the generator's device, so a video is the same
    whichever others are made in the same call.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        vae: ODVAE,
        transformer: DiT,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, transformer=transformer, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str = "",
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> TextToVideoOutput | tuple:
        """Generate one video a prompt.

        Args:
            num_frames, height, width: 4k+1 frames, multiples of 8 pixels; by default what the model was trained on.
            guidance_scale: 1 follows the prompt as trained; larger follows it more (classifier-free guidance).
            generator: one for all videos, or one each, which makes each independent of the others.
            output_type: "np", "pt" or "latent".

        Raises InputError for sizes the VAE cannot make, an unknown output type or a wrong number of generators.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if output_type not in ("np", "pt", "latent"):
            raise InputError(f"output_type={output_type!r}: allowed are np, pt, latent")
        shape = self._latent_shape(num_frames, height, width)
        latents = self._initial_noise(len(prompts), shape, generator)
        text, text_mask = self._embed(prompts, negative_prompt, guidance_scale)

        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            sigma = timestep / self.scheduler.config.num_train_timesteps
            velocity = self._guided_velocity(latents, sigma, text, text_mask, guidance_scale)
            latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]

        frames = latents if output_type == "latent" else self._decode(latents, output_type)
        return TextToVideoOutput(frames=frames) if return_dict else (frames,)

    def _latent_shape(self, frames: int | None, height: int | None, width: int | None) -> tuple[int, int, int, int]:
        t, h, w = self.transformer.config.sample_size
        if frames is not None:
            t = (check_frames(frames) - 1) // TIME_FACTOR + 1
        for name, size in (("height", height), ("width", width)):
            if size is not None and (size < SPACE_FACTOR or size % SPACE_FACTOR):
                raise InputError(f"{name} must be a multiple of {SPACE_FACTOR}, found {size}")
        h = height // SPACE_FACTOR if height is not None else h
        w = width // SPACE_FACTOR if width is not None else w
        return self.transformer.config.latent_channels, t, h, w

    def _initial_noise(
        self, count: int, shape: tuple[int, ...], generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> Tensor:
        generators = [generator] * count if generator is None or isinstance(generator, torch.Generator) else generator
        if len(generators) != count:
            raise InputError(f"{count} prompts need one generator or {count}, found {len(generators)}")
        rows = [
            torch.randn(shape, generator=g, device=g.device if g else None).to(self._execution_device)
            for g in generators
        ]
        return torch.stack(rows).to(self.transformer.dtype)

    def _embed(self, prompts: list[str], negative_prompt: str, guidance_scale: float) -> tuple[Tensor, Tensor]:
        """Text of the prompts, and below it, for guidance, of the negative prompt once each."""
        captions = prompts if guidance_scale == 1 else [*prompts, *[negative_prompt] * len(prompts)]
        return encode_captions(self.tokenizer, self.text_encoder, captions, self.transformer.config.text_tokens)

    def _guided_velocity(
        self, latents: Tensor, sigma: Tensor, text: Tensor, text_mask: Tensor, guidance_scale: float
    ) -> Tensor:
        """v_empty + scale * (v_text - v_empty) (Ho & Salimans 2022, equation 6), both halves in one batch."""
        copies = len(text) // len(latents)
        stacked = latents.repeat(copies, 1, 1, 1, 1)
        velocity = self.transformer(stacked, sigma.expand(len(stacked)), text, text_mask)
        if copies == 1:
            return velocity
        with_text, without = velocity.chunk(2)
        return without + guidance_scale * (with_text - without)

    def _decode(self, latents: Tensor, output_type: str) -> np.ndarray | Tensor:
        config = self.transformer.config
        mean = torch.tensor(config.latents_mean, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        std = torch.tensor(config.latents_std, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        video = self.vae.decode((latents * std + mean).to(self.vae.dtype)).sample  # (b, 3, t, h, w)
        video = (video.float() / 2 + 0.5).clamp(0, 1)
        return video.transpose(1, 2) if output_type == "pt" else video.permute(0, 2, 3, 4, 1).cpu().numpy()
