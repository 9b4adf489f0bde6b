"""The picture of a frontier: generation, cost and reconstruction over compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from ldm.frontier.scores import Measure, Score, best_of


def draw(rows: Sequence[Mapping[str, Any]], measure: Measure, path: Path) -> None:
    """Write a PNG of three panels over the compression (pixels of a video for each latent position).

    Generation: a line a budget through the points of role `rate` with its seeds' spread, the best rate marked; other
    points as hollow marks. Cost: training steps of the generator a second. Reconstruction: PSNR, and that of moving
    pixels.
    """
    figure, (generation, speed, quality) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    rates = sorted((row for row in rows if row["role"] == "rate"), key=lambda row: row["compression"])
    others = [row for row in rows if row["role"] != "rate"]
    _draw_generation(generation, rates, others, measure)
    dark, dashed = {"color": "0.2"}, {"color": "0.5", "linestyle": "--"}
    for axis, key, label, style in (
        (speed, "generator_steps_per_second", None, dark),
        (quality, "psnr", "all pixels", dark),
        (quality, "motion_psnr", "moving pixels", dashed),
    ):
        _line(axis, [row for row in rates if row[key] is not None], key, label, **style)
        _hollow(axis, [(row["compression"], row[key]) for row in others if row[key] is not None], "0.4")
    speed.set_ylabel("generator: training steps per second")
    speed.set_ylim(0)
    quality.set_ylabel("reconstruction: PSNR (dB)")
    quality.legend(frameon=False, fontsize=8)
    for axis in (generation, speed, quality):
        axis.set_xscale("log", base=2)
        axis.set_xticks([row["compression"] for row in rates], [row["rate"] for row in rates], rotation=30)
        axis.minorticks_off()
        axis.margins(x=0.12)
        axis.set_xlabel("compression (time x height x width)")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_generation(
    axis: Axes, rates: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], measure: Measure
) -> None:
    budgets = list(dict.fromkeys(budget for row in rates for budget in row["budgets"]))
    for budget in budgets:
        having = [row for row in rates if budget in row["budgets"]]
        scores = [_score(row, budget, measure) for row in having]
        x, y = [row["compression"] for row in having], [measure.shown(one.mean) for one in scores]
        below = [measure.shown(one.mean - one.spread[0]) for one in scores]
        above = [measure.shown(one.spread[1] - one.mean) for one in scores]
        line = axis.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, label=budget)
        best = scores.index(best_of(scores)[0])
        axis.plot([x[best]], [y[best]], "*", color=line[0].get_color(), markersize=15)
        more = [row for row in others if budget in row["budgets"]]
        places = [(row["compression"], measure.shown(_score(row, budget, measure).mean)) for row in more]
        _hollow(axis, places, line[0].get_color())
    ceilings = [] if measure.lower_is_better else [row for row in rates if row["ceiling"] is not None]
    axis.plot([row["compression"] for row in ceilings], [measure.shown(row["ceiling"]) for row in ceilings], ":",
              color="0.4", label="reconstructions")  # fmt: skip
    axis.set_ylabel(measure.label)
    if budgets or ceilings:
        axis.set_ylim(0)
        axis.legend(frameon=False, fontsize=8, title="budget of the generator", loc="best")


def _score(row: Mapping[str, Any], budget: str, measure: Measure) -> Score:
    return Score(row["point"], tuple(row["budgets"][budget]), measure)


def _hollow(axis: Axes, places: Sequence[tuple[float, float]], color: str) -> None:
    if places:
        axis.plot(*zip(*places, strict=True), "o", mfc="none", color=color)


def _line(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str, label: str | None, **style: str) -> None:
    axis.plot([row["compression"] for row in rows], [row[key] for row in rows], marker="o", label=label, **style)
    for row in rows:
        place = (row["compression"], row[key])
        axis.annotate(f"{row['channels']} ch", place, xytext=(4, 5), textcoords="offset points", fontsize=7)
