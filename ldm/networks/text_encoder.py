"""Text encoders: any transformers folder or hub name, or a small one trained on the captions ("learned").

A learned encoder is saved as a transformers folder (a word tokenizer and a small BERT) and loaded like any other.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ldm.networks.settings import TextSettings
from odvae.running.errors import InputError
from odvae.running.files import atomic_folder, read_object
from odvae.running.progress import progress_over
from odvae.running.seeds import torch_generator
from odvae.running.text import shorten
from odvae.storage.files import local_copy
from odvae.storage.mirror import local_model
from odvae.weights.model_sizes import check_sizes
from odvae.weights.pretrained import broken_files, loading

_TOKENIZER_FILES = (
    "A tokenizer is tokenizer.json; or spiece.model or tokenizer.model (SentencePiece: T5, Gemma); or vocab.json and "
    "merges.txt (CLIP); or vocab.txt (BERT): copy or download what is missing"
)
_SPECIAL = _PAD, _UNKNOWN, _START, _END, _MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


class TextEncoder:
    """A tokenizer and a frozen model that turn captions into embeddings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
        self.tokenizer, self.model, self.name = tokenizer, model.eval().requires_grad_(False), name

    def encode(self, captions: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """As `encode_captions`."""
        return encode_captions(self.tokenizer, self.model, captions, max_tokens)

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)


@torch.no_grad()
def encode_captions(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    captions: Sequence[str],
    max_tokens: int,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Captions -> last hidden states (b, max_tokens, d) and the mask (b, max_tokens) of real tokens.

    `device` is where the model computes, if that is not where its weights are now (diffusers' offloading). Autocast is
    off in it, so that embeddings are the same in encoding, sampling and evaluation.
    """
    device = device or model.device
    tokens = tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=max_tokens, return_tensors="pt"
    ).to(device)
    with torch.autocast(device.type, enabled=False):
        hidden = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return hidden, tokens.attention_mask.bool()


def check_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_tokens: int) -> None:
    """Raise InputError for an empty prompt, and for one with more tokens than the network was trained with."""
    for prompt in prompts:
        if not prompt.strip():
            raise InputError("a prompt is empty")
        length = len(tokenizer(prompt, truncation=False).input_ids)
        if length > max_tokens:
            raise InputError(
                f"a prompt has {length} tokens, but the network was trained with {max_tokens} (text.max_tokens): "
                f"shorten it, or set sample.truncate_prompts=true (in Python truncate_prompts=True): {prompt[:80]!r}"
            )


def check_max_tokens(encoder: TextEncoder, max_tokens: int) -> None:
    """Raise InputError where captions may have more tokens than the encoder has positions."""
    most = getattr(encoder.model.config, "max_position_embeddings", None)
    if encoder.model.config.model_type in ("roberta", "xlm-roberta", "camembert") and most is not None:
        most -= 2  # their positions start at 2
    if most is not None and max_tokens > most:
        raise InputError(f"text.max_tokens={max_tokens}: {encoder.name} takes at most {most} tokens")


def load_text_encoder(name: str | Path) -> TextEncoder:
    """A text encoder from a transformers folder, its URL or a hub name, or from the folder of an exported pipeline.

    Raises InputError where it cannot be loaded.
    """
    given, name = str(name), local_model(str(name))
    source, what = f"text.encoder={given!r}", "a text encoder"
    if (Path(name) / "model_index.json").is_file():
        model, tokenizer = str(Path(name) / "text_encoder"), str(Path(name) / "tokenizer")
        return TextEncoder(*_load_parts(model, tokenizer, source, what), given)
    return TextEncoder(*_load_parts(name, name, source, what), given)


def _load_parts(
    name: str, tokenizer_name: str, source: str, what: str
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # tensors that a checkpoint lacks and we do not use (a pooler) are reproducible
        with loading(source, name, what):
            config = AutoConfig.from_pretrained(name)
            check_sizes(config.to_dict(), name)
        with loading(source, tokenizer_name, what, _TOKENIZER_FILES):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
        with loading(source, name, what):
            model = _load_model(name, config, source)
        _check_tokenizer(tokenizer, model, Path(tokenizer_name), source)
    return tokenizer, model


def _load_model(name: str, config: PretrainedConfig, source: str) -> PreTrainedModel:
    """The model with all of its tensors, in float32, or bfloat16 where it is stored so (float16 overflows in T5)."""
    kind, options = AutoModel, {}
    if config.model_type == "clip":  # a full CLIP model: its text encoder alone
        kind, options = AutoModelForTextEncoding, {"config": config.text_config}
    elif type(config) in AutoModelForTextEncoding._model_mapping:
        kind = AutoModelForTextEncoding
    model, found = kind.from_pretrained(name, output_loading_info=True, **options)
    if missing := sorted(name for name in found["missing_keys"] if "pooler" not in name):
        raise InputError(
            f"{source} cannot be loaded as a text encoder: {type(model).__name__} needs {shorten(missing)}, which its "
            "weights lack. Does config.json belong to these weights?"
        )
    return model if model.dtype in (torch.float32, torch.bfloat16) else model.float()


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, folder: Path, source: str) -> None:
    """Raise InputError for a tokenizer without words, and for another model's.

    Where a folder has no tokenizer, or an empty file of one, transformers makes one without words and says nothing.
    """
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    words = {word: number for word, number in tokenizer.get_vocab().items() if word not in added and word != "▁"}
    if not words and not (folder / "tokenizer.json").is_file():
        broken = f": {'; '.join(files)}" if (files := broken_files(folder)) else ""
        raise InputError(f"{source} has no tokenizer with words in it{broken}. {_TOKENIZER_FILES}")
    rows = model.get_input_embeddings().num_embeddings
    if words and (largest := max(words.values())) >= rows:
        raise InputError(
            f"{source}: its tokenizer has tokens up to number {largest}, its model takes {rows}: they are parts of "
            "different text encoders"
        )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars, which would interrupt ours."""
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()


def learn_text_encoder(captions: Sequence[str], settings: TextSettings, folder: Path, seed: int) -> None:
    """Train a small BERT on captions, with a fifth of the tokens masked, and save it as a transformers folder.

    The vocabulary is every word of the captions; it is empty where the videos have no captions (for a network without
    text conditioning). The folder is written atomically.
    """
    words = sorted({word for caption in captions for word in _words(caption)})
    tokenizer = _word_tokenizer(words, settings.max_tokens)
    torch.manual_seed(seed)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            num_hidden_layers=2,
            num_attention_heads=settings.width // 16,
            intermediate_size=2 * settings.width,
            max_position_embeddings=settings.max_tokens,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    generator = torch_generator("cpu", seed, "text encoder")
    for _ in progress_over(range(settings.steps), "learning the text encoder", unit="step"):
        chosen = torch.randint(len(captions), (64,), generator=generator).tolist()
        batch = tokenizer(
            [captions[i] for i in chosen],
            padding="max_length",
            truncation=True,
            max_length=settings.max_tokens,
            return_tensors="pt",
        )
        masked = (torch.rand(batch.input_ids.shape, generator=generator) < 0.2) & batch.attention_mask.bool()
        inputs = batch.input_ids.masked_fill(masked, tokenizer.mask_token_id)
        target = batch.input_ids.masked_fill(~batch.attention_mask.bool(), -100)
        loss = model(input_ids=inputs, attention_mask=batch.attention_mask, labels=target).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    encoder = BertModel(model.config)  # with the pooler that transformers expects in text encoders
    encoder.load_state_dict(model.bert.state_dict(), strict=False)
    with atomic_folder(folder) as temporary, quiet_transformers():
        encoder.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def has_vocabulary(folder: Path) -> bool:
    """Whether a learned encoder has any word in its vocabulary, that is, was trained on captions."""
    return read_object(local_copy(folder / "config.json")).number("vocab_size") > len(_SPECIAL)


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", caption.lower())


def _word_tokenizer(words: Sequence[str], max_tokens: int) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*_SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(_START, vocabulary[_START]), (_END, vocabulary[_END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        cls_token=_START,
        sep_token=_END,
        mask_token=_MASK,
    )
