"""OD-VAE, a causal 3D video VAE (arXiv 2409.01199), with 4x temporal and 8x8 spatial compression or other rates.

A video of 4k+1 frames becomes k+1 latent frames: the first frame alone, the others in groups of four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from odvae.architecture.encoder_decoder import Architecture, Decoder, Encoder
from odvae.architecture.inflation_mixin import InflationMixin
from odvae.architecture.input_checks import check_latent_values, check_latents, check_pixel_values, check_video
from odvae.architecture.layers import ChannelsLastMixin, keep_channels_last, make_conv
from odvae.architecture.rates import choose_halvings
from odvae.architecture.streaming import StreamCache
from odvae.architecture.tiling import TileCaches, TilingMixin
from odvae.opensora_plan import infer_settings, read_checkpoint, rename_tensors
from odvae.running.errors import InputError
from odvae.video_vae import VideoVAEMixin, sample_latents
from odvae.weights.model_sizes import check_sizes
from odvae.weights.pretrained import loading


class ODVAE(InflationMixin, ChannelsLastMixin, VideoVAEMixin, ModelMixin, TilingMixin, ConfigMixin):
    """The video VAE of arXiv 2409.01199 as a diffusers model.

    Videos are float (b, 3, r*k + 1, h, w) in [-1, 1], h and w multiples of s; latents are (b, c, k + 1, h/s, w/s). The
    temporal and spatial compression ratios r and s are 4 and 8 in the paper; shapes below are for these.

    Args:
        block_out_channels: channels of the levels, from full resolution down, each a multiple of `norm_num_groups`.
        layers_per_block: residual blocks per level in the encoder; the decoder has one more.
        latent_channels: c.
        norm_num_groups: groups of every group norm.
        variant: 1 to 4: which convolutions are causal 3D (paper, section 3.2;
            `odvae.architecture.encoder_decoder.TEMPORAL_CONVS`).
        norm: "frame": statistics of each frame (causal, can be streamed exactly); "clip": of the whole clip (as in the
            released models).
        temporal_upsample: "nearest" (causal) or "trilinear" (as in the released models).
        temporal_compression_ratio, spatial_compression_ratio: r and s, powers of two.
        temporal_downsample, spatial_downsample: for each level but the last, whether the layer at its end halves time,
            and whether it halves space; None: the table in `odvae.architecture.rates`.
        temporal_resampling: "joint": one convolution resamples space and time (v1.2.0); "separate": time has its own
            layers (v1.1.0; more tensors).
        latents_mean, latents_std: per channel, measured on training videos; before, those that the shift_factor and
            scaling_factor of the inflated image VAE stand for, or None.

    `norm` and `temporal_upsample` change the results, but no tensor's name or shape.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("ResnetBlock", "FrameAttention", "Downsample", "Upsample", "TimeDownsample", "TimeUpsample")
    _group_offload_block_modules = ("quant_conv", "post_quant_conv", "encoder", "decoder")
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
        temporal_compression_ratio: int = 4,
        spatial_compression_ratio: int = 8,
        temporal_downsample: Sequence[bool] | None = None,
        spatial_downsample: Sequence[bool] | None = None,
        temporal_resampling: Literal["joint", "separate"] = "joint",
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.temporal_compression_ratio = temporal_compression_ratio
        self.spatial_compression_ratio = spatial_compression_ratio
        self.halvings = choose_halvings(
            len(block_out_channels),
            temporal_compression_ratio,
            spatial_compression_ratio,
            temporal_downsample,
            spatial_downsample,
        )
        self.register_to_config(
            temporal_downsample=list(self.halvings.time), spatial_downsample=list(self.halvings.space)
        )
        architecture = Architecture(
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            variant=variant,
            norm=norm,
            temporal_upsample=temporal_upsample,
            temporal_resampling=temporal_resampling,
            halvings=self.halvings,
        )
        self.encoder = Encoder(architecture)
        self.decoder = Decoder(architecture)
        self.quant_conv = make_conv(True, 2 * latent_channels, 2 * latent_channels, kernel=1)
        self.post_quant_conv = make_conv(True, latent_channels, latent_channels, kernel=1)
        keep_channels_last(self)

    @classmethod
    def from_opensora_plan(cls, path: str | Path) -> ODVAE:
        """Load a published OD-VAE of Open-Sora-Plan v1.2.0 or v1.1.0, of any width, in eval mode and float32.

        `path` is a .ckpt, .pt, .pth or .safetensors file, or a folder with one. EMA weights are preferred. The model
        has the modes of the release: norm="clip", temporal_upsample="trilinear"; Open-Sora-Plan multiplies its latents
        by 0.18215 before diffusion. Save it with `save_pretrained` for `from_pretrained` and the pipelines.

        Raises InputError for a file that is missing, broken or contains Python objects, and for a tensor that is
        missing, unexpected or of another shape, with its name.
        """
        with loading(str(path), path, "a published OD-VAE"):
            published = read_checkpoint(path)
            settings = infer_settings(published, path)
            check_sizes(settings, path)
            with torch.device("meta"):
                vae = cls(**settings)
            vae.load_state_dict(rename_tensors(published, vae, path), assign=True)
        keep_channels_last(vae)
        return vae.eval()

    @apply_forward_hook
    def encode(self, video: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Video (b, 3, 4k+1, h, w) -> `.latent_dist` over latents (b, c, k+1, h/8, w/8), at 4x8x8.

        Raises InputError for any other shape, NaN, and pixels that cannot be in [-1, 1].
        """
        check_video(video, self.temporal_compression_ratio, self.spatial_compression_ratio)
        check_pixel_values(video)
        distribution = DiagonalGaussianDistribution(self._run_sliced(self._encode_moments, video))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    @apply_forward_hook
    def decode(
        self, latents: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple:
        """Latents (b, c, k+1, h, w) -> `.sample`, a video (b, 3, 4k+1, 8h, 8w) at 4x8x8, not clipped to [-1, 1].

        `generator` is not used: decoding is not random, but diffusers' pipelines pass one. Raises InputError for any
        other shape, NaN and infinity.
        """
        check_latents(latents, self.config.latent_channels)
        check_latent_values(latents)
        video = self._run_sliced(self._decode_pixels, latents)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def reconstruct(
        self, video: Tensor, noise: Tensor | None = None, change_latents: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, sample latents as mean + std * noise (without `noise`: the mean), change them, decode.

        Returns (reconstruction like `video`, latent mean, latent log-variance) for training. Unlike `encode`, it checks
        shapes but not values, since reading values synchronizes the GPU in every step.
        """
        check_video(video, self.temporal_compression_ratio, self.spatial_compression_ratio)
        posterior = DiagonalGaussianDistribution(self._encode_moments(video))
        latents = sample_latents(posterior, noise, change_latents)
        return self._decode_pixels(latents), posterior.mean, posterior.logvar

    def _encode_moments(self, video: Tensor) -> Tensor:
        return self._encode_tiled(self._to_moments, video) if self.use_tiling else self._to_moments(video)

    def _decode_pixels(self, latents: Tensor) -> Tensor:
        return self._decode_tiled(self._to_pixels, latents) if self.use_tiling else self._to_pixels(latents)

    def _to_moments(self, video: Tensor, cache: StreamCache | None = None) -> Tensor:
        return self.quant_conv(self.encoder(video, cache), cache)

    def _to_pixels(self, latents: Tensor, cache: StreamCache | None = None) -> Tensor:
        return self.decoder(self.post_quant_conv(latents, cache), cache)

    @apply_forward_hook
    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[DiagonalGaussianDistribution]:
        """Encode a video that arrives in chunks (b, 3, t_i, h, w) of any lengths, with 4k+1 frames in total.

        Yields the posterior of the next latent frames as soon as their frames have arrived. Concatenated along time
        they equal `encode` of the whole video (with spatial tiles, if enabled). Memory depends only on the chunk size.
        Raises InputError with norm="clip" or temporal_upsample="trilinear", which need the whole clip, and if the total
        is not 4k+1 frames.
        """
        self._check_streamable()
        ratio = self.temporal_compression_ratio
        caches: TileCaches = {}
        waiting: Tensor | None = None
        started = False
        for chunk in chunks:
            check_video(chunk, 1, self.spatial_compression_ratio)
            check_pixel_values(chunk)
            waiting = chunk if waiting is None else torch.cat([waiting, chunk], dim=2)
            usable = waiting.shape[2] if started else waiting.shape[2] - 1  # frame 0 is a latent frame on its own
            ready = usable // ratio * ratio + (not started)
            if usable < 0 or ready == 0:
                continue
            yield DiagonalGaussianDistribution(self._encode_in_space(self._to_moments, waiting[:, :, :ready], caches))
            waiting, started = waiting[:, :, ready:], True
        if waiting is not None and waiting.shape[2]:
            raise InputError(
                f"the stream must have {ratio}k+1 frames, but ended {waiting.shape[2]} frames after a complete group"
            )

    @apply_forward_hook
    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode latents that arrive in chunks (b, c, k_i, h, w); yields video (b, 3, t_j, 8h, 8w) for each.

        Concatenated along time they equal `decode` of the whole. Raises InputError with norm="clip" or
        temporal_upsample="trilinear".
        """
        self._check_streamable()
        caches: TileCaches = {}
        for chunk in chunks:
            check_latents(chunk, self.config.latent_channels)
            check_latent_values(chunk)
            if chunk.shape[2]:
                yield self._decode_in_space(self._to_pixels, chunk, caches)

    @property
    def streamable(self) -> bool:  # type: ignore[override]  # a property
        """Whether streaming gives the same result as the whole clip: no layer depends on later frames."""
        return self.config.norm == "frame" and self.config.temporal_upsample == "nearest"

    def _check_streamable(self) -> None:
        if not self.streamable:
            raise InputError(
                f"a VAE with norm={self.config.norm}, temporal_upsample={self.config.temporal_upsample} needs the "
                "whole clip and cannot be streamed; use norm=frame and temporal_upsample=nearest, or enable_tiling"
            )
