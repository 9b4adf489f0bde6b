"""CLIP score with a small CLIP model."""

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from ldm.evaluation.clip_score import CLIPScorer
from odvae.running.errors import InputError

rng = np.random.default_rng(0)


def test_clip_score_is_the_mean_cosine_of_prompt_and_frames(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "b</w>": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": 4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config=small | ids, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(tmp_path)
    scorer = CLIPScorer(str(tmp_path), torch.device("cpu"))
    video = rng.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    frames = [scorer.score(video[i : i + 1], "a b") for i in range(3)]
    assert scorer.score(video, "a b") == pytest.approx(np.mean(frames), abs=1e-5)
    assert scorer.score(video, "b") != pytest.approx(np.mean(frames), abs=1e-4)
    with pytest.raises(InputError, match="cannot be loaded"):
        CLIPScorer(str(tmp_path / "none"), torch.device("cpu"))
