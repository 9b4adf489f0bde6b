"""An OD-VAE made from an image VAE by inflation, or from an OD-VAE that compresses less by growth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from diffusers import AutoencoderKL

from odvae.architecture.inflation import Kernels, add_quant_convolutions, load_grown
from odvae.architecture.rates import Halvings, choose_growth
from odvae.running.errors import InputError

if TYPE_CHECKING:
    from typing import Self

    from diffusers import ModelMixin as _Mixed  # what InflationMixin is mixed into
else:
    _Mixed = object

RATES = ("temporal_compression_ratio", "spatial_compression_ratio", "temporal_downsample", "spatial_downsample")


class InflationMixin(_Mixed):
    """ODVAE's `from_image_vae` and `from_odvae`."""

    @classmethod
    def from_image_vae(
        cls,
        image_vae: AutoencoderKL,
        variant: int = 4,
        init: Kernels | Literal["random"] = "tail",
        temporal_compression_ratio: int = 4,
        spatial_compression_ratio: int | None = None,
        temporal_downsample: Sequence[bool] | None = None,
        spatial_downsample: Sequence[bool] | None = None,
        **settings,
    ) -> Self:
        """A video VAE initialized from an image VAE by inflating its convolutions.

        With `init="tail"` and default norm and temporal_upsample, the latents of a video equal the image VAE's latents
        of frames 0, r, 2r, ... (r: temporal compression ratio), and each later latent is decoded to r equal frames.
        "average" spreads the kernels evenly over time; "random" takes only the sizes. `settings` are further arguments
        of ODVAE.

        `spatial_compression_ratio` None is the image VAE's. A higher one adds levels at full resolution, as wide as the
        first. Then the function is the image VAE's with the features after conv_in averaged over 2x2 positions and
        those before the last norm repeated 2x2, once for each factor of two: half the resolution, not half the latents.

        The image VAEs of SD 1 to 3, SDXL and FLUX are supported. Missing quant convolutions start as identities.

        Raises InputError for an unknown `init`, for an image VAE without attention in its middle block, for a rate that
        its levels cannot give, and for a tensor that is missing, unexpected or of another shape, with its name.
        """
        if init not in ("tail", "average", "random"):
            raise InputError(f"init={init!r}: allowed are tail, average, random")
        config = image_vae.config
        if not config.mid_block_add_attention:
            raise InputError(
                "the image VAE has no attention in its middle block (mid_block_add_attention=false); OD-VAE needs it"
            )
        source = image_halvings(image_vae)
        rate = (temporal_compression_ratio, spatial_compression_ratio, temporal_downsample, spatial_downsample)
        growth = choose_growth(config.block_out_channels, source, *rate)
        vae = cls(
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            variant=variant,
            **growth.arguments(),
            **settings,
        )
        if init != "random":
            image = add_quant_convolutions(image_vae.state_dict(), config.latent_channels)
            load_grown(vae, image, source, growth, init)
            vae.register_to_config(**equivalent_statistics(config))
        return vae

    @classmethod
    def from_odvae(cls, source: Self, **settings) -> Self:
        """A copy of an OD-VAE that compresses as much or more: `settings` are those of ODVAE that change, no width.

        Before training, each layer that newly halves time takes the first frame and every second one after it, and with
        temporal_upsample="nearest" the decoder repeats each frame there. So with 8x8x8 from 4x8x8 the latents of
        variants 3 and 4 equal the source's of frames 0, 2, 4, ... (in variants 1 and 2 level 0 sees the frames between
        them too), and the decoder equals the source's with the frames repeated before its last level. Space is halved
        further as in `from_image_vae`.

        Raises InputError for a rate below the source's, and for other sizes.
        """
        arguments = {key: value for key, value in source.config.items() if not key.startswith("_")}
        own = dict(zip(RATES, source.halvings.ratios, strict=False))
        rate = own | {key: settings.pop(key) for key in RATES if key in settings}
        growth = choose_growth(source.config.block_out_channels, source.halvings, **rate)
        vae = cls(**arguments | growth.arguments() | {"latents_mean": None, "latents_std": None} | settings)
        load_grown(vae, source.state_dict(), source.halvings, growth, "tail")
        return vae


def image_halvings(image_vae: AutoencoderKL) -> Halvings:
    """The halvings of an image VAE, which halves space after each level but the last."""
    places = len(image_vae.config.block_out_channels) - 1
    return Halvings(time=(False,) * places, space=(True,) * places)


def equivalent_statistics(config: Mapping[str, Any]) -> dict[str, list[float]]:
    """latents_mean and latents_std that normalize as an image VAE's config: (z - shift_factor) * scaling_factor."""
    channels, shift, scale = config["latent_channels"], config.get("shift_factor"), config.get("scaling_factor")
    if not scale:
        return {}
    return {"latents_mean": [float(shift or 0)] * channels, "latents_std": [1 / scale] * channels}
