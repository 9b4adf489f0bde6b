"""OD-VAE, a causal 3D video VAE (arXiv 2409.01199): model, training, evaluation, and the code that all stages share."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odvae.model import ODVAE

__all__ = ["ODVAE"]


def __getattr__(name: str) -> Any:
    # Imported on first access: importing any module of the package runs this file, and most need no torch or diffusers.
    if name == "ODVAE":
        from odvae.model import ODVAE

        return ODVAE
    if name == "__version__":
        from importlib.metadata import version

        return version("odvae")
    raise AttributeError(f"module 'odvae' has no attribute {name!r}")
