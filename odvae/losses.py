"""What the VAE minimizes, term by term, as means a person can read. Videos are (b, 3, t, h, w) in [-1, 1].

The paper sums reconstruction and LPIPS over a frame's 3*h*w values and the KL over a clip's latents, weighted
1 : 1 : 1e-6. Here all are divided by the number of pixel values, which leaves the gradient's direction as it is: a
weight `kl` on `kl_per_pixel` equals the paper's weight kl / t for clips of t frames (1e-6 at 25 frames is kl = 2.5e-5).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn

from odvae.gan import GANTrainer
from odvae.lpips import LPIPS, load_lpips
from odvae.running.errors import InputError
from odvae.settings import LossSettings
from odvae.training.settings import OptimizationSettings

# (reconstruction, video), both (b, 3, t, h, w) -> a scalar; a function, which is logged by its name.
PixelLoss = Callable[[Tensor, Tensor], Tensor]


def reconstruction_loss(reconstruction: Tensor, video: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Mean over all pixel values; fp32 whatever the inputs are."""
    difference = reconstruction.float() - video.float()
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


def kl_per_pixel(mean: Tensor, logvar: Tensor, video: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, summed over all latents, divided by the video's pixel values."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * torch.sum(mean.square() + logvar.exp() - 1 - logvar) / video.numel()


def lpips_per_frame(network: LPIPS, reconstruction: Tensor, video: Tensor) -> Tensor:
    """Mean LPIPS of all frames."""
    frames = (rearrange(v, "b c t h w -> (b t) c h w") for v in (reconstruction, video))
    return network(*frames).mean()


def haar(video: Tensor) -> Tensor:
    """The orthonormal 3D Haar transform of 2x2x2 blocks, (b, c, t, h, w) -> (b, c, 8, (t + 1) // 2, h / 2, w / 2).

    The first frame is repeated where t is odd, so that an image is a still video.
    """
    if video.shape[2] % 2:
        video = torch.cat([video[:, :, :1], video], dim=2)
    low, high = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    kernels = [torch.einsum("t,h,w->thw", *axes) / 8**0.5 for axes in product((low, high), repeat=3)]
    kernel = torch.stack(kernels).unsqueeze(1).to(video.device, video.dtype, non_blocking=True)  # (8, 1, 2, 2, 2)
    b = len(video)
    bands = F.conv3d(rearrange(video, "b c t h w -> (b c) 1 t h w"), kernel, stride=2)
    return rearrange(bands, "(b c) band t h w -> b c band t h w", b=b)


def wavelet_loss(reconstruction: Tensor, video: Tensor) -> Tensor:
    """Mean absolute error of the Haar coefficients (WF-VAE, arXiv 2411.17459); fp32."""
    with torch.autocast(video.device.type, enabled=False):
        return haar(reconstruction.float() - video.float()).abs().mean()


def fidelity_loss(
    reconstruction: Tensor,
    video: Tensor,
    settings: LossSettings,
    perceptual: LPIPS | None,
    pixel_loss: PixelLoss | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """How far a reconstruction is from its video, by all terms that compare the two; and each term, detached."""
    if pixel_loss is not None:
        loss = pixel_loss(reconstruction, video)
        parts = {pixel_loss.__name__: loss}
    else:
        loss = reconstruction_loss(reconstruction, video, settings.reconstruction)
        parts = {settings.reconstruction: loss}
    if settings.lpips is not None:
        assert perceptual is not None
        parts["lpips"] = lpips_per_frame(perceptual, reconstruction, video)
        loss = loss + settings.lpips.weight * parts["lpips"]
    if settings.wavelet:
        parts["wavelet"] = wavelet_loss(reconstruction, video)
        loss = loss + settings.wavelet * parts["wavelet"]
    return loss, {name: part.detach() for name, part in parts.items()}


def last_weight(network: nn.Module) -> Tensor:
    """The weight of the decoder's last convolution, where the GAN's gradient is balanced with that of the others."""
    last = getattr(getattr(network, "decoder", None), "conv_out", None)
    if last is None:
        raise InputError(
            f"vae.loss.gan is balanced at `decoder.conv_out`, the decoder's last layer, which {type(network).__name__} "
            "does not have"
        )
    return last.weight


class VAELoss:
    """Fidelity + KL, and the adversarial term once it has begun.

    Make it before the checkpoint is loaded: the gan is part of it.
    """

    def __init__(
        self,
        settings: LossSettings,
        network: nn.Module,
        optimization: OptimizationSettings,
        accelerator: Accelerator,
        pixel_loss: PixelLoss | None = None,
    ) -> None:
        self.settings, self.accelerator, self.pixel_loss = settings, accelerator, pixel_loss
        self.perceptual: LPIPS | None = None
        self.gan: GANTrainer | None = None
        if settings.lpips is not None:
            with accelerator.main_process_first():  # which downloads the weights
                self.perceptual = load_lpips(settings.lpips.network, settings.lpips.weights, accelerator.device)
        if settings.gan is not None:
            self.gan = GANTrainer(settings.gan, optimization, accelerator, last_weight(network))

    def __call__(
        self, reconstruction: Tensor, video: Tensor, mean: Tensor, logvar: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss with the objective's gradient, and the terms by name (detached) for the log.

        All that looks at pixels is differentiated by them first. So LPIPS and discriminator are run back through once,
        whatever is measured on the way, and their activations are gone before the decoder's backward pass begins.
        """
        pixels = reconstruction.detach().float().requires_grad_()
        with self.accelerator.autocast():
            fidelity, parts = fidelity_loss(pixels, video, self.settings, self.perceptual, self.pixel_loss)
        (gradient,) = torch.autograd.grad(fidelity, pixels)
        if self.gan is not None and self.gan.is_active(step):
            with self.accelerator.autocast():
                adversarial = self.gan.generator_loss(pixels)
            (adversarial_gradient,) = torch.autograd.grad(adversarial, pixels)
            gradient = self.gan.combine_gradients(reconstruction, gradient, adversarial_gradient)
            parts |= {"generator_loss": adversarial.detach(), "adaptive_weight": self.gan.state.adaptive_weight.clone()}
        divergence = kl_per_pixel(mean, logvar, video)
        parts = {"loss": (fidelity + self.settings.kl * divergence).detach(), **parts, "kl": divergence.detach()}
        return (reconstruction.float() * gradient).sum() + self.settings.kl * divergence, parts

    def discriminator_step(self, reconstruction: Tensor, video: Tensor, step: int, sync: bool) -> dict[str, Tensor]:
        """The discriminator's part of a micro-step, where it has begun; its numbers for the log."""
        if self.gan is None or not self.gan.is_active(step):
            return {}
        return self.gan.discriminator_step(video, reconstruction, sync)

    def apply_gradients(self, step: int) -> None:
        """The discriminator's part of an optimizer step."""
        if self.gan is not None and self.gan.is_active(step):
            self.gan.apply_gradients(step)
