"""Creates and loads the networks that an experiment can train, chosen by `ldm.dit` or `ldm.unet`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ldm.diffusion.settings import ObjectiveSettings
from ldm.latents.manifest import Manifest
from ldm.networks.dit import DiT
from ldm.networks.lora import LORA_WEIGHTS, merge_lora
from ldm.networks.network import Network, NetworkFactory
from ldm.networks.provenance import PROVENANCE, Provenance
from ldm.networks.settings import ConditioningSettings, DiTSettings, UNetSettings
from ldm.networks.unet import UNet
from odvae.running.commands import with_config
from odvae.running.errors import InputError
from odvae.running.hashing import weights_fingerprint
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
    """A run's trained network, in eval mode; where a LoRA was trained, its base with the adapter merged into it.

    Raises InputError, with the training command, where there is none, and where the base is not there any more or is
    another network than the adapter was trained on.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no trained LDM; make it with: {with_config('train_ldm')}")
    name = read_config(folder).get("_class_name")
    if not isinstance(name, str) or name not in NETWORKS:
        raise InputError(f"{folder / 'config.json'}: _class_name={name!r}; allowed are {', '.join(NETWORKS)}")
    if (folder / LORA_WEIGHTS).is_file():
        return _load_adapted(folder)
    remedy = write_again(folder, "train_ldm")
    return load_model(NETWORKS[name], folder, str(folder), "an LDM", remedy).eval().requires_grad_(False)


def _load_adapted(folder: Path) -> Network:
    """The base of the LoRA in `folder` with the adapter merged into it, and the config that is in `folder`."""
    provenance = Provenance.load(folder)
    if provenance.base is None:
        raise InputError(f"{folder / PROVENANCE} names no base network, but {LORA_WEIGHTS} is the adapter of one")
    base = (folder / provenance.base).resolve()
    if not (base / "config.json").is_file():
        raise InputError(
            f"{folder} holds a LoRA of the network in {base}, which is not there any more: restore it, or write its "
            f"path, relative to {folder}, into {folder / PROVENANCE} (base)"
        )
    network: Any = load_network(base)
    if (found := weights_fingerprint(network)) != provenance.base_sha256:
        raise InputError(
            f"{folder} holds a LoRA of another network than that in {base}: its base_sha256 is "
            f"{str(provenance.base_sha256)[:16]}..., the network's {found[:16]}...; restore the base, or train again"
        )
    merge_lora(network, folder / LORA_WEIGHTS)
    config = read_config(folder)
    network.register_to_config(**{name: value for name, value in config.items() if not name.startswith("_")})
    return network
