"""Results of a study, collected from its runs' folders: the rows of its tables, and the curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from ldm.demo.accuracy import attributes_of
from ldm.report.report_values import distance_parts, interval_of
from ldm.study.claims import claims
from ldm.study.plan import IMAGE, Budget, generator_name, init_name
from ldm.study.settings import StudySettings, Variant, variant_name
from odvae.running.files import read_json_lines, read_object
from odvae.running.json_objects import JsonObject
from odvae.running.resume_check import read_stage_record
from odvae.running.run_folder import code_version

SCORES = ("psnr", "ssim", "lpips")


def collect(settings: StudySettings) -> dict:
    """All results so far, as in `study.json`; runs that are not finished are left out."""
    found: dict[str, Any] = {
        "title": settings.folder.name,
        **code_version(),
        "variants": variant_rows(settings),
        "initializations": initialization_rows(settings),
        "modes": mode_rows(settings),
        "generators": {name: generator_rows(settings, name) for name in settings.generators},
        "minutes": minutes(settings.folder),
    }
    rows = {row["run"]: row for row in found["initializations"] + found["variants"]}
    others = [rows[name] for name in (init_name("average"), init_name("random")) if name in rows]
    variants = {number: rows[name] for number in get_args(Variant) if (name := variant_name(number)) in rows}
    main = rows.get(settings.main_vae)
    return {**found, "claims": claims(main, variants, others, found["modes"], found["generators"])}


def variant_rows(settings: StudySettings) -> list[dict]:
    """a. The image VAE, and the variants."""
    named = [("image VAE, frame by frame", IMAGE)]
    named += [
        (f"variant {i}", variant_name(i)) for i in sorted({*settings.variants, settings.experiment.vae.model.variant})
    ]
    return [row for label, run in named if (row := vae_row(settings.folder / run, label))]


def initialization_rows(settings: StudySettings) -> list[dict]:
    """b. Tail is the run of the main variant."""
    runs = [("tail", settings.main_vae)] + [
        (init, init_name(init)) for init in settings.initializations if init != "tail"
    ]
    return [row for init, run in runs if (row := vae_row(settings.folder / run, init))]


def vae_row(folder: Path, label: str) -> dict | None:
    """Quality, cost and the curve of held-out PSNR of one VAE run."""
    report, cost = _read(folder / "report" / "report.json"), _read(folder / "cost.json")
    if report is None or cost is None or "reconstruction" not in report:
        return None
    part = report.section("reconstruction")
    quality = {name: part.number(name) for name in SCORES if name in part or name == "psnr"}
    clips = [row.number("psnr") for row in read_json_lines(folder / "report" / "reconstructions.jsonl")]
    curve = psnr_curve(folder)
    return {"label": label, "run": folder.name, **quality, **cost, "curve": curve, "clip_psnr": clips, **_source(part)}


def psnr_curve(folder: Path) -> list[tuple[float, float]]:
    """(step, held-out PSNR) of the training on clips."""
    path = folder / "vae" / "metrics.jsonl"
    rows = read_json_lines(path) if path.is_file() else []
    return [(row.number("step"), row.number("validation_psnr")) for row in rows if "validation_psnr" in row]


def mode_rows(settings: StudySettings) -> list[dict]:
    """c. Whole, streamed, tiled: the modes that were scored on the long clips."""
    report = _read(settings.folder / "long_clips" / "report" / "report.json")
    if report is None:
        return []
    part = report.section("reconstruction")
    frames, modes = part.section("protocol").number("frames"), part.section("modes")
    rows = {mode: modes.section(mode) for mode in modes}
    return [
        {"label": mode, "run": "long_clips", "frames": frames, **row, "psnr": row.number("psnr"), **_source(part)}
        for mode, row in rows.items()
        if "psnr" in row
    ]


def generator_rows(settings: StudySettings, generator: str) -> list[dict]:
    """d. One generator on both kinds of latents, at equal steps and at equal time."""
    kinds: list[tuple[str, str, Budget]] = [
        ("image VAE", IMAGE, "steps"),
        ("OD-VAE, equal steps", settings.main_vae, "steps"),
        ("OD-VAE, equal time", settings.main_vae, "time"),
    ]
    rows = []
    for label, vae, budget in kinds:
        folder = settings.folder / generator_name(generator, vae, budget)
        # The two budgets of one VAE have the same network and batch: their cost is measured once.
        cost = _read(settings.folder / generator_name(generator, vae, "steps") / "cost.json")
        report = _read(folder / "report" / "report.json")
        if cost is not None and report is not None and "distances" in report:
            rows.append({"label": label, "run": folder.name, **training(folder), **cost, **scores(report)})
    return rows


def training(folder: Path) -> dict:
    """Steps, minutes and the last losses of a generator's training."""
    logged = read_json_lines(folder / "ldm" / "metrics.jsonl")
    curve = [(row.number("step"), row.number("held_out_loss")) for row in logged if "held_out_loss" in row]
    return {
        "steps": max((row.number("step") for row in logged), default=0),
        "minutes": read_stage_record(folder / "ldm" / "stage.json")["minutes"],
        "held_out_loss": curve[-1][1] if curve else None,
        "curve": curve,
    }


def scores(report: JsonObject) -> dict:
    """Distances with their baselines, and prompt accuracy where the videos are the demo's."""
    network, part = next(distance_parts(report), ("", JsonObject({}, f"{report.source}: distances")))
    accuracy = report.section("prompt_accuracy") if report["prompt_accuracy"] is not None else None
    accuracies = None if accuracy is None else {name: accuracy.number(name) for name in attributes_of(accuracy)}
    generated = part.section("generated")
    return {
        "distance": part.text("name"),
        "network": network,
        "n": part.number("n"),
        **{key: generated.number(key) for key in ("frechet", "kernel")},
        **{f"{key}_interval": interval_of(generated, key) for key in ("frechet", "kernel")},
        "frechet_reconstructed": part.section("reconstructed").number("frechet"),
        "frechet_real": part.section("real").number("frechet"),
        "inception_score": generated.get("inception_score"),
        "prompt_accuracy": accuracies,
        "judged_videos": None if accuracy is None else accuracy.number("n"),
        **_source(report.section("distances")),
    }


def minutes(folder: Path) -> dict[str, float]:
    """Wall time of each run's commands."""
    spent: dict[str, float] = {}
    for marker in sorted(folder.glob("*/done/*.json")):
        run = marker.parents[1].name
        spent[run] = round(spent.get(run, 0.0) + read_object(marker).number("minutes"), 3)
    return spent


def _read(path: Path) -> JsonObject | None:
    return read_object(path) if path.is_file() else None


def _source(part: JsonObject) -> dict:
    return {"command": part.text("command"), "commit": part.text("commit")}
