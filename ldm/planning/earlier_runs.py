"""What an experiment takes from earlier runs (VAE, text encoder, base network), before these runs exist.

It is known from the configs that come with the project: the one whose run is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.experiment import Experiment
from ldm.planning.shipped import shipped_experiments
from odvae.running.settings import load_settings


def with_earlier_runs(experiment: Experiment) -> Experiment:
    """The experiment with the sizes of what it takes from runs of the project's configs.

    What is taken from elsewhere is left as it is.
    """
    vae, text, ldm = experiment.vae, experiment.text, experiment.ldm
    of_vae, of_text, of_ldm = (_source(name) for name in (vae.pretrained, text.encoder, ldm.init_from))
    changes: dict[str, Any] = {}
    if of_vae is not None:
        changes["vae"] = vae.model_copy(update={"model": of_vae.vae.model})
    if of_text is not None:
        changes["text"] = of_text.text.model_copy(update={"max_tokens": text.max_tokens})
    if of_ldm is not None and ldm.network is None:
        changes["ldm"] = ldm.model_copy(update={"dit": of_ldm.ldm.dit, "unet": of_ldm.ldm.unet})
    return experiment.model_copy(update=changes)


def _source(name: str | None) -> Experiment | None:
    """The experiment of which the run's folder, or a folder in it, has this name."""
    for config in shipped_experiments() if name else ():
        experiment = load_settings(Experiment, config)
        if Path(experiment.run) in (Path(str(name)), *Path(str(name)).parents):
            return experiment
    return None
