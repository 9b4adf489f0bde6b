"""Conditioning: text, class or none; optional first frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from odvae.running.errors import InputError

NO_LABEL = -1


@dataclass(frozen=True)
class Condition:
    """The conditions of a batch; those that the network does not take are None."""

    text: Tensor | None = None  # (b, m, d) float
    text_mask: Tensor | None = None  # (b, m) bool, False for padding
    label: Tensor | None = None  # (b,) long, NO_LABEL for none
    first_frame: Tensor | None = None  # (b, c, 1, h, w) normalized latents
    first_frame_given: Tensor | None = None  # (b,) bool: where False, the first frame is ignored

    @classmethod
    def from_arguments(
        cls,
        condition: Condition | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        class_labels: Tensor | None,
    ) -> Condition:
        """The condition of a network's call: as it was given, or made of diffusers' arguments.

        Without a mask, all tokens of `encoder_hidden_states` are real ones. Raises InputError where both are given.
        """
        apart = (encoder_hidden_states, encoder_attention_mask, class_labels)
        if condition is not None:
            if any(part is not None for part in apart):
                raise InputError(
                    "give either condition, or encoder_hidden_states, encoder_attention_mask, class_labels"
                )
            return condition
        mask = encoder_attention_mask
        if encoder_hidden_states is not None and mask is None:
            mask = torch.ones(encoder_hidden_states.shape[:2], device=encoder_hidden_states.device)
        return cls(encoder_hidden_states, None if mask is None else mask.bool(), class_labels)

    @property
    def supports_guidance(self) -> bool:
        """Whether there is a text or a class, which classifier-free guidance can leave out."""
        return self.text is not None or self.label is not None

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The conditions with `change` applied to every tensor."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Condition(**{name: None if part is None else change(part) for name, part in parts.items()})

    def to(self, device: torch.device, non_blocking: bool = False) -> Condition:
        """The conditions on this device; accelerate's and diffusers' hooks move the arguments of a network with it."""
        return self.map(lambda part: part.to(device, non_blocking=non_blocking))

    def concat(self, other: Condition) -> Condition:
        """Both batches in one; they must have the same conditions."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Condition(**{name: None if a is None else torch.cat([a, b]) for name, (a, b) in pairs.items()})

    def drop(self, dropped: Tensor, empty_text: Tensor | None, empty_mask: Tensor | None) -> Condition:
        """The conditions without text and label where `dropped` (b,) bool is set; a first frame stays.

        `empty_text` (m, d) and `empty_mask` (m,) are the embedding of the empty caption.
        """
        text, mask, label = self.text, self.text_mask, self.label
        if text is not None:
            assert empty_text is not None
            assert empty_mask is not None
            text = torch.where(dropped[:, None, None], empty_text.to(text), text)
            mask = torch.where(dropped[:, None], empty_mask.to(text.device), mask)
        if label is not None:
            label = torch.where(dropped, NO_LABEL, label)
        return Condition(text, mask, label, self.first_frame, self.first_frame_given)


def concat_first_frame(latents: Tensor, condition: Condition) -> Tensor:
    """The input of a network with first-frame conditioning: (b, c, t, h, w) -> (b, 2c + 1, t, h, w).

    Channels: the noisy latents, the first frame (zeros at later frames, and where none is given), and a mask that is 1
    where it is given.
    """
    assert condition.first_frame is not None
    assert condition.first_frame_given is not None
    given = condition.first_frame_given.view(-1, 1, 1, 1, 1).to(latents.dtype)
    frame = torch.cat([condition.first_frame.to(latents.dtype), torch.ones_like(latents[:, :1, :1])], dim=1) * given
    return torch.cat([latents, F.pad(frame, (0, 0, 0, 0, 0, latents.shape[2] - 1))], dim=1)


def example_condition(network: Any, b: int, shape: Sequence[int]) -> Condition:
    """Conditions of b videos whose latents have this shape (c, t, h, w), of the kinds that the network takes."""
    config = network.config
    text = mask = label = frame = given = None
    if config.text_width is not None:
        text, mask = torch.zeros(b, config.text_tokens, config.text_width), torch.ones(b, config.text_tokens) > 0
    if config.class_names is not None:
        label = torch.full((b,), NO_LABEL)
    if config.first_frame:
        frame, given = torch.zeros(b, shape[0], 1, *shape[2:]), torch.ones(b) > 0
    return Condition(text, mask, label, frame, given)
