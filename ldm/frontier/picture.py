"""The picture of a frontier: generation, cost and reconstruction over compression."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ldm.frontier.scores import Measure, Score, best_of
from odvae.running.files import atomic_file

Row = Mapping[str, Any]
MARKS = "s^vD<>pPXhd"
APART = 0.13  # between hollow marks of the same compression, as a power of two


def draw(rows: Sequence[Row], measure: Measure, path: Path) -> None:
    """Write a PNG of three panels over the compression (pixels of a video for each latent position).

    Generation: a line a budget through the points of role `rate` with its seeds' spread, the best rate marked. Cost:
    training steps of the generator a second. Reconstruction: PSNR, and that of moving pixels. Points of other roles are
    hollow marks, each of its own form, side by side at the right of their compression.
    """
    figure, (generation, speed, quality) = plt.subplots(1, 3, figsize=(13, 4.9), layout="constrained")
    rates = sorted((row for row in rows if row["role"] == "rate"), key=lambda row: row["compression"])
    others = [row for row in rows if row["role"] != "rate"]
    marks = {row["point"]: MARKS[i % len(MARKS)] for i, row in enumerate(others)}
    places = _side_by_side(others)
    _draw_generation(generation, rates, others, marks, places, measure)
    dark, dashed = {"color": "0.2"}, {"color": "0.5", "linestyle": "--"}
    for axis, key, label, style in (
        (speed, "generator_steps_per_second", None, dark),
        (quality, "psnr", "all pixels", dark),
        (quality, "motion_psnr", "moving pixels", dashed),
    ):
        _line(axis, [row for row in rates if row[key] is not None], key, label, **style)
        for row in others:
            if row[key] is not None:
                _hollow(axis, places[row["point"]], row[key], marks[row["point"]], style["color"])
    speed.set_ylabel("generator: training steps per second")
    speed.set_ylim(0)
    quality.set_ylabel("reconstruction: PSNR (dB)")
    quality.legend(frameon=False, fontsize=8)
    ticks = {row["compression"]: row["rate"] for row in [*others, *rates]}
    for axis in (generation, speed, quality):
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(ticks), list(ticks.values()), rotation=30)
        axis.minorticks_off()
        axis.margins(x=0.12)
        axis.set_xlabel("compression (time x height x width)")
        axis.grid(alpha=0.3)
    handles, labels = generation.get_legend_handles_labels()
    handles += [Line2D([], [], marker=marks[row["point"]], mfc="none", color="0.3", linestyle="none") for row in others]
    labels += [row["point"] for row in others]
    if handles:
        columns = -(-len(handles) // -(-len(handles) // 6))  # rows of at most six, equally long
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    plt.close(figure)
    with atomic_file(path) as file:
        file.write(picture.getvalue())


def _side_by_side(others: Sequence[Row]) -> dict[str, float]:
    """Name -> place on the axis of compression."""
    before, places = Counter[int](), {}
    for row in others:
        before[row["compression"]] += 1
        places[row["point"]] = row["compression"] * 2 ** (APART * before[row["compression"]])
    return places


def _draw_generation(
    axis: Axes,
    rates: Sequence[Row],
    others: Sequence[Row],
    marks: Mapping[str, str],
    places: Mapping[str, float],
    measure: Measure,
) -> None:
    budgets = list(dict.fromkeys(budget for row in rates for budget in row["budgets"]))
    for budget in budgets:
        having = [row for row in rates if budget in row["budgets"]]
        scores = [_score(row, budget, measure) for row in having]
        x, y = [row["compression"] for row in having], [measure.shown(one.mean) for one in scores]
        below, above = zip(*(_spread(one, measure) for one in scores), strict=True)
        line = axis.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, label=f"after {budget}")
        best = scores.index(best_of(scores)[0])
        axis.plot([x[best]], [y[best]], "*", color=line[0].get_color(), markersize=15)
        for row in others:
            if budget in row["budgets"]:
                score, place = _score(row, budget, measure), places[row["point"]]
                color, spread = line[0].get_color(), [[one] for one in _spread(score, measure)]
                _hollow(axis, place, measure.shown(score.mean), marks[row["point"]], color, spread)
    ceilings = [] if measure.lower_is_better else [row for row in rates if row["ceiling"] is not None]
    axis.plot([row["compression"] for row in ceilings], [measure.shown(row["ceiling"]) for row in ceilings], ":",
              color="0.4", label="reconstructions")  # fmt: skip
    axis.set_ylabel(measure.label)
    if budgets or ceilings:
        axis.set_ylim(0)


def _score(row: Row, budget: str, measure: Measure) -> Score:
    return Score(row["point"], tuple(row["budgets"][budget]), measure)


def _spread(score: Score, measure: Measure) -> tuple[float, float]:
    """How far the seeds reach below and above their mean."""
    return measure.shown(score.mean - score.spread[0]), measure.shown(score.spread[1] - score.mean)


def _hollow(
    axis: Axes, x: float, y: float, mark: str, color: str, spread: Sequence[Sequence[float]] | None = None
) -> None:
    axis.errorbar([x], [y], yerr=spread, marker=mark, mfc="none", color=color, elinewidth=1, capsize=2, markersize=6)


def _line(axis: Axes, rows: Sequence[Row], key: str, label: str | None, **style: str) -> None:
    axis.plot([row["compression"] for row in rows], [row[key] for row in rows], marker="o", label=label, **style)
    for row in rows:
        place = (row["compression"], row[key])
        axis.annotate(f"{row['channels']} ch", place, xytext=(4, 5), textcoords="offset points", fontsize=7)
