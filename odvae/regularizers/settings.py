"""Settings of the regularizers of a VAE's latents."""

from __future__ import annotations

from pydantic import Field

from odvae.running.settings import Settings


class LocalCorrelationSettings(Settings):
    weight: float = Field(0.02, gt=0)
    """Weight of the term, relative to the pixels' mean error."""
    target: float = Field(0.75, gt=-1, le=1)
    """Correlation above which a clip adds nothing to the loss."""


class RegularizerSettings(Settings):
    local_correlation: LocalCorrelationSettings | None = None
    """Local correlation regularization (LCR of SSVAE): neighboring latents shall be correlated; null: none."""

    def describe(self) -> list[str]:
        """The regularizers that are on, each in a few words."""
        words = []
        if self.local_correlation is not None:
            words.append(f"{self.local_correlation.weight:g} local correlation below {self.local_correlation.target:g}")
        return words
