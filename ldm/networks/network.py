"""Protocols of networks and of the functions that create and load them (docs/your_own.md)."""

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

    Any module with these members can be trained and sampled from (docs/your_own.md). diffusers' ModelMixin and
    ConfigMixin provide those after `token_grid`.
    """

    def __call__(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor | Any:
        """Noisy normalized latents (b, c, t, h, w), time (b,) from 0 (data) to 1 (noise) -> prediction (b, c, t, h, w).

        `config.objective` determines whether that is velocity, noise, v or x0. The prediction is the tensor itself or,
        as diffusers' models return it, the attribute `sample` of the output; `predict` takes both.
        """
        ...

    def token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        """The latents' (t, h, w) in tokens, for the logged throughput. Only the shape of the latents is used.

        Raises InputError for latents that the network does not take.
        """
        ...

    @property
    def config(self) -> Any:
        """The arguments of its creation, see `NetworkFactory`, by attribute or key."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def to(self, *args: Any, **kwargs: Any) -> Network: ...

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any: ...

    def save_pretrained(self, save_directory: Path) -> None: ...


def predict(network: Callable[..., Any], latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """The prediction of a network, as it is or as DDP and the like have wrapped it, as a tensor."""
    prediction = network(latents, time, condition)
    return prediction if isinstance(prediction, Tensor) else prediction.sample


def without_weights(network: Any) -> Any:
    """A network of the same class and config on the meta device, to find out what it would compute."""
    with torch.device("meta"):
        return type(network)(**{key: value for key, value in network.config.items() if not key.startswith("_")})


class NetworkFactory(Protocol):
    """Creates a network for given latents and conditioning; a network class with these arguments qualifies."""

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
            latent_channels, sample_size: c and (t, h, w) of the training latents; the default size for sampling.
            latents_mean, latents_std: per channel, of the training latents z; the network's input is (z - mean) / std.
            text_width, text_tokens: size of the embeddings in `Condition.text`; width None: no text conditioning.
            class_names: name of each index in `Condition.label`; None: no class conditioning.
            first_frame: whether `Condition.first_frame` may be given.
            objective: the training objective, as a dict of `ObjectiveSettings`.
        """
        ...


NetworkLoader = Callable[[Path], Network]
