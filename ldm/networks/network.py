"""What a network is to the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm.networks.conditioning import Condition


@runtime_checkable
class Network(Protocol):
    """A torch module that predicts the training target from noisy latents, timesteps and conditioning.

    Nothing else is asked of it, so any module with these members is trained and sampled from (docs/your_own.md);
    those after `token_grid` come with diffusers' ModelMixin and ConfigMixin.
    """

    def __call__(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """Noisy normalized latents (b, c, t, h, w) at times (b,), 0 for data and 1 for noise -> the target, as latents.

        The target is velocity, noise, v or x0, as `config.objective` says.
        """
        ...

    def token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        """(t, h, w) in tokens of these latents, of which only the shape is read; for the throughput that is logged.

        Raises InputError for latents that the network does not take.
        """
        ...

    @property
    def config(self) -> Any:
        """What it was made with, which `NetworkFactory` lists, by attribute or key."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def to(self, *args: Any, **kwargs: Any) -> Network: ...

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any: ...

    def save_pretrained(self, save_directory: Path) -> None: ...


class NetworkFactory(Protocol):
    """What makes a network that fits its latents: its class will do, where it has these arguments."""

    def __call__(
        self,
        *,
        latent_channels: int,
        sample_size: tuple[int, int, int],
        latents_mean: list[float],
        latents_std: list[float],
        text_width: int | None,
        text_tokens: int,
        class_names: list[str] | None,
        first_frame: bool,
        objective: dict[str, Any],
    ) -> Network:
        """A network with random weights.

        Args:
            latent_channels, sample_size: c and (t, h, w) of the latents; it makes videos of that size unasked.
            latents_mean, latents_std: of each channel; its input is (z - mean) / std.
            text_width, text_tokens: of the embeddings in `Condition.text`; None: it is not conditioned on text.
            class_names: the classes, by their label's index in `Condition.label`; None: not conditioned on a class.
            first_frame: whether `Condition.first_frame` may be given.
            objective: what it learns to predict, as `ObjectiveSettings` writes it.
        """
        ...


NetworkLoader = Callable[[Path], Network]
