"""A small OD-VAE for tests of its training: settings, and a training on rendered videos."""

import json

from safetensors.torch import load_file
from small import SMALL

from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.settings import LossSettings, ModelSettings, VAESettings, VideoPhaseSettings
from odvae.train import train_vae

DATA = DataSettings(frames=9, height=32, width=32, held_out=0.25, workers=0)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def vae_settings(steps=4, loss=None, regularizers=None, **phase) -> VAESettings:
    """Every second step on single frames, a checkpoint after each step."""
    chosen = {"batch_size": 2, "learning_rate": 1e-3, "image_every": 2, "images_per_step": 2, "checkpoint_every": 1}
    video_phase = VideoPhaseSettings(steps=steps, log_every=1, checkpoints_total_limit=99, **{**chosen, **phase})
    return VAESettings(
        model=ModelSettings(**SMALL),
        init="random",
        image_phase=None,
        video_phase=video_phase,
        loss=LossSettings(**{"lpips": None, **(loss or {})}),
        regularizers=regularizers,
        validation_clips=1,
        statistics_clips=2,
    )


def train(shards, folder, settings, seed=0):
    """The weights of the trained VAE, and the rows of its metrics.jsonl."""
    train_vae(settings, DATA, VideoSet(shards, DATA, "?"), folder, seed)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return load_file(folder / WEIGHTS), rows
