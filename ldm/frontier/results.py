"""The results of all points as one table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from ldm.demo.accuracy import mean_accuracy
from ldm.frontier.budget import budgets_of
from ldm.frontier.scores import Measure, Score, scores_of
from ldm.frontier.settings import FrontierSettings
from odvae.running.errors import InputError
from odvae.running.files import read_object
from odvae.running.json_objects import JsonObject
from odvae.running.resume_check import differing_keys


def read_results(settings: FrontierSettings) -> tuple[list[JsonObject], list[str]]:
    """The results of the points, in the order of the config, and the names of points without one.

    Raises InputError, before anything is computed, for results that were made by other settings than these.
    """
    found, missing = [], []
    for name in settings.points:
        result = _read_own(settings, name)
        if result is None:
            missing.append(name)
        else:
            found.append(result)
    if not found:
        raise InputError(f"{settings.results} has no result of any point; run: tools/compression_frontier.py CONFIG")
    return found, missing


def result_file(settings: FrontierSettings, name: str) -> Path:
    return Path(settings.results) / f"{name}.json"


def is_finished(settings: FrontierSettings, name: str) -> bool:
    """Whether a point has a result with all of its seeds and budgets. Raises InputError for one of other settings."""
    result = _read_own(settings, name)
    if result is None:
        return False
    scored = {(row["seed"], budget) for row in result["generators"] for budget in row["budgets"]}
    return scored >= set(product(settings.points[name].seeds, budgets_of(settings, name)))


def read_result(path: Path) -> JsonObject:
    """A point's result. Raises InputError where it was damaged."""
    found = read_object(path)
    for key in ("point", "role", "machine", "commit"):
        found.text(key)
    for key in ("shared", "minutes"):
        found.section(key)
    found.section("vae").number("psnr")
    found.section("cost").section("generator").number("tokens")
    for row in found.sections("generators"):
        row.number("seed")
        row.number("steps")
        row.texts("budgets")
    compression_of(found)
    return found


def _read_own(settings: FrontierSettings, name: str) -> JsonObject | None:
    path = result_file(settings, name)
    if not path.is_file():
        return None
    result = read_result(path)
    _check_same(result, name, settings)
    return result


def _check_same(result: JsonObject, name: str, settings: FrontierSettings) -> None:
    different = differing_keys(result.section("shared"), settings.shared())
    if list(settings.points[name].changes) != result["changes"]:
        different["points.changes"] = (result["changes"], list(settings.points[name].changes))
    if different:
        lines = "".join(f"\n  {key}: was {was!r:.100}, now {now!r:.100}" for key, (was, now) in different.items())
        raise InputError(f"{result.source} was made by other settings, and cannot be compared:{lines}")


def rows_of(results: Sequence[JsonObject], measure: Measure) -> list[dict[str, Any]]:
    """A row a point: what it costs, what it keeps, and the scores of its generator at each budget."""
    return [
        {
            "point": result.text("point"),
            "role": result.text("role"),
            **quality_of(result.section("vae")),
            **result.section("cost").section("vae"),
            **compression_of(result),
            **{f"generator_{key}": value for key, value in result.section("cost").section("generator").items()},
            **_budget_speed(result),
            "ceiling": _ceiling(result),
            "budgets": {budget: list(score.by_seed) for budget, score in scores_of(result, measure).items()},
            "machine": result.text("machine"),
            "cost_machine": result.section("cost").get("machine") or result.text("machine"),
            "commit": result.text("commit"),
        }
        for result in results
    ]


def minutes_of(results: Sequence[JsonObject]) -> float:
    """Minutes of all points; a stage that points share counts once, with the longest time that it took."""
    total, shared = 0.0, dict[str, float]()
    for result in results:
        minutes = result.section("minutes")
        total += minutes.number("point")
        for stage in (stages := minutes.section("shared")):
            shared[stage] = max(shared.get(stage, 0.0), stages.number(stage))
    return total + sum(shared.values())


def quality_of(vae: JsonObject) -> dict[str, Any]:
    """Reconstruction scores of a VAE, and the measures of its latents; None where there is none."""
    latents = vae.section("latents") if vae.has("latents") else JsonObject({}, vae.source)
    motion = vae.section("motion") if vae.has("motion") else JsonObject({}, vae.source)
    low = latents.get("low_frequency_share") or {}
    return {
        **{key: value for key, value in vae.items() if isinstance(value, int | float)},
        "motion_psnr": motion.get("psnr"),
        **{key: latents.get(key) for key in ("bits_per_pixel", "effective_rank", "local_correlation")},
        **{f"low_frequency_share_{axes}": share for axes, share in low.items()},
    }


def compression_of(result: JsonObject) -> dict[str, Any]:
    """Rate and channels of a point, from the latents that its generator was trained on.

    Raises InputError where they were damaged.
    """
    cost = result.section("cost")
    rate, shape = cost.section("vae").text("compression"), cost.section("generator").numbers("latent_shape")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", rate) or len(shape) != 4:
        raise InputError(f"{result.source} was damaged: compression {rate:.40} of latents {shape!s:.40}")
    time, height, width = (int(one) for one in rate.split("x"))
    channels = int(shape[0])
    return {
        "rate": rate,
        "channels": channels,
        "compression": time * height * width,
        "values_per_pixel_value": channels / (3 * time * height * width),
    }


def _budget_speed(result: JsonObject) -> dict[str, Any]:
    """The speed that the budgets in minutes are steps of, and the point where it was measured if it was another."""
    if not result.has("budget_speed"):
        return {"speed_of": None}
    speed = result.section("budget_speed")
    other = None if speed.text("of") == result.text("point") else speed.text("of")
    return {"generator_steps_per_second": speed.number("steps_per_second"), "speed_of": other}


def _ceiling(result: JsonObject) -> float | None:
    """Prompt accuracy of the reconstructions of real videos, which bounds a generator's."""
    found = [row["ceiling"] for row in result["generators"] if row.get("ceiling") is not None]
    return mean(mean_accuracy(one) for one in found) if found else None


def budget_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The budgets at which any point was scored, by unit and amount."""
    names = {budget for row in rows for budget in row["budgets"]}
    return sorted(names, key=lambda name: (name.split()[1:], float(name.split()[0])))


def markdown(rows: Sequence[Mapping[str, Any]], measure: Measure) -> str:
    """The main numbers as a Markdown table."""
    budgets = budget_columns(rows)
    head = ["point", "rate", "channels", "PSNR", "of motion", "bits/pixel", "tokens", "steps/s", "ceiling", *budgets]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row["point"], row["rate"], str(row["channels"]), f"{row['psnr']:.2f}"]
        cells += ["–" if row[key] is None else f"{row[key]:.2f}" for key in ("motion_psnr", "bits_per_pixel")]
        speed = f"{row['generator_steps_per_second']:.2f}" + (f" (of {row['speed_of']})" if row["speed_of"] else "")
        cells += [str(row["generator_tokens"]), speed]
        cells.append("–" if row["ceiling"] is None else f"{row['ceiling']:.1%}")
        for budget in budgets:
            score = Score(row["point"], tuple(row["budgets"].get(budget, ())), measure)
            cells.append(
                "–" if not score.by_seed else str(score) if len(score.by_seed) > 1 else measure.text(score.mean)
            )
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
