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


def small_text_encoder(folder: Path, max_tokens: int = 8) -> TextEncoder:
    learn_text_encoder(PROMPTS, TextSettings(max_tokens=max_tokens, width=16, steps=3), folder, seed=0)
    return load_text_encoder(folder)


def make_components(text: TextEncoder | None = None, make=make_dit, **settings) -> dict:
    """The components of a pipeline whose network has text conditioning where `text` is given."""
    torch.manual_seed(0)
    vae = ODVAE(**SMALL).eval()
    network, scheduler = _network_and_scheduler(text, make, ObjectiveSettings(), settings)
    parts = {"vae": vae, "transformer": network, "scheduler": scheduler}
    return parts | {"text_encoder": text and text.model, "tokenizer": text and text.tokenizer}


def make_pipeline(components: dict) -> TextToVideoPipeline:
    return quiet(TextToVideoPipeline(**components))


def pipeline_of(vae, text: TextEncoder | None = None, make=make_dit, objective=None, **settings) -> TextToVideoPipeline:
    """A pipeline with this VAE, and the scheduler of the network's objective."""
    network, scheduler = _network_and_scheduler(text, make, objective or ObjectiveSettings(), settings)
    parts = (text.model, text.tokenizer, text.name) if text else ()
    return quiet(TextToVideoPipeline(vae, network.eval(), scheduler, *parts))


def _network_and_scheduler(text: TextEncoder | None, make, objective: ObjectiveSettings, settings: dict) -> tuple:
    conditioning = {"text_width": 16, "text_tokens": 8} if text else {"text_width": None}
    settings = {**conditioning, **STATISTICS, "objective": objective.model_dump(mode="json"), **settings}
    network = awake(make(**settings))
    return network, make_scheduler("euler" if objective.prediction == "flow" else "ddim", objective)


def generate(pipeline, prompts, seeds, **options):
    """Frames of two steps, a seed per video."""
    return pipeline(prompts, generator=seeded(*seeds), **{"num_inference_steps": 2, **options}).frames


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
