"""OD-VAE: a causal 3D video VAE that compresses 4x in time and 8x8 in space (arXiv 2409.01199).

A video of 4k+1 frames becomes k+1 latent frames: the first frame alone, the others four by four.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from odvae.encoder_decoder import Architecture, Decoder, Encoder
from odvae.initialization import add_quant_convolutions, inflate_state
from odvae.input_checks import check_latent_values, check_latents, check_pixel_values, check_video
from odvae.layers import ChannelsLastMixin, Stream, keep_channels_last, make_conv
from odvae.opensora_plan import infer_settings, read_checkpoint, rename_tensors
from odvae.running.errors import InputError
from odvae.tiling import TileStreams, TilingMixin

if TYPE_CHECKING:
    from odvae.settings import Init


class ODVAE(ChannelsLastMixin, ModelMixin, TilingMixin, ConfigMixin):
    """The video VAE of arXiv 2409.01199 as a diffusers model.

    Videos are float (b, 3, 4k+1, h, w) in [-1, 1], h and w multiples of 8; latents are (b, c, k+1, h/8, w/8).

    Args:
        block_out_channels: width of the four levels, each a multiple of `norm_num_groups`.
        layers_per_block: residual blocks a level in the encoder; the decoder has one more.
        latent_channels: c.
        norm_num_groups: groups of every group norm.
        variant: 1 to 4, which convolutions see time (paper, section 3.2; `odvae.encoder_decoder.SEES_TIME`).
        norm: "frame", statistics of each frame (causal, streams exactly), or "clip", of the whole clip (released).
        temporal_upsample: "nearest" (causal), or "trilinear" (released).
        temporal_resampling: "joint", one convolution for space and time (v1.2.0), or "separate", time by its own layers
            (v1.1.0; more tensors).
        latents_mean, latents_std: per channel, measured on training videos; None until measured.

    `norm` and `temporal_upsample` change the function, never a tensor's name or shape.
    """

    _supports_gradient_checkpointing = True
    temporal_compression_ratio = 4
    spatial_compression_ratio = 8
    has_temporal_tiling = True

    @register_to_config
    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        variant: int = 4,
        norm: Literal["frame", "clip"] = "frame",
        temporal_upsample: Literal["nearest", "trilinear"] = "nearest",
        temporal_resampling: Literal["joint", "separate"] = "joint",
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        architecture = Architecture(
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            variant=variant,
            norm=norm,
            temporal_upsample=temporal_upsample,
            temporal_resampling=temporal_resampling,
        )
        self.encoder = Encoder(architecture)
        self.decoder = Decoder(architecture)
        self.quant_conv = make_conv(True, 2 * latent_channels, 2 * latent_channels, kernel=1)
        self.post_quant_conv = make_conv(True, latent_channels, latent_channels, kernel=1)
        keep_channels_last(self)

    @classmethod
    def from_image_vae(cls, image_vae: AutoencoderKL, variant: int = 4, init: Init = "tail", **settings) -> ODVAE:
        """A video VAE that begins as an image VAE.

        With `init="tail"` and the default mode, its latents of a video are the image VAE's of frames 0, 4, 8, ..., and
        its decoder holds each later latent's frame four times. "average" spreads the kernels over time; "random" takes
        only the sizes. `settings` are further arguments of ODVAE (norm, temporal_upsample).

        Image VAEs of SD 1 to 3, SDXL and FLUX fit. Where there are no quant convolutions, they begin as identities.

        Raises InputError for an image VAE without attention in the middle, and with its name for a tensor that does not
        fit.
        """
        if init not in ("tail", "average", "random"):
            raise InputError(f"init={init!r}: allowed are tail, average, random")
        config = image_vae.config
        if not config.mid_block_add_attention:
            raise InputError("the image VAE has no attention in the middle (mid_block_add_attention); OD-VAE needs it")
        vae = cls(
            block_out_channels=tuple(config.block_out_channels),
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            variant=variant,
            **settings,
        )
        if init != "random":
            image = add_quant_convolutions(image_vae.state_dict(), config.latent_channels)
            vae.load_state_dict(inflate_state(image, vae.state_dict(), init))
        return vae

    @classmethod
    def from_opensora_plan(cls, path: str | Path) -> ODVAE:
        """The published OD-VAE of Open-Sora-Plan v1.2.0 or v1.1.0, of any width, in eval mode and float32.

        `path` is a .ckpt, .pt, .pth or .safetensors file, or a folder with one. Averaged (EMA) weights are preferred.
        The function is the released one: norm="clip", temporal_upsample="trilinear"; published latents are multiplied
        by 0.18215 before diffusion. Save it with `save_pretrained` for `from_pretrained` and the pipelines.

        Raises InputError for a file that is missing, broken or holds more than tensors, and naming any tensor that is
        missing, unexpected or of another shape.
        """
        published = read_checkpoint(path)
        with torch.device("meta"):
            vae = cls(**infer_settings(published, path))
        vae.load_state_dict(rename_tensors(published, vae, path), assign=True)
        keep_channels_last(vae)
        return vae.eval()

    def encode(self, video: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Video (b, 3, 4k+1, h, w) -> `.latent_dist` over latents (b, c, k+1, h/8, w/8).

        Raises InputError for any other shape, NaN, and pixels that cannot be in [-1, 1] (`odvae.input_checks`).
        """
        check_video(video, self.temporal_compression_ratio, self.spatial_compression_ratio)
        check_pixel_values(video)
        moments = self._encode_tiled(self._to_moments, video) if self.use_tiling else self._to_moments(video)
        distribution = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, latents: Tensor, return_dict: bool = True) -> DecoderOutput | tuple:
        """Latents (b, c, k+1, h, w) -> `.sample`, a video (b, 3, 4k+1, 8h, 8w), not clipped to [-1, 1].

        Raises InputError for any other shape, NaN and infinity.
        """
        check_latents(latents, self.config.latent_channels)
        check_latent_values(latents)
        video = self._decode_tiled(self._to_pixels, latents) if self.use_tiling else self._to_pixels(latents)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(self, video: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, draw latents as mean + std * noise (the mean without noise), decode.

        Returns (reconstruction like `video`, latent mean, latent log-variance), which is what training needs. It
        checks shapes, but unlike `encode` no values: that would make a GPU wait in every step.
        """
        check_video(video, self.temporal_compression_ratio, self.spatial_compression_ratio)
        moments = self._encode_tiled(self._to_moments, video) if self.use_tiling else self._to_moments(video)
        posterior = DiagonalGaussianDistribution(moments)
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        video = self._decode_tiled(self._to_pixels, latents) if self.use_tiling else self._to_pixels(latents)
        return video, posterior.mean, posterior.logvar

    def _to_moments(self, video: Tensor, stream: Stream | None = None) -> Tensor:
        return self.quant_conv(self.encoder(video, stream), stream)

    def _to_pixels(self, latents: Tensor, stream: Stream | None = None) -> Tensor:
        return self.decoder(self.post_quant_conv(latents, stream), stream)

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[DiagonalGaussianDistribution]:
        """Encode a video that arrives in chunks (b, 3, t_i, h, w) of any lengths, 4k+1 frames in all.

        Yields the distribution of each run of latent frames as soon as its frames are there. Joined along time they
        equal `encode` of the whole video (in spatial tiles, where those are on); memory depends on the chunks' size
        alone. Raises InputError in "clip" or "trilinear" mode, whose function needs the whole clip, and when the
        frames do not end on 4k+1.
        """
        self._check_streamable()
        ratio = self.temporal_compression_ratio
        streams: TileStreams = {}
        waiting: Tensor | None = None
        begun = False
        for chunk in chunks:
            check_video(chunk, 1, self.spatial_compression_ratio)
            check_pixel_values(chunk)
            waiting = chunk if waiting is None else torch.cat([waiting, chunk], dim=2)
            usable = waiting.shape[2] if begun else waiting.shape[2] - 1  # the first frame makes a latent alone
            ready = usable // ratio * ratio + (not begun)
            if usable < 0 or ready == 0:
                continue
            yield DiagonalGaussianDistribution(self._encode_in_space(self._to_moments, waiting[:, :, :ready], streams))
            waiting, begun = waiting[:, :, ready:], True
        if waiting is not None and waiting.shape[2]:
            raise InputError(
                f"the stream ended {waiting.shape[2]} frames after a whole latent; its length must be {ratio}k+1"
            )

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode latents that arrive in chunks (b, c, k_i, h, w); yields video (b, 3, t_j, 8h, 8w) for each.

        Joined along time the pieces equal `decode` of the whole. Raises InputError in "clip" or "trilinear" mode.
        """
        self._check_streamable()
        streams: TileStreams = {}
        for chunk in chunks:
            check_latents(chunk, self.config.latent_channels)
            check_latent_values(chunk)
            if chunk.shape[2]:
                yield self._decode_in_space(self._to_pixels, chunk, streams)

    @property
    def streamable(self) -> bool:
        """Whether a stream equals the whole: no layer sees a later frame."""
        return self.config.norm == "frame" and self.config.temporal_upsample == "nearest"

    def _check_streamable(self) -> None:
        if not self.streamable:
            raise InputError(
                f"norm={self.config.norm}, temporal_upsample={self.config.temporal_upsample}: this function needs the "
                "whole clip, so a stream cannot equal it; set norm=frame and temporal_upsample=nearest, or tile"
            )
