"""What a phase of the VAE's training minimises, and the gradient of it."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from odvae.gan import Adversary
from odvae.losses import LossSettings, fidelity_loss, kl_per_pixel
from odvae.lpips import LPIPS, load_lpips
from odvae.training.optimization import OptimizationSettings
from odvae.video_vae import VideoVAE


class Objective:
    """Fidelity + KL, and the adversarial term once it has begun.

    Make it before the checkpoint is loaded: the adversary is part of it.
    """

    def __init__(
        self,
        settings: LossSettings,
        network: VideoVAE,
        optimization: OptimizationSettings,
        accelerator: Accelerator,
    ) -> None:
        self.settings, self.accelerator = settings, accelerator
        self.perceptual: LPIPS | None = None
        self.adversary: Adversary | None = None
        if settings.lpips is not None:
            with accelerator.main_process_first():  # which downloads the weights
                self.perceptual = load_lpips(settings.lpips.network, settings.lpips.weights, accelerator.device)
        if settings.adversary is not None:
            last_weight = network.decoder.conv_out.weight
            self.adversary = Adversary(settings.adversary, optimization, accelerator, last_weight)

    def __call__(
        self, reconstruction: Tensor, video: Tensor, mean: Tensor, logvar: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss with the objective's gradient, and the terms by name (detached) for the log.

        All that looks at pixels is differentiated by them first. So LPIPS and discriminator are run back through once,
        whatever is measured on the way, and their activations are gone before the decoder's backward pass begins.
        """
        pixels = reconstruction.detach().float().requires_grad_()
        with self.accelerator.autocast():
            fidelity, parts = fidelity_loss(pixels, video, self.settings, self.perceptual)
        (gradient,) = torch.autograd.grad(fidelity, pixels)
        if self.adversary is not None and self.adversary.begun(step):
            with self.accelerator.autocast():
                adversarial = self.adversary.deceive(pixels)
            (adversarial_gradient,) = torch.autograd.grad(adversarial, pixels)
            gradient = self.adversary.weigh(reconstruction, gradient, adversarial_gradient)
            parts |= {"adversarial": adversarial.detach(), "balance": self.adversary.state.balance.clone()}
        divergence = kl_per_pixel(mean, logvar, video)
        parts = {"loss": (fidelity + self.settings.kl * divergence).detach(), **parts, "kl": divergence.detach()}
        return (reconstruction.float() * gradient).sum() + self.settings.kl * divergence, parts

    def train_adversary(self, reconstruction: Tensor, video: Tensor, step: int, sync: bool) -> dict[str, Tensor]:
        """The discriminator's part of a micro-step, where it has begun; its numbers for the log."""
        if self.adversary is None or not self.adversary.begun(step):
            return {}
        return self.adversary.learn(video, reconstruction, sync)

    def apply_gradients(self, step: int) -> None:
        """The discriminator's part of an optimiser step."""
        if self.adversary is not None and self.adversary.begun(step):
            self.adversary.apply_gradients(step)
