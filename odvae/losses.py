"""Losses of the VAE: L1 or L2, LPIPS, wavelet, KL and adversarial terms. Videos are (b, 3, t, h, w) in [-1, 1].

The paper sums reconstruction and LPIPS over the 3*h*w values of a frame and the KL over the latents of a clip, with
weights 1 : 1 : 1e-6. Here all terms are divided by the number of pixel values, so that their sizes do not depend on the
clip's size; the gradient's direction stays the same. For clips of t frames, `kl` is t times the paper's weight: 2.5e-5
for 1e-6 at 25 frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from einops import rearrange
from torch import Tensor, nn

from odvae.gan import GANTrainer
from odvae.lpips import LPIPS, load_lpips
from odvae.regularizers.local_correlation import LocalCorrelationLoss
from odvae.regularizers.settings import RegularizerSettings
from odvae.running.distributed import main_process_first
from odvae.running.errors import InputError
from odvae.settings import LossSettings
from odvae.training.settings import OptimizationSettings

# A function of (reconstruction, video), both (b, 3, t, h, w), that returns a scalar; it is logged under its name.
PixelLoss = Callable[[Tensor, Tensor], Tensor]


def reconstruction_loss(reconstruction: Tensor, video: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Mean absolute or squared error of all pixel values, in fp32."""
    difference = reconstruction.float() - video.float()
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


def kl_per_pixel(mean: Tensor, logvar: Tensor, pixel_values: int) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, summed over all latents, divided by the number of pixel values."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * torch.sum(mean.square() + logvar.exp() - 1 - logvar) / pixel_values


def lpips_per_frame(network: LPIPS, reconstruction: Tensor, video: Tensor) -> Tensor:
    """LPIPS, averaged over all frames."""
    frames = (rearrange(v, "b c t h w -> (b t) c h w") for v in (reconstruction, video))
    return network(*frames).mean()


def haar(video: Tensor) -> Tensor:
    """The orthonormal 3D Haar transform of 2x2x2 blocks, (b, c, t, h, w) -> (b, c, 8, (t + 1) // 2, h / 2, w / 2).

    If t is odd, the first frame is repeated; so an image is treated as a still video.
    """
    if video.shape[2] % 2:
        video = torch.cat([video[:, :, :1], video], dim=2)
    b = len(video)
    bands = F.conv3d(rearrange(video, "b c t h w -> (b c) 1 t h w"), _haar_kernels(video), stride=2)
    return rearrange(bands, "(b c) band t h w -> b c band t h w", b=b)


def _haar_kernels(like: Tensor) -> Tensor:
    """The kernels (8, 1, 2, 2, 2) of the bands, low or high along t, h and w, with the device and dtype of `like`.

    A band that is high along an axis has opposite signs there. Bands and positions count in binary, one digit an axis:
    a value is negative where the two have an odd number of ones in common. Computed where it is needed: to copy a table
    to a GPU in each call would let the GPU wait for the CPU.
    """
    index = torch.arange(8, device=like.device)
    common = index.view(8, 1) & index
    odd = (common ^ (common >> 1) ^ (common >> 2)) & 1
    return ((1 - 2 * odd).to(like.dtype) / 8**0.5).view(8, 1, 2, 2, 2)


def wavelet_loss(reconstruction: Tensor, video: Tensor) -> Tensor:
    """Mean absolute error of the Haar coefficients (WF-VAE, arXiv 2411.17459); fp32."""
    with torch.autocast(video.device.type, enabled=False):
        return haar(reconstruction.float() - video.float()).abs().mean()


def reconstruction_terms(
    reconstruction: Tensor,
    video: Tensor,
    settings: LossSettings,
    perceptual: LPIPS | None,
    pixel_loss: PixelLoss | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms that compare reconstruction and video (pixels, LPIPS, wavelet); each term, detached."""
    if pixel_loss is not None:
        loss = pixel_loss(reconstruction, video)
        terms = {pixel_loss.__name__: loss}
    else:
        loss = reconstruction_loss(reconstruction, video, settings.reconstruction)
        terms = {settings.reconstruction: loss}
    if settings.lpips is not None:
        assert perceptual is not None
        terms["lpips"] = lpips_per_frame(perceptual, reconstruction, video)
        loss = loss + settings.lpips.weight * terms["lpips"]
    if settings.wavelet:
        terms["wavelet"] = wavelet_loss(reconstruction, video)
        loss = loss + settings.wavelet * terms["wavelet"]
    return loss, {name: term.detach() for name, term in terms.items()}


def last_weight(network: nn.Module) -> Tensor:
    """The weight of the decoder's last convolution, at which the GAN's adaptive weight is measured."""
    last = getattr(getattr(network, "decoder", None), "conv_out", None)
    if last is None:
        raise InputError(
            f"vae.loss.gan measures its adaptive weight at `decoder.conv_out`, the decoder's last layer, which "
            f"{type(network).__name__} does not have; set vae.loss.gan to null"
        )
    return last.weight


class VAELoss:
    """Loss of the VAE: reconstruction terms + KL + adversarial term (from `gan.start_step` on) + regularizers.

    Create it before a checkpoint is loaded, and have the checkpoint remember its `states`.
    """

    def __init__(
        self,
        settings: LossSettings,
        network: nn.Module,
        optimization: OptimizationSettings,
        accelerator: Accelerator,
        pixel_loss: PixelLoss | None = None,
        regularizers: RegularizerSettings | None = None,
    ) -> None:
        self.settings, self.accelerator, self.pixel_loss = settings, accelerator, pixel_loss
        self.perceptual: LPIPS | None = None
        self.gan: GANTrainer | None = None
        self.local_correlation: LocalCorrelationLoss | None = None
        if settings.lpips is not None:
            with main_process_first():  # the main process downloads the weights
                self.perceptual = load_lpips(settings.lpips.network, settings.lpips.weights, accelerator.device)
        if settings.gan is not None:
            self.gan = GANTrainer(settings.gan, optimization, accelerator, last_weight(network))
        if regularizers is not None and regularizers.local_correlation is not None:
            channels = network.config.latent_channels
            self.local_correlation = LocalCorrelationLoss(regularizers.local_correlation, channels, accelerator)

    @property
    def states(self) -> list[nn.Module]:
        """What the terms carry from step to step, for the checkpoint."""
        return [term.state for term in (self.gan, self.local_correlation) if term is not None]

    def __call__(
        self, reconstruction: Tensor, video: Tensor, mean: Tensor, logvar: Tensor, step: int, pixel_values: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar to call `backward` on, and the terms by name (detached) for the log.

        `video` is what the reconstruction is compared with, `pixel_values` the number of values of the video that was
        encoded, by which the KL is divided; the two videos differ in size where `vae.regularizers.equivariance` scales.

        The terms that depend on pixels are first differentiated with respect to the pixels. So LPIPS and discriminator
        need one backward pass each, although the adaptive weight is measured too, and their activations are freed
        before the decoder's backward pass. The returned scalar has the gradient of the loss, but not its value, which
        is logged as "loss".
        """
        pixels = reconstruction.detach().float().requires_grad_()
        with self.accelerator.autocast():
            rec_loss, terms = reconstruction_terms(pixels, video, self.settings, self.perceptual, self.pixel_loss)
        (gradient,) = torch.autograd.grad(rec_loss, pixels)
        if self.gan is not None and self.gan.is_active(step):
            with self.accelerator.autocast():
                generator_loss = self.gan.generator_loss(pixels)
            (generator_grad,) = torch.autograd.grad(generator_loss, pixels)
            gradient = self.gan.combine_gradients(reconstruction, gradient, generator_grad)
            weight = self.gan.state.adaptive_weight.clone()
            terms |= {"generator_loss": generator_loss.detach(), "adaptive_weight": weight}
        kl = kl_per_pixel(mean, logvar, pixel_values)
        latent_loss = self.settings.kl * kl
        terms["kl"] = kl.detach()
        if self.local_correlation is not None:
            regularization, terms["local_correlation"] = self.local_correlation(mean)
            latent_loss = latent_loss + regularization
        terms = {"loss": (rec_loss + latent_loss).detach(), **terms}
        return (reconstruction.float() * gradient).sum() + latent_loss, terms

    def discriminator_step(self, reconstruction: Tensor, video: Tensor, step: int, sync: bool) -> dict[str, Tensor]:
        """Backward pass of the discriminator in one micro-step, if the GAN is active; returns values for the log."""
        if self.gan is None or not self.gan.is_active(step):
            return {}
        return self.gan.discriminator_step(video, reconstruction, sync)

    def apply_gradients(self, step: int) -> None:
        """Optimizer step of the discriminator, if the GAN is active; updates what the terms carry to the next step."""
        if self.gan is not None and self.gan.is_active(step):
            self.gan.apply_gradients(step)
        if self.local_correlation is not None:
            self.local_correlation.end_step()
