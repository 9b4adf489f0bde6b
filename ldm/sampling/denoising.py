"""The sampling loop of the pipeline: all videos step by step, in batches, with diffusers' callbacks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ldm.networks.conditioning import Condition
from ldm.sampling.guidance import Guidance, guided_prediction
from ldm.sampling.pipeline_text import text_mask

CALLBACK_TENSORS = ["latents", "prompt_embeds", "negative_prompt_embeds"]


@dataclass(frozen=True)
class StepCallback:
    """What is called after each step with (pipeline, step, timestep, tensors), and the names of those tensors.

    It may return any of them in a dict: the next steps go on from those.
    """

    function: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]] | None
    names: Sequence[str]


def denoise(
    pipeline: Any,
    noise: Tensor,
    conditions: tuple[Condition, Condition | None],
    schedule: tuple[SchedulerMixin, Tensor],
    guidance: Guidance,
    batch_size: int,
    callback: StepCallback,
) -> Tensor:
    """Latents of all videos of a TextToVideoPipeline's call.

    Each step takes the videos `batch_size` at a time; the last batch is padded with repeated ones.

    `conditions` are those of the videos and, for guidance, the negative or empty ones. Each batch has a copy of the
    scheduler, since schedulers keep earlier predictions. The scale of guidance is read from the pipeline in each step,
    so that a callback can change it.
    """
    scheduler, times = schedule
    starts = range(0, len(noise), batch_size)
    batches = [torch.arange(i, i + batch_size, device=noise.device) % len(noise) for i in starts]
    schedulers = [copy.deepcopy(scheduler) for _ in batches]
    latents, (condition, unconditional) = noise, conditions
    pipeline._num_timesteps = len(times)
    for step, (timestep, time) in enumerate(
        zip(pipeline.progress_bar(scheduler.timesteps), times.tolist(), strict=True)
    ):
        if pipeline.interrupt:
            continue
        guidance = replace(guidance, scale=pipeline.guidance_scale)
        parts = []
        for indices, batch_scheduler in zip(batches, schedulers, strict=True):
            take = itemgetter(indices)
            batch_unconditional = None if unconditional is None else unconditional.map(take)
            predict = guided_prediction(pipeline.transformer, condition.map(take), batch_unconditional, guidance)
            predicted = predict(latents[indices], time, guidance.applies_at(time))
            parts.append(batch_scheduler.step(predicted, timestep, latents[indices], return_dict=False)[0])
        latents = torch.cat(parts)[: len(noise)]
        if callback.function is not None:
            latents, condition, unconditional = _called_back(
                pipeline, callback, step, timestep, latents, condition, unconditional
            )
    return latents


def _called_back(
    pipeline: Any,
    callback: StepCallback,
    step: int,
    timestep: Tensor,
    latents: Tensor,
    condition: Condition,
    unconditional: Condition | None,
) -> tuple[Tensor, Condition, Condition | None]:
    """Latents and conditions after the callback, which may have replaced them."""
    tensors = {
        "latents": latents,
        "prompt_embeds": condition.text,
        "negative_prompt_embeds": None if unconditional is None else unconditional.text,
    }
    assert callback.function is not None
    returned = callback.function(pipeline, step, timestep, {name: tensors[name] for name in callback.names}) or {}
    condition = _with_text(condition, returned.get("prompt_embeds"))
    if unconditional is not None:
        unconditional = _with_text(unconditional, returned.get("negative_prompt_embeds"))
    return returned.get("latents", latents), condition, unconditional


def _with_text(condition: Condition, text: Tensor | None) -> Condition:
    if text is None or text is condition.text:
        return condition
    return replace(condition, text=text, text_mask=text_mask(text))
