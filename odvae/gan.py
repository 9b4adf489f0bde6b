"""The 3D patch GAN: a discriminator that learns to tell reconstructions from videos, and what it says to the VAE.

Hinge loss (Lim & Ye 2017) and the adaptive weight of VQGAN (Esser et al. 2021, arXiv 2012.09841, equation 7); optional
LeCam regularization (Tseng et al. 2021, arXiv 2104.03310).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from odvae.settings import GANSettings
from odvae.training.optimization import (
    clipped_step,
    gradients_synced_at,
    learning_rate_at,
    make_optimizer,
    set_learning_rate,
)
from odvae.training.settings import OptimizationSettings


class PatchDiscriminator(nn.Module):
    """Video (b, 3, t, h, w) -> logits of patches (b, 1, t', h', w'): t' about t / 4, h' about h / 8; images are t = 1.

    The paper's layout (five 3x3x3 convolutions, 4.67M parameters), with group norm for its batch norm: a sample is
    judged by itself, whatever else is in the batch, on whatever rank.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv3d(3, width, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for channels, stride in ((width, (2, 2, 2)), (2 * width, (1, 2, 2)), (4 * width, (1, 1, 1))):
            layers += [
                nn.Conv3d(channels, 2 * channels, 3, stride=stride, padding=1, bias=False),
                nn.GroupNorm(width // 4, 2 * channels),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv3d(8 * width, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, video: Tensor) -> Tensor:
        return self.layers(video)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of its logits."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


class GANState(nn.Module):
    """What the gan remembers from step to step, all of it means over the global batch.

    `adaptive_weight` is that of the coming step, `real` and `fake` are running means of the logits (LeCam).
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("adaptive_weight", "real", "fake"):
            self.register_buffer(name, torch.zeros(()))


class GANTrainer:
    """A discriminator in training beside a VAE. Prepare it before the checkpoint is loaded.

    The adaptive weight |grad fidelity| / |grad adversarial| at the decoder's last convolution is measured over a step's
    global batch and applied in the next step. So it does not depend on how a batch is split into ranks and
    micro-steps; measured in the same step, it would be another one on each rank. In the first step it is 0, and where
    the discriminator changes faster than that, the VAE's gradient clip bounds the step.
    """

    def __init__(
        self,
        settings: GANSettings,
        optimization: OptimizationSettings,
        accelerator: Accelerator,
        last_weight: nn.Parameter,
    ) -> None:
        self.settings, self.accelerator, self.last_weight = settings, accelerator, last_weight
        self.optimization = optimization.model_copy(
            update={
                "optimizer": settings.optimizer,
                "betas": settings.betas,
                "learning_rate": settings.learning_rate or optimization.learning_rate,
            }
        )
        network = PatchDiscriminator(settings.width)
        optimizer = make_optimizer(network, self.optimization)
        self.discriminator, self.optimizer = accelerator.prepare(network, optimizer)
        self.network = accelerator.unwrap_model(self.discriminator)
        self.state = GANState().to(accelerator.device)
        self._begin_step()

    def _begin_step(self) -> None:
        self.gradients = torch.zeros(2, *self.last_weight.shape, device=self.accelerator.device)
        self.logits = torch.zeros(2, device=self.accelerator.device)

    def is_active(self, step: int) -> bool:
        """Whether it takes part in step number `step` (from 1)."""
        return step > self.settings.start_step

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        """The adversarial loss of a reconstruction, -mean D.

        To be differentiated by the reconstruction alone (`torch.autograd.grad`). The network is called unwrapped: its
        weights are not trained here, so ranks have nothing to exchange.
        """
        return -self.network(reconstruction).float().mean()

    def combine_gradients(self, reconstruction: Tensor, fidelity: Tensor, adversarial: Tensor) -> Tensor:
        """The gradient of reconstruction + weight * adaptive_weight * generator loss, of both gradients by pixels.

        Both are also carried on to the decoder's last weight, for the adaptive weight of the next step.
        """
        for i, gradient in enumerate((fidelity, adversarial)):
            (at_weight,) = torch.autograd.grad(
                reconstruction, self.last_weight, gradient.to(reconstruction.dtype), retain_graph=True
            )
            self.gradients[i] += at_weight.float() / self.optimization.gradient_accumulation_steps
        return fidelity + self.settings.weight * self.state.adaptive_weight * adversarial

    def discriminator_step(self, video: Tensor, reconstruction: Tensor, sync: bool) -> dict[str, Tensor]:
        """Add one micro-step's gradients of the discriminator; returns its loss and mean logits, detached."""
        with gradients_synced_at(self.accelerator, self.discriminator, sync):
            with self.accelerator.autocast():
                logits = self.discriminator(torch.cat([video, reconstruction.detach().to(video.dtype)]))
            real, fake = logits.float().chunk(2)
            loss = hinge_loss(real, fake)
            if self.settings.lecam:
                loss = loss + self.settings.lecam * self._lecam(real, fake)
            self.accelerator.backward(loss / self.optimization.gradient_accumulation_steps)
        means = torch.stack([real.detach().mean(), fake.detach().mean()])
        self.logits += means / self.optimization.gradient_accumulation_steps
        return {"discriminator": loss.detach(), "logits_real": means[0], "logits_fake": means[1]}

    def _lecam(self, real: Tensor, fake: Tensor) -> Tensor:
        """How far real logits rise above the running mean of fake ones, and fake ones fall below that of real ones."""
        return F.relu(real - self.state.fake).square().mean() + F.relu(self.state.real - fake).square().mean()

    @torch.no_grad()
    def apply_gradients(self, step: int) -> None:
        """Make the discriminator's step, and measure what the next step needs, over all ranks."""
        set_learning_rate(self.optimizer, learning_rate_at(step - 1, self.optimization))
        clipped_step(self.optimizer, self.discriminator.parameters(), self.optimization.grad_clip)
        self.optimizer.zero_grad()

        fidelity, adversarial = self.accelerator.reduce(self.gradients, "mean").flatten(1).norm(dim=1)
        adaptive_weight = (fidelity / (adversarial + 1e-4)).clamp(max=self.settings.adaptive_ceiling)
        real, fake = self.accelerator.reduce(self.logits, "mean")
        decay = 0.99 if self.is_active(step - 1) else 0.0  # the running means begin with the first step's
        for buffer, value in (
            (self.state.adaptive_weight, adaptive_weight),
            (self.state.real, decay * self.state.real + (1 - decay) * real),
            (self.state.fake, decay * self.state.fake + (1 - decay) * fake),
        ):
            buffer.copy_(torch.where(torch.isfinite(value), value, buffer))  # a broken step teaches nothing
        self._begin_step()
