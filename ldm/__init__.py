"""Latent diffusion on the latents of a video VAE: encoding, networks, training, sampling, evaluation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.networks.dit import DiT
    from ldm.pipeline import TextToVideoPipeline

__all__ = ["DiT", "TextToVideoPipeline"]


def __getattr__(name: str) -> Any:
    # Imported at first use: the pipeline imports all of diffusers and transformers, which most stages do not need.
    if name == "DiT":
        from ldm.networks.dit import DiT

        return DiT
    if name == "TextToVideoPipeline":
        from ldm.pipeline import TextToVideoPipeline

        return TextToVideoPipeline
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
