"""What a video is generated from: text, a class, nothing; and, with any of them, a given first frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

NO_LABEL = -1


@dataclass(frozen=True)
class Condition:
    """The conditions of a batch; a part is None where the network does not take it."""

    text: Tensor | None = None  # (b, m, d) float
    text_mask: Tensor | None = None  # (b, m) bool, which tokens are real
    label: Tensor | None = None  # (b,) long, NO_LABEL for none
    first_frame: Tensor | None = None  # (b, c, 1, h, w) normalized latents
    first_frame_given: Tensor | None = None  # (b,) bool: where not, the frame is not looked at

    @property
    def supports_guidance(self) -> bool:
        """Whether there is anything for guidance to compare with and without."""
        return self.text is not None or self.label is not None

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same with every part changed."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Condition(**{name: None if part is None else change(part) for name, part in parts.items()})

    def concat(self, other: Condition) -> Condition:
        """Both batches in one; they must have the same parts."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return Condition(
            **{name: None if a is None else torch.cat([a, b]) for name, (a, b) in pairs.items()}  # type: ignore[arg-type]
        )

    def drop(self, dropped: Tensor, empty_text: Tensor | None, empty_mask: Tensor | None) -> Condition:
        """The same with text and label taken from the samples in `dropped` (b,) bool; a given first frame stays.

        `empty_text` (m, d) and `empty_mask` (m,) are the empty caption's.
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


def beside_first_frame(latents: Tensor, condition: Condition) -> Tensor:
    """The network's input with a given first frame: (b, c, t, h, w) -> (b, 2c + 1, t, h, w).

    Noisy latents, the given frame (zeros in later frames, and where none is given), and a channel that is 1 where
    given.
    """
    assert condition.first_frame is not None
    assert condition.first_frame_given is not None
    given = condition.first_frame_given.view(-1, 1, 1, 1, 1).to(latents.dtype)
    frame = torch.cat([condition.first_frame.to(latents.dtype), torch.ones_like(latents[:, :1, :1])], dim=1) * given
    return torch.cat([latents, F.pad(frame, (0, 0, 0, 0, 0, latents.shape[2] - 1))], dim=1)
