"""A small pipeline for tests: VAE, network, scheduler and a learned text encoder."""

from pathlib import Path

import torch
from small import SMALL
from small_networks import awake, make_dit

from ldm import TextToVideoPipeline
from ldm.diffusion.settings import ObjectiveSettings
from ldm.networks.settings import TextSettings
from ldm.networks.text_encoder import TextEncoder, learn_text_encoder, load_text_encoder
from ldm.sampling.schedulers import make_scheduler
from odvae import ODVAE

PROMPTS = ["a red circle moves left", "a blue square moves up", "a red square moves right"]
STATISTICS = {"latents_mean": [0.1] * 4, "latents_std": [0.8] * 4}


def small_text_encoder(folder: Path) -> TextEncoder:
    learn_text_encoder(PROMPTS, TextSettings(max_tokens=8, width=16, steps=3), folder, seed=0)
    return load_text_encoder(folder)


def make_components(text: TextEncoder | None = None, make=make_dit, **settings) -> dict:
    """The components of a pipeline whose network has text conditioning where `text` is given."""
    torch.manual_seed(0)
    vae = ODVAE(**SMALL).eval()
    objective = ObjectiveSettings()
    conditioning = {"text_width": 16, "text_tokens": 8} if text else {"text_width": None}
    settings = {**conditioning, **STATISTICS, "objective": objective.model_dump(mode="json"), **settings}
    parts = {"vae": vae, "transformer": awake(make(**settings)), "scheduler": make_scheduler("euler", objective)}
    return parts | {"text_encoder": text and text.model, "tokenizer": text and text.tokenizer}


def make_pipeline(components: dict) -> TextToVideoPipeline:
    made = TextToVideoPipeline(**components)
    made.set_progress_bar_config(disable=True)
    return made


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
