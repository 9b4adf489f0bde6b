"""The scores of a frontier's generators: by what they are measured, and which point is the best for a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from ldm.demo.accuracy import mean_accuracy
from odvae.running.errors import InputError
from odvae.running.json_objects import JsonObject


@dataclass(frozen=True)
class Measure:
    """What generated videos are scored by: prompt accuracy of the demo's videos (a share), else a Fréchet distance."""

    name: str
    lower_is_better: bool = False

    @property
    def label(self) -> str:
        """For an axis, on which shares are in percent."""
        return self.name if self.lower_is_better else f"{self.name} (%)"

    def of(self, row: Mapping[str, Any]) -> float | None:
        """The score of one scored generator; None where it has none."""
        if self.lower_is_better:
            return row.get("frechet")
        return None if row.get("prompt_accuracy") is None else mean_accuracy(row["prompt_accuracy"])

    def shown(self, value: float) -> float:
        """A value on the axis of `label`."""
        return value if self.lower_is_better else 100 * value

    def text(self, value: float) -> str:
        return f"{value:.3g}" if self.lower_is_better else f"{value:.1%}"


PROMPTED = Measure("videos as prompted")


def measure_of(results: Sequence[JsonObject]) -> Measure:
    """The measure that all results have. Raises InputError for distances on different features."""
    rows = [row for result in results for row in result["generators"]]
    if any(row.get("prompt_accuracy") is not None for row in rows):
        return PROMPTED
    names = {row["distance"]: result.source for result in results for row in result["generators"]}
    if len(names) > 1:
        found = "; ".join(f"{name!r} in {source}" for name, source in names.items())
        raise InputError(f"the results have distances that cannot be compared: {found}")
    return Measure(f"{names.popitem()[0]}, lower is better", lower_is_better=True) if names else PROMPTED


@dataclass(frozen=True)
class Score:
    """A point's generator at one budget: the score of each seed."""

    point: str
    by_seed: tuple[float, ...]
    measure: Measure = PROMPTED

    @property
    def mean(self) -> float:
        return mean(self.by_seed)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest of the seeds."""
        return min(self.by_seed), max(self.by_seed)

    def beats(self, other: Score) -> bool:
        """Whether the worst seed is better than the other's best."""
        if self.measure.lower_is_better:
            return self.spread[1] < other.spread[0]
        return self.spread[0] > other.spread[1]

    def __str__(self) -> str:
        low, high = map(self.measure.text, self.spread)
        return f"{self.measure.text(self.mean)} ({low} to {high})"


def scores_of(result: JsonObject, measure: Measure) -> dict[str, Score]:
    """Budget -> the scores of the seeds that were trained for it; none where they were not measured so."""
    found: dict[str, list[float]] = {}
    for row in result["generators"]:
        if (value := measure.of(row)) is not None:
            for budget in row["budgets"]:
                found.setdefault(budget, []).append(value)
    return {budget: Score(result.text("point"), tuple(values), measure) for budget, values in found.items()}


def best_of(scores: Sequence[Score]) -> tuple[Score, list[Score]]:
    """The score with the best mean, and those that it is not separated from: it does not beat them."""
    sign = -1 if scores[0].measure.lower_is_better else 1
    best = max(scores, key=lambda one: sign * one.mean)
    return best, [one for one in scores if one is not best and not best.beats(one)]


def answers(results: Sequence[JsonObject], measure: Measure, role: str = "rate") -> dict[str, str]:
    """Budget -> which point of a role is best for it, in a sentence."""
    found: dict[str, str] = {}
    for budget, scores in by_budget([one for one in results if one.text("role") == role], measure).items():
        best, ties = best_of(scores)
        low, high = map(measure.text, best.spread)
        seeds = "one seed" if len(best.by_seed) == 1 else f"{low} to {high} over {len(best.by_seed)} seeds"
        text = f"{best.point}: {measure.text(best.mean)} ({seeds})"
        if len(scores) > 1 and min(len(one.by_seed) for one in scores) < 2:
            text += "; some points have one seed only, so their spread is not known"
        elif ties:
            text += "; not separable here from " + ", ".join(f"{one.point} ({measure.text(one.mean)})" for one in ties)
        elif len(scores) > 1:
            text += "; all its seeds are better than all seeds of the others"
        found[budget] = text
    return found


def by_budget(results: Sequence[JsonObject], measure: Measure) -> dict[str, list[Score]]:
    """Budget -> the scores of the points that have it."""
    found: dict[str, list[Score]] = {}
    for result in results:
        for budget, score in scores_of(result, measure).items():
            found.setdefault(budget, []).append(score)
    return found
