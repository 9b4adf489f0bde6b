"""Prompts -> videos: one seed a video, mp4 files and `samples.jsonl` with all that made each."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import FlowMatchEulerDiscreteScheduler
from pydantic import Field

from ldm.dit import DiT
from ldm.pipeline import TextToVideoPipeline
from ldm.text import load_text_encoder
from ldm.train import PROVENANCE
from odvae.loading import load_vae
from odvae.shared.clips import VideoSet
from odvae.shared.demo_videos import prompts as demo_prompts
from odvae.shared.errors import InputError
from odvae.shared.fingerprints import weights_fingerprint
from odvae.shared.run_folder import StageClock, make_output_folder, read_json, read_json_lines, write_text
from odvae.shared.seeds import derive_seed
from odvae.shared.settings import Settings
from odvae.shared.tracking import progress_bar
from odvae.shared.video import write_video

HELD_OUT, UNSEEN, ASKED = "held_out", "unseen", "asked"


class SampleSettings(Settings):
    steps: int = Field(20, ge=1)
    """Steps of the sampler (flow-matching Euler)."""
    guidance: float = Field(3.0, ge=1)
    """Classifier-free guidance; 1 is none."""
    batch_size: int = Field(16, ge=1)
    """Videos made at a time on each rank."""
    count: int = Field(96, ge=1)
    """Held-out captions that are sampled when no --prompt is given."""
    unseen_count: int = Field(0, ge=0)
    """Demo videos only: prompts for combinations of shape, colour and motion that training never saw."""
    fps: float = Field(8.0, gt=0)
    """Frames per second of the files."""


@dataclass(frozen=True)
class Request:
    """One video to make."""

    file: str
    prompt: str
    seed: int
    group: str
    source: str | None = None  # the held-out video the caption is of


def evaluation_requests(settings: SampleSettings, videos: VideoSet, seed: int, demo: bool) -> list[Request]:
    """The requests an evaluation needs: captions of held-out videos, and for the demo unseen combinations."""
    captioned = [(sample, text) for sample in videos.held_out if (text := sample.read_text())]
    if not captioned:
        raise InputError("the held-out videos have no captions; give --prompt")
    requests = []
    for i in range(settings.count):
        sample, caption = captioned[i % len(captioned)]
        requests.append(
            Request(f"{HELD_OUT}_{i:04d}.mp4", caption, derive_seed(seed, HELD_OUT, i), HELD_OUT, sample.key)
        )
    if settings.unseen_count and not demo:
        raise InputError("samples.unseen_count is for demo videos: other captions have no combinations to leave out")
    for i, prompt in enumerate(demo_prompts(settings.unseen_count, seed, unseen=True) if demo else []):
        requests.append(Request(f"{UNSEEN}_{i:04d}.mp4", prompt, derive_seed(seed, UNSEEN, i), UNSEEN))
    return requests


def asked_requests(prompts: Sequence[str], seed: int) -> list[Request]:
    """Requests for prompts a person gave; the file's name follows from prompt and seed."""
    requests = []
    for prompt in prompts:
        if not prompt.strip():
            raise InputError("a prompt is empty")
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
        requests.append(Request(f"{slug}_seed{seed}.mp4", prompt, seed, ASKED))
    return requests


def load_pipeline(vae_folder: Path, ldm_folder: Path) -> TextToVideoPipeline:
    """The pipeline of a run. Raises InputError when a part is missing or is not the one the LDM was trained with."""
    if not (ldm_folder / "config.json").is_file():
        raise InputError(f"{ldm_folder} holds no trained LDM; make it with: accelerate launch pipelines/train_ldm.py")
    vae, provenance = load_vae(vae_folder), read_json(ldm_folder / PROVENANCE)
    found = weights_fingerprint(vae)
    if found != provenance["vae_sha256"]:
        raise InputError(
            f"{ldm_folder} was trained with another VAE: its vae_sha256 is {provenance['vae_sha256'][:16]}..., "
            f"that of {vae_folder} is {found[:16]}...; train the LDM again in another run folder"
        )
    text = load_text_encoder(provenance["text_encoder"])
    if (found := weights_fingerprint(text.model)) != provenance["text_sha256"]:
        raise InputError(
            f"{provenance['text_encoder']} is another text encoder ({found[:16]}...) than the one {ldm_folder} was "
            f"trained with ({provenance['text_sha256'][:16]}...)"
        )
    transformer = DiT.from_pretrained(ldm_folder).eval().requires_grad_(False)
    scheduler = FlowMatchEulerDiscreteScheduler()
    return TextToVideoPipeline(vae, transformer, scheduler, text.model, text.tokenizer)


def sample_videos(
    requests: Sequence[Request], settings: SampleSettings, vae_folder: Path, ldm_folder: Path, folder: Path
) -> list[Path]:
    """Make the videos into `folder`; ranks share them. Rows of samples.jsonl for the same file are replaced."""
    state = PartialState()
    pipeline = load_pipeline(vae_folder, ldm_folder).to(state.device)
    pipeline.set_progress_bar_config(disable=True)
    if state.is_main_process:
        make_output_folder(folder)
    state.wait_for_everyone()
    clock = StageClock(folder)
    mine = requests[state.process_index :: state.num_processes]
    with progress_bar("sampling", 0, len(mine), unit="video") as bar:
        for first in range(0, len(mine), settings.batch_size):
            batch = mine[first : first + settings.batch_size]
            for request, frames in zip(batch, generate(pipeline, batch, settings), strict=True):
                write_video(folder / request.file, frames, settings.fps)
            bar.update(len(batch))
    state.wait_for_everyone()
    if state.is_main_process:
        _record(requests, settings, read_json(ldm_folder / PROVENANCE), pipeline, folder)
        clock.save(finished=True)
    state.wait_for_everyone()
    return [folder / request.file for request in requests]


def generate(pipeline: TextToVideoPipeline, requests: Sequence[Request], settings: SampleSettings) -> np.ndarray:
    """uint8 videos (b, t, h, w, 3), each from its own seed."""
    videos = pipeline(
        [request.prompt for request in requests],
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=[torch.Generator().manual_seed(request.seed) for request in requests],
    ).frames
    return (videos * 255).round().astype(np.uint8)


def _record(
    requests: Sequence[Request],
    settings: SampleSettings,
    provenance: dict,
    pipeline: TextToVideoPipeline,
    folder: Path,
) -> None:
    path = folder / "samples.jsonl"
    rows = {row["file"]: row for row in read_json_lines(path)} if path.exists() else {}
    how = {
        "steps": settings.steps,
        "guidance": settings.guidance,
        "scheduler": type(pipeline.scheduler).__name__,
        "vae_sha256": provenance["vae_sha256"],
        "ldm_sha256": weights_fingerprint(pipeline.transformer),
        "text_sha256": provenance["text_sha256"],
    }
    for request in requests:
        rows[request.file] = asdict(request) | how
    write_text(path, "".join(json.dumps(rows[file]) + "\n" for file in sorted(rows)))
