"""3D PatchGAN discriminator and its generator loss, with the adaptive weight of VQGAN.

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

# The maximum of the adaptive weight in VQGAN's code and the paper's, for losses summed over the values of a frame.
_CEILING_OF_SUMS = 1e4


class PatchDiscriminator(nn.Module):
    """3D PatchGAN discriminator: video (b, 3, t, h, w) -> logits (b, 1, t', h', w') with t' ~ t / 4 and h' ~ h / 8.

    An image is a video with t = 1. The layout is the paper's (five 3x3x3 convolutions, 4.67M parameters), with group
    norm in place of batch norm, so that a sample's logits do not depend on the rest of the batch or on other ranks.
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
    """Hinge loss of the discriminator, from its logits for real and reconstructed videos."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


class GANState(nn.Module):
    """State of the GAN that is carried from step to step and saved in checkpoints; means over the global batch.

    `adaptive_weight` is used in the next step; `real` and `fake` are running means of the logits (LeCam).
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("adaptive_weight", "real", "fake"):
            self.register_buffer(name, torch.zeros(()))


class GANTrainer:
    """Trains the discriminator, and gives the VAE its generator loss. Create it before a checkpoint is loaded.

    The adaptive weight |grad of reconstruction terms| / |grad of generator loss| at the decoder's last convolution is
    measured over the global batch of a step and applied in the next step. So it does not depend on how the batch is
    split into ranks and micro-steps; measured and applied in one step, it would differ between ranks. In the first step
    it is 0. If the discriminator changes so fast that the weight is outdated, the VAE's gradient clipping bounds the
    step.
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
        self.frame_values = 0  # 3 H W of the videos
        self._begin_step()

    def _begin_step(self) -> None:
        self.gradients = torch.zeros(2, *self.last_weight.shape, device=self.accelerator.device)
        self.logits = torch.zeros(2, device=self.accelerator.device)

    def is_active(self, step: int) -> bool:
        """Whether the GAN takes part in step `step` (counted from 1)."""
        return step > self.settings.start_step

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        """Generator loss of a reconstruction, -mean(D(reconstruction)).

        Differentiate it with respect to the reconstruction only (`torch.autograd.grad`): the discriminator's weights
        are not trained by it. So the discriminator is called without its distributed wrapper.
        """
        return -self.network(reconstruction).float().mean()

    def combine_gradients(self, reconstruction: Tensor, reconstruction_grad: Tensor, generator_grad: Tensor) -> Tensor:
        """Gradient of (reconstruction terms + weight * adaptive_weight * generator loss) with respect to the pixels.

        `reconstruction_grad` and `generator_grad` are the two losses' gradients with respect to the pixels. Both are
        also propagated to the decoder's last weight, to measure the adaptive weight of the next step.
        """
        self.frame_values = reconstruction[0, :, 0].numel()
        for i, gradient in enumerate((reconstruction_grad, generator_grad)):
            (last_weight_grad,) = torch.autograd.grad(
                reconstruction, self.last_weight, gradient.to(reconstruction.dtype), retain_graph=True
            )
            self.gradients[i] += last_weight_grad.float() / self.optimization.gradient_accumulation_steps
        return reconstruction_grad + self.settings.weight * self.state.adaptive_weight * generator_grad

    def discriminator_step(self, video: Tensor, reconstruction: Tensor, sync: bool) -> dict[str, Tensor]:
        """Accumulate the discriminator's gradients of one micro-step. Returns its loss and mean logits, detached."""
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
        """LeCam regularization (Tseng et al. 2021): squared excess of real logits over the running mean of fake ones,
        and of the running mean of real logits over fake ones."""
        return F.relu(real - self.state.fake).square().mean() + F.relu(self.state.real - fake).square().mean()

    @torch.no_grad()
    def apply_gradients(self, step: int) -> None:
        """Optimizer step of the discriminator; updates the adaptive weight and the running means over all ranks."""
        set_learning_rate(self.optimizer, learning_rate_at(step - 1, self.optimization))
        clipped_step(self.optimizer, self.discriminator.parameters(), self.optimization.grad_clip)
        self.optimizer.zero_grad()

        reconstruction, generator = self.accelerator.reduce(self.gradients, "mean").flatten(1).norm(dim=1)
        adaptive_weight = (reconstruction / (generator + 1e-4)).clamp(max=self._ceiling())
        real, fake = self.accelerator.reduce(self.logits, "mean")
        decay = 0.99 if self.is_active(step - 1) else 0.0  # in the first step the running means are that step's means
        for buffer, value in (
            (self.state.adaptive_weight, adaptive_weight),
            (self.state.real, decay * self.state.real + (1 - decay) * real),
            (self.state.fake, decay * self.state.fake + (1 - decay) * fake),
        ):
            buffer.copy_(torch.where(torch.isfinite(value), value, buffer))  # keep the old value
        self._begin_step()

    def _ceiling(self) -> float:
        """The maximum of the adaptive weight. The ratio of the gradients is that of losses averaged over the values of
        a frame, so it is `frame_values` times smaller than the ratio of sums that the paper's maximum is for."""
        if self.settings.adaptive_ceiling is not None:
            return self.settings.adaptive_ceiling
        return _CEILING_OF_SUMS / max(self.frame_values, 1)
