"""The trained VAE of a run, whichever class it is."""

from __future__ import annotations

from pathlib import Path

from odvae.model import ODVAE
from odvae.per_frame import PerFrameVAE
from odvae.running.errors import InputError
from odvae.running.files import read_json

VideoVAE = ODVAE | PerFrameVAE
_CLASSES = {"ODVAE": ODVAE, "PerFrameVAE": PerFrameVAE, "AutoencoderKL": PerFrameVAE}


def load_vae(folder: Path) -> VideoVAE:
    """The VAE in `folder`, frozen and in eval mode: an ODVAE, or an image VAE that works frame by frame.

    Raises InputError that names the command which makes it, where there is none.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no trained VAE; make it with: accelerate launch pipelines/train_vae.py")
    name = read_json(folder / "config.json").get("_class_name")
    if name not in _CLASSES:
        raise InputError(f"{folder / 'config.json'}: _class_name is {name!r}; allowed are {', '.join(_CLASSES)}")
    return _CLASSES[name].from_pretrained(folder).eval().requires_grad_(False)
