"""What a training shows of itself: the held-out loss by noise level, and videos of fixed prompts."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import default_collate

from ldm.batches import LatentData, squared_errors
from ldm.decode import decode_in_pieces
from ldm.latents import load_entry
from ldm.network import Network
from ldm.samplers import Guidance, guided_answer, make_scheduler, sample_latents
from odvae.shared.pictures import strip
from odvae.shared.pixels import to_uint8
from odvae.shared.seeds import normal_per_sample
from odvae.shared.tracking import MetricsLog

QUARTERS = ("q1", "q2", "q3", "q4")
SHOWN_STEPS, SHOWN_GUIDANCE = 20, 3.0


@torch.no_grad()
def validate(
    network: Network,
    data: LatentData,
    batch_size: int,
    clips: int,
    log: MetricsLog,
    step: int,
    accelerator: Accelerator,
) -> None:
    """The squared error on held-out clips, in all and in each quarter of training's noise levels (q1 the least noisy).

    Every rank computes as many batches as the others, as sharded networks need; clips that fill up count nothing.
    """
    chosen = data.held_out[:clips]
    ranks, rank = accelerator.num_processes, accelerator.process_index
    batch_size = min(batch_size, math.ceil(len(chosen) / ranks))
    total = torch.zeros(4, device=accelerator.device)
    for first in range(0, len(chosen), ranks * batch_size):
        numbers = range(first + rank * batch_size, first + (rank + 1) * batch_size)
        entries = default_collate([load_entry(chosen[n % len(chosen)], n % len(chosen)) for n in numbers])
        counts = torch.tensor([n < len(chosen) for n in numbers], device=accelerator.device)
        for quarter, batch in enumerate(data.validation_batches(entries)):
            with accelerator.autocast():
                total[quarter] += squared_errors(network, batch)[counts].sum()
    means = (accelerator.reduce(total, "sum") / len(chosen)).tolist()
    quarters = {f"held_out_loss_{name}": mean for name, mean in zip(QUARTERS, means, strict=True)}
    log.row(step, held_out_loss=sum(means) / 4, **quarters)


@torch.no_grad()
def show_videos(
    network: Network, vae: nn.Module, data: LatentData, count: int, log: MetricsLog, step: int, accelerator: Accelerator
) -> None:
    """Videos of the first held-out clips' conditions, as strips under one another; from the same noise every time.

    All ranks compute the same, as sharded networks need; the main process decodes and logs.
    """
    objective, strips = data.objective, []
    scheduler = make_scheduler("euler" if objective.prediction == "flow" else "ddim", objective)
    guidance = Guidance(SHOWN_GUIDANCE)
    for number in range(min(count, len(data.held_out))):
        condition = data.condition_of(number)
        without = data.without_condition(condition) if condition.can_be_dropped else None
        shape = load_entry(data.held_out[number], number)["mean"].shape
        noise = normal_per_sample(shape, 0, "shown", [number], accelerator.device)
        answer = guided_answer(network, condition, without, guidance)
        latents = sample_latents(answer, noise, scheduler, objective, SHOWN_STEPS, guidance)
        if accelerator.is_main_process:
            mean, std = network.config.latents_mean, network.config.latents_std
            pieces = list(decode_in_pieces(vae.to(accelerator.device), latents.float(), mean, std))
            strips.append(to_uint8(torch.cat(pieces, dim=2)[0]))
    vae.to("cpu")  # it is needed only now and then
    if accelerator.is_main_process:
        log.picture(step, "videos", strip(strips))
