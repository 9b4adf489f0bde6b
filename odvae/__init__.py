"""OD-VAE: a causal video VAE (arXiv 2409.01199), its training, and what all stages stand on."""

from odvae.model import ODVAE

__all__ = ["ODVAE"]
