"""Settings of the objective: prediction target, noise levels, loss weights."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from odvae.running.settings import Settings

Prediction = Literal["flow", "epsilon", "v", "x0"]
NoiseSchedule = Literal["linear", "scaled_linear", "cosine"]


class ObjectiveSettings(Settings):
    renamed_keys: ClassVar = {
        "times": "timestep_sampling",
        "time_mean": "logit_mean",
        "time_std": "logit_std",
        "shift_positions": "shift_base_tokens",
    }

    prediction: Prediction = "flow"
    """What the network predicts. "flow": the velocity of the straight path from data to noise (rectified flow);
    "epsilon", "v", "x0": noise, velocity or data of a variance-preserving diffusion."""
    noise_schedule: NoiseSchedule = "scaled_linear"
    """Noise levels of the diffusion; rectified flow has none."""
    zero_terminal_snr: bool = False
    """Rescale the diffusion's schedule so that its last level is pure noise; for "v" and "x0"."""
    timestep_sampling: Literal["uniform", "logit_normal"] = "logit_normal"
    """How training draws its times: evenly, or as sigmoid(logit_mean + logit_std * normal)."""
    logit_mean: float = 0.0
    """Logit-normal times: a higher mean trains more on noisy latents."""
    logit_std: float = Field(1.0, gt=0)
    """Logit-normal times: their spread."""
    shift: float = Field(1.0, gt=0)
    """Flow: times t become s t / (1 + (s - 1) t), in training and sampling; above 1 is noisier, for larger videos."""
    shift_base_tokens: int | None = Field(None, ge=1)
    """Flow: latent positions (t * h * w) for which `shift` is meant; one of n has shift * sqrt(n / this). null: all."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Weight the error of the data by min(SNR, gamma), so that easy noise levels do not dominate; null: no weights."""

    @model_validator(mode="after")
    def _parts_fit(self) -> ObjectiveSettings:
        if self.zero_terminal_snr and self.prediction not in ("v", "x0"):
            raise ValueError(
                f"zero_terminal_snr=true needs prediction=v or x0, found {self.prediction}: where there is no signal, "
                "noise says nothing about the data (and rectified flow ends in pure noise anyway)"
            )
        if self.prediction != "flow" and (self.shift != 1 or self.shift_base_tokens is not None):
            raise ValueError(f"shift and shift_base_tokens are for prediction=flow, found prediction={self.prediction}")
        return self
