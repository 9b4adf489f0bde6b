"""OD-VAE: a causal video VAE (arXiv 2409.01199), its training, and what all stages stand on."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odvae.model import ODVAE

__all__ = ["ODVAE"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: every module of the package passes here, and most need neither torch nor diffusers.
    if name == "ODVAE":
        from odvae.model import ODVAE

        return ODVAE
    raise AttributeError(f"module 'odvae' has no attribute {name!r}")
