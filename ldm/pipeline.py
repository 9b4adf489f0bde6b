"""Text-, class-, image-conditional and unconditional video generation, as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ldm.diffusion.objective import objective_of
from ldm.diffusion.settings import ObjectiveSettings
from ldm.networks.conditioning import NO_LABEL, Condition
from ldm.networks.network import Network
from ldm.sampling.denoising import CALLBACK_TENSORS, StepCallback, denoise
from ldm.sampling.guidance import Guidance
from ldm.sampling.pipeline_folder import PipelineFolderMixin
from ldm.sampling.pipeline_frames import PipelineFramesMixin
from ldm.sampling.pipeline_inputs import (
    as_texts,
    check_callback,
    check_components,
    check_counts,
    check_latents,
    check_output_type,
    check_same_latents,
    class_indices,
    count_videos,
    generators_of,
    latent_shape,
    negative_prompts_of,
)
from ldm.sampling.pipeline_lora import LoraMixin
from ldm.sampling.pipeline_text import PipelineTextMixin, check_embeddings, check_one_of, text_mask
from ldm.sampling.schedulers import check_scheduler, schedule_steps
from odvae.video_vae import VideoVAE


@dataclass
class TextToVideoOutput(BaseOutput):
    """`frames`: numpy (b, t, h, w, 3) in [0, 1], or torch (b, t, 3, h, w) in [0, 1], or for each video a list of
    Pillow's images, or latents (b, c, k, h, w)."""

    frames: np.ndarray | Tensor | list[list[Image]]


class TextToVideoPipeline(PipelineFolderMixin, PipelineTextMixin, PipelineFramesMixin, LoraMixin, DiffusionPipeline):
    """Generates videos with a trained network.

    With one generator per video and `batch_size=1`, a video is the same to the last bit whichever others are generated
    in the same call, on one machine with one number of threads.

    Args:
        vae, transformer, scheduler: None in a pipeline that only encodes prompts; without the VAE it makes latents.
        text_encoder, tokenizer: for networks with text conditioning. None: `text_encoder_name` is loaded at its first
            use; or embeddings are given in place of prompts.
        text_encoder_name, text_sha256: folder or hub name of the text encoder, and the fingerprint of its weights.
        model_card: text of the README.md of a saved or published pipeline.

    Raises InputError where scheduler, VAE and network do not belong together.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012 (diffusers' name and type)
    _callback_tensor_inputs = CALLBACK_TENSORS

    def __init__(
        self,
        vae: VideoVAE | None,
        transformer: Network | None,
        scheduler: SchedulerMixin | None,
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
        self._interrupt, self._guidance_scale, self._num_timesteps = False, 1.0, 0
        if transformer is not None and scheduler is not None:
            check_scheduler(scheduler, self.objective)
        if transformer is not None and vae is not None:
            check_same_latents(vae, transformer)

    @property
    def objective(self) -> ObjectiveSettings:
        return objective_of(self.transformer.config)

    @property
    def guidance_scale(self) -> float:
        """Of the running or last call; a callback changes it by setting `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Of the running or last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the remaining steps are left out; a callback sets `_interrupt`."""
        return self._interrupt

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
        num_videos_per_prompt: int = 1,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        max_sequence_length: int | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> TextToVideoOutput | tuple:
        """Generate one video per prompt or class label, or `num_videos` with an unconditional network.

        Args:
            prompt: one or several, for networks with text conditioning.
            negative_prompt: prompt that guidance leads away from; one for all prompts, one per prompt, or none (None).
            class_label: a class by its name or, where no class has that name, by its index.
            image: the first frame, a PIL image of any size (scaled to cover the videos' size, and center cropped) or a
                tensor (3, h, w) in [-1, 1] of that size; one for all videos, or one per video. For networks with
                first-frame conditioning.
            num_frames, height, width: sizes that the VAE takes (4x8x8: 4k+1 frames, multiples of 8 pixels); by default
                those of training.
            num_inference_steps: steps of the scheduler; more are slower and more exact.
            guidance_scale: scale of classifier-free guidance; up to 1 there is none.
            guidance_interval, guidance_rescale: see `ldm.sampling.guidance.Guidance`.
            generator: one for all videos, or one per video, which makes each independent of the others.
            batch_size: videos computed together. More than 1 is faster for small networks, but rounding then depends on
                a video's position in its batch. The last batch is padded to the same size.
            truncate_prompts: truncate prompts of too many tokens, as captions in training; else they are an error.
            output_type: "np", "pt", "pil" or "latent", see `TextToVideoOutput`.
            num_videos_per_prompt: videos of each prompt or class label, one after the other in the result.
            latents: the noise to start from, normalized latents (videos, c, k, h, w), in place of `generator`'s.
            prompt_embeds, negative_prompt_embeds: in place of prompts, see `encode_prompt`.
            max_sequence_length: tokens to which prompts are padded or truncated, at most those of training.
            timesteps, sigmas: the steps to take in place of `num_inference_steps`, for schedulers that take them.
            callback_on_step_end: called after each step as `callback(pipeline, step, timestep, tensors)`; tensors that
                it returns in a dict replace those of the loop.
            callback_on_step_end_tensor_inputs: names of these tensors: latents, prompt_embeds, negative_prompt_embeds.
            return_dict: return a `TextToVideoOutput` with the videos in `frames`; otherwise a tuple of them alone.

        Raises InputError for invalid arguments, before anything is computed.
        """
        check_components(
            self, "transformer", "scheduler", *(["vae"] if output_type != "latent" or image is not None else [])
        )
        check_scheduler(self.scheduler, self.objective)
        check_output_type(output_type)
        counts = {"num_inference_steps": num_inference_steps, "batch_size": batch_size}
        check_counts({**counts, "num_videos_per_prompt": num_videos_per_prompt})
        sizes = {"num_videos": num_videos, "num_frames": num_frames, "height": height, "width": width}
        check_counts({**sizes, "max_sequence_length": max_sequence_length}, optional=True)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, CALLBACK_TENSORS)
        guidance = Guidance(guidance_scale, guidance_interval, guidance_rescale)
        texts = (prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        count = num_videos_per_prompt * count_videos(self.transformer, *texts, class_label, num_videos)
        generators = generators_of(generator, count)
        shape = latent_shape(self.transformer, self.vae, num_frames, height, width)
        check_latents(latents, (count, *shape))
        positions = shape[1] * shape[2] * shape[3]
        schedule = schedule_steps(self.scheduler, num_inference_steps, positions, self.objective, timesteps, sigmas)
        self._guidance_scale, self._interrupt = guidance.scale, False
        embeds: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.transformer.config.text_width is not None:
            guided = self.do_classifier_free_guidance
            given = (num_videos_per_prompt, prompt_embeds, negative_prompt_embeds, max_sequence_length)
            embeds = self.encode_prompt(prompt, negative_prompt, guided, *given, truncate_prompts)
        conditions = self._conditions(count, embeds, class_label, image, shape)
        if latents is None:
            latents = self._initial_noise(shape, generators)
        noise = latents.to(self._execution_device, self.transformer.dtype)
        callback = StepCallback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        made = denoise(self, noise, conditions, schedule, guidance, batch_size, callback)
        if image is not None:
            made[:, :, :1] = conditions[0].first_frame  # exactly the given frame
        frames = made if output_type == "latent" else self._decode(made, output_type)
        self.maybe_free_model_hooks()
        return TextToVideoOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        max_sequence_length: int | None = None,
        truncate_prompts: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (videos, tokens, width) of the prompts and, for guidance, of the negative or empty ones.

        Tokens that are no text (padding) are zeros; that is how networks recognize them. Embeddings that are given are
        only repeated. Raises InputError for texts and embeddings that the network does not take, and where the text
        encoder is missing.
        """
        width = None if self.transformer is None else self.transformer.config.text_width
        check_one_of({"prompt": prompt, "prompt_embeds": prompt_embeds})
        check_one_of({"negative_prompt": negative_prompt, "negative_prompt_embeds": negative_prompt_embeds})
        prompts = as_texts(prompt, "prompt") if prompt_embeds is None else []
        rows = len(prompts) if prompt_embeds is None else len(check_embeddings(prompt_embeds, "prompt_embeds", width))
        embeds_negatives = do_classifier_free_guidance and negative_prompt_embeds is None
        negatives = negative_prompts_of(negative_prompt, rows) if embeds_negatives else []
        tokens = max_sequence_length if prompt_embeds is None else prompt_embeds.shape[1]
        cut = truncate_prompts or max_sequence_length is not None
        embedded = self._embed_texts(prompts, negatives, tokens, cut)
        if prompt_embeds is None:
            prompt_embeds = embedded[:rows]
        if embeds_negatives:
            negative_prompt_embeds = embedded[len(prompts) :]
        prompt_embeds = prompt_embeds.repeat_interleave(num_videos_per_prompt, dim=0)
        if negative_prompt_embeds is not None:
            negative_prompt_embeds = negative_prompt_embeds.repeat_interleave(num_videos_per_prompt, dim=0)
            check_embeddings(negative_prompt_embeds, "negative_prompt_embeds", width, like=prompt_embeds)
        return prompt_embeds, negative_prompt_embeds

    def _initial_noise(self, shape: tuple[int, ...], generators: Sequence[torch.Generator | None]) -> Tensor:
        rows = [
            torch.randn(shape, generator=g, device=g.device if g else None).to(self._execution_device)
            for g in generators
        ]
        return torch.stack(rows).to(self.transformer.dtype)

    def _conditions(
        self,
        count: int,
        embeds: tuple[Tensor | None, Tensor | None],
        class_label: Any,
        image: Any,
        shape: tuple[int, ...],
    ) -> tuple[Condition, Condition | None]:
        """The conditions, and the negative or empty ones for guidance (None for an unconditional network)."""
        config, device = self.transformer.config, self._execution_device
        first, given = self._first_frames(count, image, shape)
        if config.text_width is not None:
            conditional, unconditional = (
                None if text is None else Condition(text.to(device), text_mask(text).to(device), None, first, given)
                for text in embeds
            )
            assert conditional is not None  # encode_prompt made it
            return conditional, unconditional
        if config.class_names is not None:
            labels = torch.tensor(class_indices(class_label, config.class_names), device=device)
            labels = labels.repeat_interleave(count // len(labels))
            none = torch.full_like(labels, NO_LABEL)
            return Condition(None, None, labels, first, given), Condition(None, None, none, first, given)
        return Condition(first_frame=first, first_frame_given=given), None
