"""Settings of the objective: prediction target, noise levels, loss weights."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from odvae.running.settings import Settings

Prediction = Literal["flow", "epsilon", "v", "x0"]
NoiseSchedule = Literal["linear", "scaled_linear", "cosine"]


class ObjectiveSettings(Settings):
    renamed_keys: ClassVar[dict[str, str]] = {
        "times": "timestep_sampling",
        "time_mean": "logit_mean",
        "time_std": "logit_std",
        "shift_positions": "shift_base_tokens",
    }

    prediction: Prediction = "flow"
    """What the network predicts. "flow": the velocity eps - x of rectified flow; "epsilon", "v", "x0": noise, velocity
    or data of a variance-preserving diffusion."""
    noise_schedule: NoiseSchedule = "scaled_linear"
    """Beta schedule of the diffusion; rectified flow has none."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that its last step is pure noise; for prediction "v" and "x0"."""
    timestep_sampling: Literal["uniform", "logit_normal"] = "logit_normal"
    """Distribution of training timesteps: uniform, or sigmoid(logit_mean + logit_std * normal)."""
    logit_mean: float = 0.0
    """Mean of the logit-normal distribution; a higher mean trains more on noisy latents."""
    logit_std: float = Field(1.0, gt=0)
    """Standard deviation of the logit-normal distribution."""
    shift: float = Field(1.0, gt=0)
    """Flow only: timesteps t become s t / (1 + (s - 1) t), in training and sampling; above 1 moves them towards noise,
    as larger videos need."""
    shift_base_tokens: int | None = Field(None, ge=1)
    """Flow only: number of latent positions (t * h * w, before patches) for which `shift` holds; latents of n positions
    get shift * sqrt(n / shift_base_tokens). null: `shift` holds for all sizes."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Min-SNR loss weights: the error of x0 counts min(SNR, gamma) times, so that low noise levels do not dominate;
    null: no weights."""

    @model_validator(mode="after")
    def _options_fit_the_prediction(self) -> ObjectiveSettings:
        if self.zero_terminal_snr and self.prediction not in ("v", "x0"):
            raise ValueError(
                f"zero_terminal_snr=true needs prediction=v or x0, found {self.prediction}: at zero SNR the data "
                "cannot be computed from the noise (and rectified flow ends in pure noise anyway)"
            )
        if self.zero_terminal_snr and self.min_snr_gamma is not None:
            raise ValueError(
                "zero_terminal_snr=true and min_snr_gamma exclude each other: min-SNR weights a step by at most its "
                "SNR, so the last step, of SNR 0, would never be trained, though sampling starts from it"
            )
        if self.prediction != "flow" and (self.shift != 1 or self.shift_base_tokens is not None):
            raise ValueError(f"shift and shift_base_tokens are for prediction=flow, found prediction={self.prediction}")
        return self
