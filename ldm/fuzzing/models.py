"""Folders of models and training checkpoints: configs, weights, tokenizers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from accelerate import PartialState
from torch import nn

from ldm.fuzzing.containers import SAFETENSORS, ZIP
from ldm.fuzzing.kind import Kind, Valid
from ldm.fuzzing.mutations import JSON
from ldm.networks.dit import DiT
from ldm.networks.factory import load_network
from ldm.networks.settings import TextSettings
from ldm.networks.text_encoder import learn_text_encoder, load_text_encoder
from ldm.networks.unet import UNet
from odvae import ODVAE
from odvae.initial_weights import load_image_vae, load_video_vae, make_image_vae
from odvae.opensora_plan import published_names
from odvae.settings import ModelSettings
from odvae.training.settings import OptimizationSettings
from odvae.training.state import TrainingState
from odvae.video_vae import load_pretrained_vae, load_vae

_SIZES = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 4}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _mutations(name: str) -> Sequence:
    return JSON if name.endswith(".json") else SAFETENSORS if name.endswith(".safetensors") else ZIP


def _files_of(folder: Path, *names: str) -> list[Valid]:
    """Valid files of a folder; the smaller ones twice, since they say how the others are read."""
    found = [Valid(name, (folder / name).read_bytes(), _mutations(name)) for name in names]
    return found + [valid for valid in found if valid.name.endswith(".json")]


def _lay_out(context: Path, name: str, data: bytes, folder: Path) -> None:
    """A copy of the context in which one file is mutated."""
    shutil.copytree(context, folder, dirs_exist_ok=True, copy_function=os.link)
    (folder / name).unlink()
    (folder / name).write_bytes(data)


def _make_vaes(context: Path) -> Sequence[Valid]:
    torch.manual_seed(0)
    vae = ODVAE(**_SIZES)
    vae.save_pretrained(context / "video")
    make_image_vae(ModelSettings(**_SIZES)).save_pretrained(context / "image")
    return _files_of(context, *(f"{kind}/{file}" for kind in ("video", "image") for file in ("config.json", WEIGHTS)))


def _read_vae(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    """As a trained VAE, as a pretrained one, and as what a training begins from."""
    _lay_out(context, name, data, folder)
    path, model = folder / Path(name).parent, ModelSettings(**_SIZES)
    begin: Callable[[], object] = (
        (lambda: load_video_vae(str(path), model)) if "video" in name else (lambda: load_image_vae(str(path), model))
    )
    rng.choice((begin, lambda: load_vae(path), lambda: load_pretrained_vae(str(path))))()


def _make_networks(context: Path) -> Sequence[Valid]:
    torch.manual_seed(0)
    conditions = {"text_width": 8, "text_tokens": 4, "sample_size": (2, 4, 4), "latent_channels": 2}
    DiT(width=32, depth=1, heads=2, latents_mean=[0.0, 0.0], **conditions).save_pretrained(context / "dit")
    sizes = {"widths": (8, 8), "layers_per_level": 1, "head_width": 4, "norm_groups": 4}
    UNet(**sizes, **conditions).save_pretrained(context / "unet")
    dit, unet = ([f"{kind}/config.json", f"{kind}/{WEIGHTS}"] for kind in ("dit", "unet"))
    return [*_files_of(context, *dit), *_files_of(context, *dit), *_files_of(context, *unet)]


def _read_network(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    _lay_out(context, name, data, folder)
    load_network(folder / Path(name).parent)


def _make_text_encoders(context: Path) -> Sequence[Valid]:
    learn_text_encoder(["a red square", "a blue ball"], TextSettings(max_tokens=8, width=16, steps=1), context / "t", 0)
    files = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    return _files_of(context, *(f"t/{file}" for file in files))


def _read_text_encoder(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    _lay_out(context, name, data, folder)
    load_text_encoder(folder / "t")


def _make_published(context: Path) -> Sequence[Valid]:
    """Checkpoints in Open-Sora-Plan's form."""
    torch.manual_seed(0)
    vae = ODVAE(**{**_SIZES, "block_out_channels": (32, 32, 32, 32), "norm_num_groups": 32})
    own, names = vae.state_dict(), published_names(vae)
    state = {published: own[name].reshape(shape).half().contiguous() for name, (published, shape) in names.items()}
    from safetensors.torch import save_file

    save_file(state, context / "vae.safetensors")
    torch.save({"ema_state_dict": state, "epoch": 3}, context / "vae.ckpt")
    torch.save({"state_dict": {"gen_model": state}}, context / "vae.pt", _use_new_zipfile_serialization=False)
    return [Valid(path.name, path.read_bytes(), _mutations(path.name)) for path in sorted(context.iterdir())]


def _read_published(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    (folder / name).write_bytes(data)
    ODVAE.from_opensora_plan(folder / name)


def _training(folder: Path) -> TrainingState:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    settings = OptimizationSettings(steps=4, batch_size=2, learning_rate=0.1)
    return TrainingState(network, settings, folder, "none", "fuzzed")


def _make_checkpoints(context: Path) -> Sequence[Valid]:
    PartialState()
    state = _training(context)
    state.model(torch.ones(2, 4)).sum().backward()
    state.optimizer.step()
    state.checkpoints.save(2)

    found = [path for path in (context / "checkpoints").rglob("*") if path.is_file()]
    names = [str(path.relative_to(context)) for path in sorted(found) if "random" not in path.name]
    return _files_of(context, *names)


def _read_checkpoint(context: Path, name: str, data: bytes, folder: Path, rng: Random) -> None:
    _lay_out(context, name, data, folder)
    _training(folder).checkpoints.load_latest()


VAE = Kind("vae", _make_vaes, _read_vae, share=2)
NETWORK = Kind("network", _make_networks, _read_network, share=3)
TEXT_ENCODER = Kind("text_encoder", _make_text_encoders, _read_text_encoder, share=2)
PUBLISHED = Kind("published", _make_published, _read_published, share=4)
CHECKPOINT = Kind("checkpoint", _make_checkpoints, _read_checkpoint, share=6)
