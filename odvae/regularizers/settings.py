"""Settings of the regularizers of a VAE's latents."""

from __future__ import annotations

from pydantic import Field, model_validator

from odvae.running.settings import Settings


class LocalCorrelationSettings(Settings):
    weight: float = Field(0.02, gt=0)
    """Weight of the term, relative to the pixels' mean error."""
    target: float = Field(0.75, gt=-1, le=1)
    """Correlation above which a clip adds nothing to the loss."""


class LatentMaskingSettings(Settings):
    fractions: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    """Shares of the latent positions that are masked; each step has one of them."""
    probabilities: tuple[float, ...] = (0.7, 0.1, 0.1, 0.1)
    """Probability of each of the fractions; their sum is 1."""
    block: tuple[int, int, int] = (1, 1, 1)
    """Latent positions along time, height and width that are masked together (SSVAE: 1 x 1 x 1 at 256 px, 2 x 2 x 2 at
    512 px)."""

    @model_validator(mode="after")
    def _one_probability_for_each_fraction(self) -> LatentMaskingSettings:
        if len(self.fractions) != len(self.probabilities) or not self.fractions:
            raise ValueError(
                f"each of the fractions has a probability: found {len(self.fractions)} fractions, "
                f"{len(self.probabilities)} probabilities"
            )
        if not all(0 <= fraction < 1 for fraction in self.fractions):
            raise ValueError(f"fractions={list(self.fractions)}: each must be at least 0 and less than 1")
        if min(self.probabilities) < 0 or abs(sum(self.probabilities) - 1) > 1e-6:
            raise ValueError(f"probabilities={list(self.probabilities)}: none is negative, and their sum is 1")
        if min(self.block) < 1:
            raise ValueError(f"block={list(self.block)}: each side is at least 1")
        return self

    def describe(self) -> str:
        pairs = zip(self.fractions, self.probabilities, strict=True)
        shares = ", ".join(f"{fraction:.0%} in {probability:.0%}" for fraction, probability in pairs)
        return f"latents masked in blocks of {'x'.join(map(str, self.block))} ({shares} of the steps)"


class EquivarianceSettings(Settings):
    probability: float = Field(0.5, gt=0, le=1)
    """Share of the steps whose latents are transformed before decoding."""
    min_scale: float = Field(0.25, gt=0, le=1)
    """Smallest scale; scales of height and width are uniform from here to 1, rounded to latent positions."""
    quarter_turns: bool = True
    """Also turn by one, two or three quarter turns."""

    def describe(self) -> str:
        turned = " and turned" if self.quarter_turns else ""
        return f"latents scaled by {self.min_scale:g} to 1{turned} in {self.probability:.0%} of the steps"


class RegularizerSettings(Settings):
    local_correlation: LocalCorrelationSettings | None = None
    """Local correlation regularization (LCR of SSVAE): neighboring latents are trained to be correlated; null: none."""
    latent_masking: LatentMaskingSettings | None = None
    """Latent masked reconstruction (LMR of SSVAE): the decoder fills in latents that are masked; null: none."""
    equivariance: EquivarianceSettings | None = None
    """Equivariance to scaling and quarter turns (EQ-VAE): transformed latents are decoded to a transformed video; null:
    none."""

    def describe(self) -> list[str]:
        """The regularizers that are on, each in a few words."""
        words = []
        if self.local_correlation is not None:
            words.append(f"{self.local_correlation.weight:g} local correlation below {self.local_correlation.target:g}")
        if self.latent_masking is not None:
            words.append(self.latent_masking.describe())
        if self.equivariance is not None:
            words.append(self.equivariance.describe())
        return words
