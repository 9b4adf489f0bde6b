"""A small OD-VAE for tests of its training: settings, and a training on rendered videos."""

import json

from safetensors.torch import load_file
from small import SMALL

from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.settings import LossSettings, ModelSettings, VAESettings, VideoPhaseSettings
from odvae.train import train_vae

DATA = DataSettings(frames=9, height=32, width=32, held_out=0.25, workers=0)
# Of a logged row, what depends on time.
RATES = {"tokens_per_second", "frames_per_second", "model_tflops", "mfu", "mfu_of_matmul_rate", "data_wait_share"}
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
    """The weights of the trained VAE, and the rows of its metrics.jsonl without the rates."""
    train_vae(settings, DATA, VideoSet(shards, DATA, "?"), folder, seed)
    return load_file(folder / WEIGHTS), rows_without_rates(folder / "metrics.jsonl")


def rows_without_rates(file):
    """The rows of a training's log, without what depends on time."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in RATES} for row in rows]
