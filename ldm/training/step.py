"""One optimizer step of the latent diffusion model's training, and what is applied to the network before the first."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ldm.networks.attention_backends import use_backend
from ldm.networks.network import predict
from ldm.training.alignment import Alignment
from ldm.training.diffusion_batches import Batch, SampleLoss
from ldm.training.settings import LDMSettings
from odvae.training.compilation import compile_blocks
from odvae.training.optimization import gradients_synced_at
from odvae.training.recomputation import enable_checkpointing
from odvae.training.state import TrainingState
from odvae.training.throughput import StepMeter


def training_step(
    state: TrainingState,
    per_sample_loss: SampleLoss,
    batches: Iterator[Batch],
    meter: StepMeter[Batch],
    step: int,
    alignment: Alignment | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Optimizer step `step` (counted from 1).

    Returns this rank's mean loss (without the alignment's), the gradient's norm, and the learning rate. Nothing in it
    waits for a GPU, but for the decoder with `alignment`; `state` then trains an AlignedNetwork.
    """
    accelerator, accumulated = state.accelerator, state.optimization.gradient_accumulation_steps
    loss_sum = torch.zeros((), device=accelerator.device)
    for micro_step in range(1, accumulated + 1):
        with meter.waiting_for_data():
            batch = next(batches)
        with gradients_synced_at(accelerator, state.model, micro_step == accumulated):
            with accelerator.autocast():
                if alignment is None:
                    losses, distances = per_sample_loss(partial(predict, state.model), batch), None
                else:
                    losses, distances = alignment.losses(state.model, per_sample_loss, batch)
            loss = (batch.weight * losses).mean()
            total = loss if distances is None else loss + distances.mean()
            accelerator.backward(total / accumulated)
        loss_sum += loss.detach() / accumulated
        meter.count(batch)
    gradient_norm, learning_rate = state.apply_gradients(step, {"loss": loss_sum})
    return loss_sum, gradient_norm, learning_rate


def apply_model_options(network: nn.Module, settings: LDMSettings) -> None:
    """Apply attention back end, gradient checkpointing and compilation with diffusers' methods."""
    use_backend(network, settings.attention_backend)
    enable_checkpointing(network, settings.optimization.gradient_checkpointing)
    if settings.optimization.compile:
        repeated = getattr(network, "_repeated_blocks", None) or ()  # as diffusers' compile_repeated_blocks
        compile_blocks(module for module in network.modules() if type(module).__name__ in repeated)
