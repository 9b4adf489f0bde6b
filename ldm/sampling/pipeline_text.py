"""Text of the pipeline: prompts and embeddings, checked and repeated for every video."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.networks.text_encoder import check_prompts, encode_captions, load_text_encoder
from odvae.running.errors import InputError
from odvae.running.hashing import weights_fingerprint

if TYPE_CHECKING:  # what it is mixed into
    from diffusers import DiffusionPipeline as _Mixed
else:
    _Mixed = object


class PipelineTextMixin(_Mixed):
    """The part of the pipeline that embeds prompts."""

    def _embed_texts(self, prompts: list[str], negatives: list[str], tokens: int | None, truncate: bool) -> Tensor:
        """Embeddings (prompts and negatives, tokens, d), zeros where there is no token; `tokens` None: as in training.

        Each text is encoded alone, so that rounding does not depend on the others. Raises InputError for an empty
        prompt and, unless `truncate`, for texts of more tokens, before any is encoded.
        """
        if not prompts and not negatives:
            return torch.zeros(0)
        self._load_text_encoder("prompt_embeds" if prompts else "negative_prompt_embeds (or guidance_scale=1)")
        trained = self.tokenizer.model_max_length
        if self.transformer is not None:
            trained = self.transformer.config.text_tokens
        if (tokens or trained) > trained:
            raise InputError(f"max_sequence_length={tokens}: the network was trained with {trained} tokens")
        limit = sys.maxsize if truncate else tokens or trained
        check_prompts(self.tokenizer, [*prompts, *filter(None, negatives)], limit)
        encode = functools.partial(encode_captions, self.tokenizer, self.text_encoder)
        where = (tokens or trained, self._execution_device)
        unique = {text: mask_padding(*encode([text], *where)) for text in dict.fromkeys([*prompts, *negatives])}
        return torch.cat([unique[text] for text in [*prompts, *negatives]])

    def _load_text_encoder(self, instead: str) -> None:
        """Load a text encoder that was saved by reference.

        Raises InputError where its weights are not the same, and where there is none, with what can be given `instead`.
        """
        if self.text_encoder is not None and self.tokenizer is not None:
            return
        name, expected = self.config.text_encoder_name, self.config.text_sha256
        if name is None:
            raise InputError(
                f"this pipeline has neither a text encoder nor the name of one: give {instead}, as made by "
                "encode_prompt of a pipeline that has one, or export the run again"
            )
        text = load_text_encoder(name)
        found = weights_fingerprint(text.model)
        if expected is not None and found != expected:
            raise InputError(
                f"{name} is not the text encoder the network was trained with: its weights' sha256 is {found[:16]}..., "
                f"the expected one {expected[:16]}..."
            )
        self.register_modules(text_encoder=text.model.to(self._execution_device), tokenizer=text.tokenizer)


def mask_padding(embeddings: Tensor, mask: Tensor) -> Tensor:
    """The embeddings (b, m, d) with zeros where `mask` (b, m) is False, so that they tell their mask themselves."""
    return torch.where(mask.unsqueeze(-1), embeddings, torch.zeros_like(embeddings))


def text_mask(embeddings: Tensor) -> Tensor:
    """Which tokens of embeddings (b, m, d) are real, (b, m): those that are not all zeros."""
    return (embeddings != 0).any(dim=-1)


def check_embeddings(embeddings: Any, name: str, width: int | None, like: Tensor | None = None) -> Tensor:
    """Return embeddings of text, float (n, tokens, d). Raises InputError, which calls them `name`, for any others.

    `width` is d, where it is known; `like` are embeddings whose shape they must have.
    """
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 3 or not embeddings.is_floating_point():
        found = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise InputError(f"{name} must be a float tensor (prompts, tokens, width), found {found}")
    if width is not None and embeddings.shape[-1] != width:
        raise InputError(f"{name} have width {embeddings.shape[-1]}, but the network takes text of width {width}")
    if like is not None and embeddings.shape != like.shape:
        raise InputError(f"{name} are {tuple(embeddings.shape)}, but prompt_embeds {tuple(like.shape)}")
    return embeddings


def check_one_of(given: dict[str, Any]) -> None:
    """Raise InputError where more than one of these arguments is given (not None)."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)} were given: give one of them")
