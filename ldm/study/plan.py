"""The runs of a study. Each is an ordinary experiment in a separate run folder, executed by the pipeline scripts.

Paper: arXiv 2409.01199; a. Table 3 and Figure 4 a-c, b. Figure 4 d-f, c. Table 4, d. Table 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ldm.experiment import Experiment
from ldm.study.settings import LongClipSettings, StudySettings, variant_name
from odvae.settings import Init

Budget = Literal["steps", "time"]
IMAGE = "image_vae"


@dataclass(frozen=True)
class Run:
    """One run: its experiment, its pipeline scripts in order, and the stage folders that it takes from other runs."""

    name: str
    experiment: Experiment
    scripts: tuple[str, ...]
    borrowed: dict[str, str] = field(default_factory=dict)  # stage folder -> run that wrote it


def vae_runs(settings: StudySettings) -> list[Run]:
    """The runs of VAEs: the image VAE from which all start, the variants, the initializations, and the long clips."""
    base = settings.experiment
    compared = ("train_vae", "evaluate_vae")
    image = _vary(settings, IMAGE, video_phase=None)
    runs = [Run(IMAGE, image, (*compared, *(["encode_latents"] if settings.generators else [])))]
    begun = {"init_image_vae": str(settings.folder / IMAGE / "vae"), "image_phase": None}
    for variant in sorted({*settings.variants, base.vae.model.variant}):
        name = variant_name(variant)
        model = base.vae.model.model_copy(update={"variant": variant})
        scripts = (*compared, "encode_latents") if name == settings.main_vae and settings.generators else compared
        runs.append(Run(name, _vary(settings, name, model=model, **begun), scripts))
    for init in settings.initializations:
        if init != "tail":
            begin = dict.fromkeys(("init_image_vae", "image_phase"), None) if init == "random" else begun
            runs.append(Run(init_name(init), _vary(settings, init_name(init), init=init, **begin), compared))
    if settings.long_clips is not None:
        runs.append(_long_clips_run(settings, settings.long_clips))
    return runs


def init_name(init: Init) -> str:
    return f"init_{init}"


def _long_clips_run(settings: StudySettings, long: LongClipSettings) -> Run:
    base = settings.experiment
    data = {"frames": long.frames, "shards": str(_shards(settings))}
    update: dict = {}
    if base.demo_videos is not None:  # separate videos, that are long enough
        data |= {"shards": None, "held_out": 0.5}
        update["demo_videos"] = base.demo_videos.model_copy(update={"count": long.count})
    clips = {
        "modes": ("streamed", "tiled"),
        "compared_clips": base.eval_vae.clips,
        "tile_frames": long.tile_frames,
        "frames": None,
    }
    update["eval_vae"] = base.eval_vae.model_copy(update=clips)
    update |= {"run": str(settings.folder / "long_clips"), "data": base.data.model_copy(update=data)}
    return Run("long_clips", base.model_copy(update=update), ("evaluate_vae",), {"vae": settings.main_vae})


def generator_run(settings: StudySettings, generator: str, vae: str, budget: Budget, steps: int | None = None) -> Run:
    """One generator on the latents of one VAE, trained for its settings' steps or for `steps`."""
    name = generator_name(generator, vae, budget)
    ldm = settings.generators[generator]
    if steps is not None:
        ldm = ldm.model_copy(update={"optimization": ldm.optimization.model_copy(update={"steps": steps})})
    experiment = _vary(settings, name).model_copy(update={"ldm": ldm})
    return Run(name, experiment, ("train_ldm", "sample_video", "evaluate_ldm"), {"vae": vae, "latents": vae})


def generator_name(generator: str, vae: str, budget: Budget) -> str:
    return f"{generator}_on_{'image' if vae == IMAGE else 'odvae'}_equal_{budget}"


def _shards(settings: StudySettings) -> Path:
    """All runs read the same videos."""
    given = settings.experiment.data.shards
    return Path(given) if given else settings.folder / "shards"


def _vary(settings: StudySettings, name: str, **vae) -> Experiment:
    base = settings.experiment
    return base.model_copy(
        update={
            "run": str(settings.folder / name),
            "data": base.data.model_copy(update={"shards": str(_shards(settings))}),
            "vae": base.vae.model_copy(update=vae),
        }
    )
