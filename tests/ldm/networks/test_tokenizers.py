"""Text encoders whose folder has only a SentencePiece model, and folders of which something is missing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, GemmaConfig, GemmaModel, T5Config, T5EncoderModel

from ldm.networks.text_encoder import load_text_encoder
from odvae.running.errors import InputError

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 791656\n"
TEXTS = ["a red circle moves left", "a blue square moves up", "the quick brown fox jumps over the lazy dog"] * 5
WORDS = 32


def write_sentencepiece(path, kind, start):
    sentencepiece = pytest.importorskip("sentencepiece", reason="not installed, though pyproject.toml has it")
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS),
            model_writer=file,
            vocab_size=WORDS,
            model_type=kind,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=start,
            minloglevel=2,
        )


def save_t5(folder):
    torch.manual_seed(0)
    T5EncoderModel(
        T5Config(vocab_size=2 * WORDS, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(folder)


def save_gemma(folder):
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=2 * WORDS,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    GemmaModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A T5's folder as many are published: weights, config and spiece.model."""
    folder = tmp_path_factory.mktemp("t5")
    save_t5(folder)
    write_sentencepiece(folder / "spiece.model", "unigram", -1)
    return folder


@pytest.fixture
def copy(t5, tmp_path):
    return shutil.copytree(t5, tmp_path / "t5")


def pieces(encoder, text):
    return "".join(encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer(text).input_ids))


def test_a_t5_with_a_sentencepiece_model_alone_reads_words(t5):
    assert {file.suffix for file in t5.iterdir()} == {".json", ".safetensors", ".model"}
    assert not (t5 / "tokenizer.json").exists()
    encoder = load_text_encoder(t5)
    assert pieces(encoder, TEXTS[0]) == "▁" + TEXTS[0].replace(" ", "▁") + "</s>"
    embeddings, mask = encoder.encode([TEXTS[0], ""], 64)
    assert embeddings.isfinite().all()
    assert mask.sum(dim=1)[1] == 1
    assert not torch.allclose(embeddings[0, 0], embeddings[0, 1])


def test_a_gemma_with_a_sentencepiece_model_alone_reads_words(tmp_path):
    save_gemma(tmp_path)
    write_sentencepiece(tmp_path / "tokenizer.model", "bpe", 3)
    assert TEXTS[0].replace(" ", "▁") in pieces(load_text_encoder(tmp_path), TEXTS[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "has no tokenizer with words in it.*spiece.model or tokenizer.model"),
        (lambda file: file.write_bytes(b""), r"spiece\.model is empty"),
        (lambda file: file.write_text(POINTER), r"spiece\.model is a Git LFS pointer"),
    ],
)
def test_a_tokenizer_that_is_missing_or_none_is_named_and_never_replaced_by_one_without_words(copy, damage, message):
    damage(copy / "spiece.model")
    with pytest.raises(InputError, match=message) as error:
        load_text_encoder(copy)
    assert str(copy) in str(error.value)


def test_a_tokenizer_file_that_is_cut_is_named(copy):
    (copy / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(InputError, match=r"tokenizer\.json is not valid JSON"):
        load_text_encoder(copy)


@pytest.mark.parametrize("present", ["vocab.json", "merges.txt"])
def test_half_a_clips_tokenizer_is_an_error_that_names_both_files(tmp_path, present):
    config = CLIPTextConfig(
        vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    CLIPTextModel(config).save_pretrained(tmp_path)
    content = {
        "vocab.json": json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}),
        "merges.txt": "#v: 0.2",
    }
    (tmp_path / present).write_text(content[present])
    with pytest.raises(InputError, match=rf"{present}.*vocab\.json and merges\.txt \(CLIP\)"):
        load_text_encoder(tmp_path)


def test_a_tokenizer_of_another_model_is_an_error(copy):
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(copy)
    with pytest.raises(InputError, match=r"tokens up to number \d+, its model takes 8: .* different text encoders"):
        load_text_encoder(copy)


def test_weights_that_lack_a_tensor_or_are_cut_are_named(copy):
    weights = load_file(copy / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    save_file(
        {key: value for key, value in weights.items() if key != name}, copy / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(InputError, match=rf"T5EncoderModel needs {name}, which its weights lack"):
        load_text_encoder(copy)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated"):
        load_text_encoder(copy)
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert torch.equal(load_text_encoder(copy).model.state_dict()[name], weights[name])


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float8_e4m3fn, torch.float32)],
    ids=str,
)
def test_weights_stored_in_fewer_bits_are_used_in_a_type_that_computes(copy, stored, loaded):
    weights = {name: value.to(stored) for name, value in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    if stored != torch.float8_e4m3fn:
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"dtype": str(stored).removeprefix("torch.")}))
    encoder = load_text_encoder(copy)
    assert encoder.model.dtype == loaded
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert torch.equal(encoder.model.state_dict()[name], weights[name].to(loaded))
    assert encoder.encode([TEXTS[0]], 8)[0].isfinite().all()
