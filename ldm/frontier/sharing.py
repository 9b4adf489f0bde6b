"""What points have in common and is made once: the videos, the text encoder, and image VAEs of the same settings.

Each is in a folder below `shared`, made by the first point that needs it, so every point can be run by itself.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ldm.encode import check_captions
from ldm.encoding.own_text_encoder import learn_from_captions
from ldm.experiment import Experiment
from ldm.frontier.budget import with_equal_steps
from ldm.frontier.settings import SHARED, FrontierSettings
from ldm.networks.settings import LEARNED
from ldm.open_videos import open_videos
from ldm.study.plan import Run
from odvae.architecture.settings import ModelSettings
from odvae.settings import VAESettings

PREPARED = "videos_and_text_encoder"


def image_vae_settings(experiment: Experiment) -> VAESettings | None:
    """What the training of an experiment's image VAE depends on: settings that only the video VAE reads are as by
    default. None without an image phase."""
    vae = experiment.vae
    if vae.image_phase is None:
        return None
    sizes = ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
    values = {key: getattr(vae.model, key) for key in (*sizes, "spatial_compression_ratio")}
    model = ModelSettings(temporal_compression_ratio=1, **values)
    return vae.model_copy(update={"model": model, "init": "tail", "video_phase": None})


def image_vae_stage(experiment: Experiment) -> str | None:
    """The folder below `shared` of an experiment's image VAE: the same for the same settings. None without one.

    Equal settings have equal numbers of steps too, since these follow from the settings and the reference.
    """
    vae = image_vae_settings(experiment)
    if vae is None:
        return None
    return f"image_vae_{hashlib.sha256(vae.model_dump_json().encode()).hexdigest()[:8]}"


def shared_stages(settings: FrontierSettings, name: str) -> list[str]:
    """The folders below `shared` that a point needs."""
    stage = image_vae_stage(settings.experiment_of(name))
    return [PREPARED, *([] if stage is None else [stage])]


def points_sharing(settings: FrontierSettings, stage: str) -> list[str]:
    """The points that need a folder below `shared`."""
    return [name for name in settings.points if stage in shared_stages(settings, name)]


def image_vae_run(settings: FrontierSettings, name: str) -> Run | None:
    """The run that trains the image VAE of a point; None where it has none."""
    stage, experiment = image_vae_stage(settings.experiment_of(name)), with_equal_steps(settings, name)
    vae = image_vae_settings(experiment)
    if stage is None or vae is None:
        return None
    update = {"vae": vae, "run": str(settings.folder / SHARED / stage)}
    return Run(f"{SHARED}/{stage}", experiment.model_copy(update=update), ("train_vae",))


def with_shared_stages(settings: FrontierSettings, name: str, experiment: Experiment) -> Experiment:
    """A point's experiment that begins from the shared image VAE and the shared text encoder."""
    update: dict[str, Any] = {}
    if learns_text(experiment):
        update["text"] = experiment.text.model_copy(update={"encoder": str(text_encoder_folder(settings))})
    if (stage := image_vae_stage(settings.experiment_of(name))) is not None:
        begun = {"image_phase": None, "init_image_vae": str(settings.folder / SHARED / stage / "vae")}
        update["vae"] = experiment.vae.model_copy(update=begun)
    return experiment.model_copy(update=update)


def learns_text(experiment: Experiment) -> bool:
    """Whether the generators read captions by a text encoder that is learned from these captions."""
    return experiment.ldm.conditioning.kind == "text" and experiment.text.encoder == LEARNED


def text_encoder_folder(settings: FrontierSettings) -> Path:
    return settings.folder / SHARED / PREPARED / "text_encoder"


def prepare(settings: FrontierSettings) -> None:
    """Render and pack the demo's videos where there are none, and train the text encoder on the captions.

    Raises InputError where the generators need captions and the videos have none.
    """
    experiment = settings.experiment_of(settings.reference)
    videos, folder = open_videos(experiment), text_encoder_folder(settings)
    if experiment.ldm.conditioning.kind == "text":
        check_captions(videos)
    if learns_text(experiment) and not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        learn_from_captions(experiment.text, videos, folder, experiment.seed)
