"""One optimizer step of the VAE's training, and what is applied to the network before the first."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from odvae.architecture.layers import keep_channels_last
from odvae.losses import VAELoss
from odvae.measuring import count_flops
from odvae.regularizers.regularized_vae import LatentChanges
from odvae.running.errors import InputError
from odvae.training.compilation import compile_blocks
from odvae.training.optimization import gradients_synced_at
from odvae.training.recomputation import enable_checkpointing
from odvae.training.settings import OptimizationSettings
from odvae.training.state import TrainingState
from odvae.training.throughput import StepMeter
from odvae.vae_batches import Batch
from odvae.video_vae import VideoVAE


def training_step(
    state: TrainingState,
    vae_loss: VAELoss,
    batches: Iterator[Batch],
    meter: StepMeter[Batch],
    seed: int,
    step: int,
    changes: LatentChanges | None = None,
) -> tuple[dict[str, Tensor], Tensor, float]:
    """Optimizer step `step` (counted from 1) of the VAE and, where the GAN is active, of its discriminator.

    With `changes`, `state` trains their `trained_module()`, and they draw what happens to the latents in this step.
    Returns the terms of the loss by name, of the last micro-step, the gradient's norm, and the learning rate. Nothing
    in it waits for a GPU.
    """
    accelerator, accumulated = state.accelerator, state.optimization.gradient_accumulation_steps
    for micro_step in range(1, accumulated + 1):
        with meter.waiting_for_data():
            batch = next(batches)
        video, noise = batch.video, batch.posterior_noise(state.network, seed)
        target, *drawn = (video,) if changes is None else changes.draw(batch, step)
        sync = micro_step == accumulated
        with gradients_synced_at(accelerator, state.model, sync):
            with accelerator.autocast():
                reconstruction, mean, logvar = state.model(video, noise, *drawn)
            loss, terms = vae_loss(reconstruction, target, mean, logvar, step, video.numel())
            accelerator.backward(loss / accumulated)
        terms |= vae_loss.discriminator_step(reconstruction, target, step, sync)
        meter.count(batch)
    gradient_norm, learning_rate = state.apply_gradients(step, terms)
    vae_loss.apply_gradients(step)
    return terms, gradient_norm, learning_rate


class ReconstructionCost:
    """Model FLOPs and frames of a micro-step, for a StepMeter; each shape of videos is counted once, on meta tensors.

    The discriminator, LPIPS and regularizers are not counted.
    """

    def __init__(self, network: VideoVAE) -> None:
        self.network: Any = copy.deepcopy(network).to("meta")
        self._flops: dict[tuple[int, ...], int] = {}

    def __call__(self, batch: Batch) -> tuple[int, int]:
        shape = tuple(batch.video.shape)
        if shape not in self._flops:
            with torch.no_grad(), torch.device("meta"):
                video, noise = torch.empty(shape), torch.empty(shape[0], *batch.latent_shape(self.network))
                self._flops[shape] = 3 * count_flops(lambda: self.network.reconstruct(video, noise))
        return self._flops[shape], shape[0] * shape[2]


def prepare_network(network: nn.Module, optimization: OptimizationSettings) -> None:
    """Apply channels-last layout, gradient checkpointing and compilation, in place; a call is `reconstruct`.

    DDP, FSDP and accelerate's autocast act where a module is called, not on its other methods.
    """
    network.forward = network.reconstruct
    keep_channels_last(network)
    enable_checkpointing(network, optimization.gradient_checkpointing)
    if optimization.compile:
        # Block by block, without the last convolution: the GAN needs the gradient at that convolution alone, for which
        # a network compiled as a whole would run its whole backward pass.
        compile_blocks(blocks_of(network))


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The levels and middle blocks of encoder and decoder. Raises InputError for a VAE without such modules."""
    names = ("encoder.down_blocks", "encoder.mid_block", "decoder.up_blocks", "decoder.mid_block")
    try:
        found = [network.get_submodule(name) for name in names]
    except AttributeError as error:
        raise InputError(f"compile=true is supported only for an AutoencoderKL or OD-VAE: {error}") from None
    return [block for part in found for block in (part if isinstance(part, nn.ModuleList) else [part])]
