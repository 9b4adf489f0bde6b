"""Creates and loads the networks that an experiment can train, chosen by `ldm.dit` or `ldm.unet`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ldm.diffusion.settings import ObjectiveSettings
from ldm.latents.manifest import Manifest
from ldm.networks.dit import DiT
from ldm.networks.network import Network, NetworkFactory
from ldm.networks.settings import ConditioningSettings, DiTSettings, UNetSettings
from ldm.networks.unet import UNet
from odvae.running.commands import command_line
from odvae.running.errors import InputError
from odvae.weights.pretrained import load_model, read_config, write_again

# Classes that may be named in the config.json of a network's folder.
NETWORKS = {"DiT": DiT, "UNet": UNet}


def network_factory(settings: DiTSettings | UNetSettings) -> NetworkFactory:
    """A factory of the network that the settings describe."""
    return functools.partial(UNet if isinstance(settings, UNetSettings) else DiT, **settings.arguments)


def build_network(
    make: NetworkFactory,
    conditioning: ConditioningSettings,
    objective: ObjectiveSettings,
    manifest: Manifest,
) -> Network:
    """A network with random weights for the latents of `manifest`.

    Raises InputError for class conditioning where the latents have no classes.
    """
    if conditioning.kind == "class" and not manifest.classes:
        raise InputError(
            "ldm.conditioning.kind=class, but the latents' manifest lists no class: the videos have no labels. Label "
            "them in their shards and encode again, or choose text or none"
        )
    conditions: dict[str, Any] = {
        "text_width": manifest.text_width if conditioning.kind == "text" else None,
        "text_tokens": manifest.text_tokens,
        "class_names": list(manifest.classes) if conditioning.kind == "class" else None,
        "first_frame": conditioning.first_frame > 0,
    }
    latents: dict[str, Any] = {
        "latent_channels": manifest.shape[0],
        "sample_size": manifest.shape[1:],
        "latents_mean": manifest.latents_mean,
        "latents_std": manifest.latents_std,
    }
    return make(**conditions, **latents, objective=objective.model_dump(mode="json"))


def load_network(folder: Path) -> Network:
    """A run's trained network, in eval mode. Raises InputError, with the training command, where there is none."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no trained LDM; make it with: {command_line('train_ldm')}")
    name = read_config(folder).get("_class_name")
    if not isinstance(name, str) or name not in NETWORKS:
        raise InputError(f"{folder / 'config.json'}: _class_name={name!r}; allowed are {', '.join(NETWORKS)}")
    remedy = write_again(folder, "train_ldm")
    return load_model(NETWORKS[name], folder, str(folder), "an LDM", remedy).eval().requires_grad_(False)
