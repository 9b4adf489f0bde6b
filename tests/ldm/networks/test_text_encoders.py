"""Text encoders: one trained on the captions, and any transformers folder."""

import pytest
import torch
from small_latents import TEXT
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from ldm.networks.settings import TextSettings
from ldm.networks.text_encoder import check_max_tokens, learn_text_encoder, load_text_encoder
from odvae.running.errors import InputError
from odvae.running.hashing import weights_fingerprint

CAPTIONS = ["a red circle moves left", "a blue square moves up", "a red square moves right"] * 5


def test_a_learned_encoder_and_any_transformers_folder_go_through_the_same_code(tmp_path):
    learn_text_encoder(CAPTIONS, TEXT, tmp_path / "learned", seed=0)
    learned = load_text_encoder(tmp_path / "learned")
    torch.manual_seed(0)
    small = {"vocab_size": len(learned.tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    t5 = T5Config(vocab_size=len(learned.tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    clip = CLIPTextConfig(num_hidden_layers=1, max_position_embeddings=8, **small)
    for name, model in (("t5", T5EncoderModel(t5)), ("clip", CLIPTextModel(clip))):
        model.save_pretrained(tmp_path / name)
        learned.tokenizer.save_pretrained(tmp_path / name)
    for name in ("learned", "t5", "clip"):
        encoder = load_text_encoder(tmp_path / name)
        embeddings, mask = encoder.encode([CAPTIONS[0], ""], 8)
        assert embeddings.shape == (2, 8, encoder.width) == (2, 8, 16)
        assert mask.sum(dim=1).tolist() == [7, 2]  # five words, start and end
        again, _ = load_text_encoder(tmp_path / name).encode([CAPTIONS[0], ""], 8)
        assert torch.equal(embeddings, again)


def test_a_learned_encoder_tells_every_word_of_the_captions_apart(tmp_path):
    learn_text_encoder(CAPTIONS, TextSettings(max_tokens=8, width=16, steps=60), tmp_path / "learned", seed=0)
    encoder = load_text_encoder(tmp_path / "learned")
    changed = [
        "a blue circle moves left",
        "a red square moves left",
        "a red circle moves up",
        "a red circle moves right",
    ]
    embeddings, _ = encoder.encode([CAPTIONS[0], *changed], 8)
    distances = (embeddings[1:] - embeddings[0]).norm(dim=-1).amax(dim=1)
    assert distances.min() > 0.3 * embeddings[0].norm(dim=-1).mean()


def test_learning_is_the_same_for_the_same_captions_and_seed(tmp_path):
    for name in ("one", "two"):
        learn_text_encoder(CAPTIONS, TEXT, tmp_path / name, seed=0)
    one, two = (weights_fingerprint(load_text_encoder(tmp_path / name).model) for name in ("one", "two"))
    assert one == two


def test_an_encoder_that_is_not_there_or_too_short_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"text\.encoder=.*nowhere"):
        load_text_encoder(tmp_path / "nowhere")
    learn_text_encoder(["a cat"], TEXT, tmp_path / "learned", seed=0)
    encoder = load_text_encoder(tmp_path / "learned")
    check_max_tokens(encoder, 8)
    with pytest.raises(InputError, match=r"text\.max_tokens=9: .*learned takes at most 8 tokens"):
        check_max_tokens(encoder, 9)
