"""Validation during training: the held-out loss by noise level, and samples of fixed held-out conditions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator

from ldm.networks.network import Network, predict
from ldm.sampling.decode import decode_in_pieces
from ldm.sampling.guidance import Guidance, guided_prediction
from ldm.sampling.schedulers import make_scheduler, sample_latents
from ldm.training.diffusion_batches import LatentData, SampleLoss
from odvae.training.tracking import MetricsLog
from odvae.video.frame_grid import frame_grid
from odvae.video.pixels import to_uint8
from odvae.video_vae import VideoVAE

QUARTERS = ("q1", "q2", "q3", "q4")
VISUALIZED_STEPS, VISUALIZED_GUIDANCE = 20, 3.0


@torch.no_grad()
def validate(
    network: Network,
    loss: SampleLoss,
    data: LatentData,
    batch_sizes: Mapping[str, int],
    clips: int,
    log: MetricsLog,
    step: int,
    accelerator: Accelerator,
) -> None:
    """Log the loss on held-out clips, and in each quarter of the training noise levels (q1 the lowest).

    `batch_sizes`: samples per rank of a batch of each bucket.
    Every rank computes the same number of batches, as sharded networks need; clips that pad the batches are not
    counted.
    """
    total, left = torch.zeros(5, device=accelerator.device), clips  # four sums of losses, and the number of clips
    for bucket, entries in data.latents.held_out.items():
        chosen = min(left, len(entries))
        left -= chosen
        for numbers in _equal_shares(chosen, batch_sizes[bucket], accelerator.process_index, accelerator.num_processes):
            collated = data.held_out(bucket, [number % chosen for number in numbers])
            counts = torch.tensor([number < chosen for number in numbers], device=accelerator.device)
            total[4] += counts.sum()
            for quarter, batch in enumerate(data.validation_batches(collated)):
                with accelerator.autocast():
                    total[quarter] += (loss(partial(predict, network), batch) * counts).sum()
    *sums, count = accelerator.reduce(total, "sum").tolist()
    means = [value / count for value in sums]
    quarters = {f"held_out_loss_{name}": mean for name, mean in zip(QUARTERS, means, strict=True)}
    log.row(step, held_out_loss=sum(means) / 4, **quarters)


def _equal_shares(count: int, batch_size: int, rank: int, ranks: int) -> Iterator[list[int]]:
    """Batches of indices 0 .. count - 1 for one rank, as many on every rank; indices from `count` on are padding."""
    batch_size = min(batch_size, math.ceil(count / ranks)) or 1
    for first in range(0, count, ranks * batch_size):
        yield list(range(first + rank * batch_size, first + (rank + 1) * batch_size))


@torch.no_grad()
def log_samples(
    network: Network, vae: VideoVAE, data: LatentData, count: int, log: MetricsLog, step: int, accelerator: Accelerator
) -> None:
    """Log videos sampled with the first held-out clips' conditions, side by side and as strips.

    The noise is the same every time. All ranks compute the same, as sharded networks need; the main process decodes
    and logs.
    """
    objective, videos = data.objective, []
    scheduler = make_scheduler("euler" if objective.prediction == "flow" else "ddim", objective)
    guidance = Guidance(VISUALIZED_GUIDANCE)
    for noise, condition in data.visualized(count):
        unconditional = data.unconditional(condition) if condition.supports_guidance else None
        guided = guided_prediction(network, condition, unconditional, guidance)
        latents = sample_latents(guided, noise, scheduler, objective, VISUALIZED_STEPS, guidance)
        if accelerator.is_main_process:
            mean, std = network.config.latents_mean, network.config.latents_std
            pieces = list(decode_in_pieces(vae.to(accelerator.device), latents.float(), mean, std))
            videos.append(to_uint8(torch.cat(pieces, dim=2)[0]))
    vae.to("cpu")  # it is needed rarely
    if accelerator.is_main_process:
        log.image(step, "strips", frame_grid(videos))
        log.video(step, "videos", np.concatenate(videos, axis=2), data.frame_rate())
