"""Pixels of the pipeline: first frames in, videos out, and the options of its VAE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.video_processor import VideoProcessor
from PIL import ImageOps
from PIL.Image import Image
from torch import Tensor

from ldm.sampling.decode import decode_in_pieces
from ldm.sampling.pipeline_inputs import one_for_each
from odvae.clips.clip import fit_frames
from odvae.running.errors import InputError
from odvae.video.images import to_rgb
from odvae.video.pixels import to_float

if TYPE_CHECKING:  # what it is mixed into
    from diffusers import DiffusionPipeline as _Mixed
else:
    _Mixed = object


class PipelineFramesMixin(_Mixed):
    """The part of the pipeline that encodes first frames and decodes videos."""

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent position, along height and width."""
        return self.vae.spatial_compression_ratio

    @property
    def video_processor(self) -> VideoProcessor:
        """diffusers' conversion between its types of pictures and tensors, for the VAE's sizes."""
        return VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    def enable_vae_slicing(self) -> None:
        """Decode the videos of a batch one after the other."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode each video in blended spatial tiles, with the VAE's default sizes."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        self.vae.disable_tiling()

    def decode_in_pieces(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents (b, c, k, h, w) of output_type="latent" -> pieces (b, 3, t_j, H, W) of the videos, in [-1, 1].

        Memory does not depend on the videos' length.
        """
        return decode_in_pieces(
            self.vae, latents, self.transformer.config.latents_mean, self.transformer.config.latents_std
        )

    def _decode(self, latents: Tensor, output_type: str) -> np.ndarray | Tensor | list[list[Image]]:
        """Frames of the output type. Each video is decoded alone, so that rounding does not depend on the others."""
        videos = [torch.cat(list(self.decode_in_pieces(video[None])), dim=2) for video in latents]
        video = torch.cat(videos) / 2 + 0.5  # (b, 3, t, h, w)
        if output_type == "pt":
            return video.transpose(1, 2)
        frames = video.permute(0, 2, 3, 4, 1).cpu().numpy()
        return [VideoProcessor.numpy_to_pil(one) for one in frames] if output_type == "pil" else frames

    def _first_frames(self, count: int, image: Any, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        """Normalized latents (b, c, 1, h, w) of the images, and whether they are given (b,).

        None for networks without first-frame conditioning; zeros and False where no image is given.
        """
        if not self.transformer.config.first_frame:
            if image is not None:
                raise InputError("image was given, but this network was not trained to take a first frame")
            return None, None
        c, _, h, w = shape
        device = self._execution_device
        if image is None:
            return torch.zeros(count, c, 1, h, w, device=device), torch.zeros(count, dtype=torch.bool, device=device)
        single = isinstance(image, Image) or (isinstance(image, Tensor) and image.ndim == 3)
        listed = [image] if single else list(image) if isinstance(image, (Tensor, Sequence)) else None
        if listed is None or not all(isinstance(frame, (Image, Tensor)) for frame in listed):
            raise InputError(
                f"image must be a PIL image, a tensor (3, h, w) in [-1, 1], or a list of them, found {type(image)}"
            )
        images = one_for_each(image, single, count, f"{count} videos need one image or {count}")
        height, width = h * self.vae.spatial_compression_ratio, w * self.vae.spatial_compression_ratio
        frames = [_fitted(frame, height, width) if isinstance(frame, Image) else frame for frame in images]
        for i, frame in enumerate(frames):
            if tuple(frame.shape) != (3, height, width):
                raise InputError(
                    f"image {i} is {tuple(frame.shape)}, but the videos' first frames are {(3, height, width)}"
                )
        encoded = [self._encode_image(frame) for frame in frames]
        return torch.cat(encoded), torch.ones(count, dtype=torch.bool, device=device)

    def _encode_image(self, image: Tensor) -> Tensor:
        """An image (3, h, w) in [-1, 1] -> normalized latents (1, c, 1, h, w): the posterior's mean."""
        video = image.to(self._execution_device, self.vae.dtype)[None, :, None]
        mean, std = (
            torch.tensor(values, device=video.device).view(1, -1, 1, 1, 1)
            for values in (self.transformer.config.latents_mean, self.transformer.config.latents_std)
        )
        return (self.vae.encode(video).latent_dist.mean.float() - mean) / std


def _fitted(image: Image, height: int, width: int) -> Tensor:
    """A picture of any size as first frame (3, height, width) in [-1, 1]: scaled to cover it, center cropped."""
    pixels = to_rgb(ImageOps.exif_transpose(image), "image")
    return to_float(fit_frames(pixels[None], height, width))[:, 0]
