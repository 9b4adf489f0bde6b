"""Settings of a frontier: the experiment that its points share, what each point changes, and the budgets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from ldm.experiment import Experiment
from odvae.running.settings import Settings, make_settings
from odvae.settings import VAESettings

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
SHARED = "shared"
_FOLDERS = (SHARED, "shards", "videos")  # beside those of the points


class PointSettings(Settings):
    changes: tuple[str, ...] = ()
    """What differs from the shared experiment, as on a command line: vae.model.latent_channels=16. Only in `vae`."""
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """Seeds with which the generator is trained; three and more where points are to be ranked."""
    role: str = "rate"
    """Points of role `rate` are joined by a line. Those of any other role, a word of your choice, are single marks that
    are compared with each other."""
    more_minutes: tuple[float, ...] = ()
    """Further budgets in minutes, of this point alone: 0.8 of the longest tells whether a regularizer saves a fifth."""
    speed_of: str | None = None
    """Another point whose measured speed this one's budgets in minutes are steps of, for points whose generators do the
    same work in a step, as with other regularizers or channels. Then they have the same steps, and neither another
    machine nor the noise of the measurement separates them."""


class FrontierSettings(Settings):
    run: str = "runs/frontier"
    """Working folder: a folder for each point, and the page."""
    results: str = "docs/results/frontier"
    """Folder of the results, a small JSON for each point. A machine that is lost costs one point."""
    experiment: Experiment = Experiment()
    """Settings that all points share. Its `run` is not used; its `seed` is that of the
    VAEs, the latents and the text encoder (generators have the points' `seeds`)."""
    reference: str
    """The point whose `steps` are as in `experiment`: the image phase and the video phase of all others have as many
    steps as give the same number of floating-point operations."""
    points: dict[str, PointSettings] = Field(min_length=1)
    """Name -> what this point changes."""
    minutes: tuple[float, ...] = (1.0,)
    """Budgets of the generator's training in minutes, at the speed that is measured before it."""
    pflop: tuple[float, ...] = ()
    """Budgets of the generator's training in 1e15 floating-point operations."""
    measured_steps: int = Field(8, ge=2)
    """Training steps that are timed before the generator's training."""

    @model_validator(mode="after")
    def _points_are_experiments(self) -> FrontierSettings:
        if self.reference not in self.points:
            raise ValueError(f"reference={self.reference!r} is not among the points {', '.join(self.points)}")
        for name in self.points:
            if not _NAME.fullmatch(name):
                raise ValueError(f"points: {name!r} must be of lower-case letters, digits, '.', '-' and '_'")
            if name in _FOLDERS:
                raise ValueError(f"points: {name!r} is the name of another folder of the frontier; choose another name")
            _check_phases(name, self.experiment_of(name).vae, name == self.reference)
            other = self.points[name].speed_of
            if other is not None and (other == name or other not in self.points or self.points[other].speed_of):
                allowed = ", ".join(one for one in self.points if one != name and self.points[one].speed_of is None)
                raise ValueError(f"points.{name}.speed_of={other!r} is not a point with its own speed: {allowed}")
        return self

    @model_validator(mode="after")
    def _one_training_is_scored_at_all_budgets(self) -> FrontierSettings:
        if not (self.minutes or self.pflop) or min(*self.minutes, *self.pflop, 1) <= 0:
            raise ValueError("minutes and pflop: at least one budget is needed, and all must be above 0")
        for name, point in self.points.items():
            if min(point.more_minutes, default=1) <= 0:
                raise ValueError(f"points.{name}.more_minutes={list(point.more_minutes)}: all must be above 0")
        if (schedule := self.experiment.ldm.optimization.lr_schedule) != "constant":
            raise ValueError(
                f"experiment.ldm.optimization.lr_schedule={schedule}: it must be constant, since one training is "
                "scored at several budgets (its weights are averaged, ema_decay)"
            )
        return self

    @property
    def folder(self) -> Path:
        return Path(self.run)

    @property
    def longest_budget(self) -> str:
        """The largest budget in minutes, or in operations where there are none, as results name it."""
        return f"{max(self.minutes):g} minutes" if self.minutes else f"{max(self.pflop):g} PFLOP"

    def experiment_of(self, name: str) -> Experiment:
        """The experiment of a point, with its own run folder, before its steps follow from the budget.

        Raises InputError where a point's settings are invalid or do not fit the clips.
        """
        base = self.experiment.model_dump(mode="json")
        base |= {"run": str(self.folder / name)}
        if base["data"]["shards"] is None:
            base["data"]["shards"] = str(self.folder / "shards")
        changes = self.points[name].changes
        if other := [one for one in changes if not one.startswith("vae.")]:
            raise ValueError(f"points.{name}.changes: {other[0]!r} is not in the section vae, in which points differ")
        return make_settings(Experiment, base, changes, f"points.{name}")

    def shared(self) -> dict[str, Any]:
        """What the results of all points must have in common to be compared: all that is not as by default."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        experiment = {k: v for k, v in values.get("experiment", {}).items() if k not in ("run", "seed")}
        not_compared = ("run", "results", "points", "measured_steps")
        return {**{k: v for k, v in values.items() if k not in not_compared}, "experiment": experiment}


def _check_phases(name: str, vae: VAESettings, is_reference: bool) -> None:
    """Raise ValueError for a point whose phases cannot be given the reference's operations."""
    from_scratch = vae.init == "random" and not is_reference
    if vae.video_phase is None or (vae.image_phase is None and not from_scratch):
        raise ValueError(
            f"points.{name}: vae must have an image_phase and a video_phase, whose steps are the budget; only points "
            "with vae.init=random, and not the reference, are without image_phase"
        )
