"""A small latent diffusion model for tests: settings, and a training on the latents of a run folder."""

import contextlib
import os
import signal

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from ldm.networks.settings import DiTSettings, UNetSettings
from ldm.train import train_ldm
from ldm.training.settings import LDMSettings
from odvae.clips.settings import DataSettings
from odvae.training.settings import OptimizationSettings

DATA = DataSettings(frames=9, height=32, width=32, held_out=0.25, workers=0)
SMALL_DIT = DiTSettings(width=32, depth=2, heads=2)
SMALL_UNET = UNetSettings(widths=(8, 16), layers_per_level=1, head_width=4, norm_groups=4)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def settings(steps=4, optimizer="sgd", **changes) -> LDMSettings:
    chosen = {"learning_rate": 0.02, "log_every": 1, "checkpoint_every": 2, **changes.pop("optimization", {})}
    optimization = OptimizationSettings(steps=steps, batch_size=4, optimizer=optimizer, **chosen)
    network = {} if {"dit", "unet"} & changes.keys() else {"dit": SMALL_DIT}
    return LDMSettings(**network, optimization=optimization, **changes)


@contextlib.contextmanager
def evicted_at(last_step):
    """Within it, a training gets SIGTERM once it has logged the loss of a step, and must end by it; yields how."""
    log = Accelerator.log

    def log_and_be_evicted(self, values, step=None, **kwargs):
        log(self, values, step=step, **kwargs)
        if step == last_step and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "log", log_and_be_evicted)
        with pytest.raises(SystemExit) as stopped:
            yield stopped


def train(run, folder, chosen, seed=0):
    train_ldm(chosen, run / "vae", run / "latents", folder, seed)
    return load_file(folder / WEIGHTS)
