"""Small image encoders in the formats of transformers and timm, with random weights, as folders."""

import json
from pathlib import Path

import torch
from transformers import ConvNextConfig, ConvNextModel, ViTConfig, ViTModel

PREPROCESSING = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]}


def small_vit(folder: Path) -> Path:
    """A ViT of 16x16 pixels in patches of 8, with a class token."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder


def small_convnext(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}
    ConvNextModel(ConvNextConfig(**sizes)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return folder


def small_timm(folder: Path) -> Path:
    """timm's smallest ViT, with a class token, for 160x160 pixels in patches of 16."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = timm.create_model("test_vit")
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder
