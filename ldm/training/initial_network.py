"""The network that a training starts from: random weights, or a trained one that is fine-tuned, whole or by a LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.diffusion.settings import ObjectiveSettings
from ldm.latents.manifest import Manifest
from ldm.networks.dit import DiT
from ldm.networks.factory import build_network, load_network, network_factory
from ldm.networks.lora import add_lora, has_lora, save_lora
from ldm.networks.network import Network, NetworkFactory
from ldm.networks.provenance import PROVENANCE, Provenance
from ldm.networks.settings import UNetSettings
from ldm.networks.unet import UNet
from ldm.training.settings import LDMSettings
from odvae.running.errors import InputError
from odvae.running.files import read_object
from odvae.running.hashing import weights_fingerprint
from odvae.storage.paths import check_local
from odvae.video_vae import load_vae

# Settings of the objective that determine what a network computes; the others are those of its training alone.
_COMPUTED = ("prediction", "noise_schedule", "zero_terminal_snr")


@dataclass(frozen=True)
class Base:
    """A trained network that is fine-tuned: its folder, and the fingerprints of its weights, VAE and text encoder."""

    network: Any
    folder: Path
    sha256: str
    vae_sha256: str
    text_sha256: str | None


@dataclass(frozen=True)
class InitialNetwork:
    """A network before its training."""

    network: Network
    base: Base | None = None

    @property
    def record(self) -> dict[str, Any]:
        """A section for the stage's record, which must be the same when the training is resumed."""
        return {} if self.base is None else {"init_from": {"sha256": self.base.sha256}}

    def normalization(self, manifest: Manifest) -> Manifest:
        """The manifest with the latents' mean and standard deviation that the network's input is normalized by.

        Those of a base are kept, also where its VAE's statistics were measured again.
        """
        if self.base is None:
            return manifest
        config = self.base.network.config
        return replace(manifest, latents_mean=list(config.latents_mean), latents_std=list(config.latents_std))

    def save(self, weights: Mapping[str, Tensor], folder: Path, make: Callable[[], Network]) -> None:
        """Write trained weights, by parameter name, as a model folder; of a LoRA, the adapter and its base's config.

        They are loaded into another network, where `make` creates one with random weights: the trained one may be
        sharded.
        """
        trained: Any = self.network
        if has_lora(trained):
            save_lora(trained, weights, folder)
            trained.save_config(folder)
            return
        fresh = make() if self.base is None else type(trained).from_config(trained.config)
        fresh.load_state_dict(weights)
        fresh.save_pretrained(folder)

    def provenance(self, provenance: Provenance, folder: Path) -> Provenance:
        """The provenance of the trained network in `folder`: with its base, if it has one."""
        return provenance if self.base is None else provenance.with_base(self.base.folder, self.base.sha256, folder)


def initial_network(settings: LDMSettings, manifest: Manifest, make: NetworkFactory | None = None) -> InitialNetwork:
    """The network to train on these latents: random weights as in the settings or from `make`, or a trained one.

    Raises InputError where the base of a fine-tuning belongs to other latents, conditions or settings than these.
    """
    if settings.init_from is None:
        return InitialNetwork(new_network(settings, manifest, make))
    if make is not None:
        raise InputError("ldm.init_from is for the networks of this project: load the weights in make_network")
    base = load_base(settings.init_from)
    check_base(base, settings, manifest)
    network = base.network
    network.register_to_config(
        sample_size=list(manifest.shape[1:]),
        text_tokens=manifest.text_tokens,
        objective=settings.objective.model_dump(mode="json"),
    )
    network.train().requires_grad_(True)
    if settings.lora is not None:
        add_lora(network, settings.lora)
    return InitialNetwork(network, base)


def new_network(settings: LDMSettings, manifest: Manifest, make: NetworkFactory | None = None) -> Network:
    """A network with random weights for these latents, as in the settings or from the factory `make`."""
    if make is None:
        assert settings.network is not None  # as the settings check, where there is no init_from
        make = network_factory(settings.network)
    return build_network(make, settings.conditioning, settings.objective, manifest)


def load_base(init_from: str) -> Base:
    """The trained network in a run's folder, its ldm folder, or an exported pipeline's folder.

    Raises InputError for anything else.
    """
    check_local(init_from, "ldm.init_from")
    given = Path(init_from)
    folder = next((given / name for name in ("ldm", "transformer") if (given / name / "config.json").is_file()), given)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"ldm.init_from={init_from!r} holds no trained network: give a run's folder (with ldm/), its ldm folder, "
            "or the folder of an exported pipeline (with transformer/); to download one: hf download NAME --local-dir "
            "FOLDER"
        )
    network = load_network(folder)
    text_sha256: str | None
    if (folder / PROVENANCE).is_file():
        provenance = Provenance.load(folder)
        vae_sha256, text_sha256 = provenance.vae_sha256, provenance.text_sha256
    else:
        index = folder.parent / "model_index.json"
        if not index.is_file():
            raise InputError(
                f"ldm.init_from={init_from!r}: {folder} has neither {PROVENANCE} nor a {index.name} beside it, so that "
                "its VAE is unknown"
            )
        vae_sha256, text_sha256 = (
            weights_fingerprint(load_vae(folder.parent / "vae")),
            read_object(index).get("text_sha256"),
        )
    return Base(network, folder, weights_fingerprint(network), vae_sha256, text_sha256)


def check_base(base: Base, settings: LDMSettings, manifest: Manifest) -> None:
    """Raise InputError for a base that was trained on other latents or texts, or does not have the settings."""
    named, config = f"ldm.init_from={settings.init_from!r}", base.network.config
    if base.vae_sha256 != manifest.vae_sha256:
        raise InputError(
            f"{named} was trained on latents of another VAE: its vae_sha256 is {base.vae_sha256[:16]}..., that of "
            f"these latents {manifest.vae_sha256[:16]}...; encode with its VAE (vae.pretrained)"
        )
    kind = settings.conditioning.kind
    expected = {
        "text_width": manifest.text_width if kind == "text" else None,
        "class_names": list(manifest.classes) if kind == "class" else None,
        "first_frame": settings.conditioning.first_frame > 0,
    }
    for name, value in expected.items():
        if config[name] != value:
            raise InputError(
                f"{named} has {name}={config[name]!r:.200}, but the latents and ldm.conditioning need {value!r:.200}"
            )
    if kind == "text" and base.text_sha256 != manifest.text_sha256:
        raise InputError(
            f"{named} was trained with another text encoder: its text_sha256 is {str(base.text_sha256)[:16]}..., that "
            f"of these latents {manifest.text_sha256[:16]}...; encode with its text encoder (text.encoder)"
        )
    was = ObjectiveSettings(**config["objective"])
    for name in _COMPUTED:
        if (before := getattr(was, name)) != (now := getattr(settings.objective, name)):
            raise InputError(f"{named} was trained with ldm.objective.{name}={before!r}, found {now!r}")
    _check_sizes(base.network, settings, named)


def _check_sizes(network: Any, settings: LDMSettings, named: str) -> None:
    """Raise InputError for another network than `ldm.dit` or `ldm.unet`, if one is given, or than options need."""
    if settings.network is not None:
        section, kind = ("unet", UNet) if isinstance(settings.network, UNetSettings) else ("dit", DiT)
        if type(network) is not kind:
            raise InputError(f"{named} is a {type(network).__name__}: leave ldm.{section} out")
        for name, value in settings.network.arguments.items():
            found = network.config[name]
            if (tuple(found) if isinstance(value, tuple) else found) != value:
                raise InputError(f"{named} has {name}={found!r}, ldm.{section} {value!r}: leave ldm.{section} out")
    for name in ("compile", "gradient_checkpointing"):
        if isinstance(network, UNet) and getattr(settings.optimization, name):
            raise InputError(f"ldm.optimization.{name}=true, but {named} is a UNet, which does not support it")
