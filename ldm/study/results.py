"""Results of a study, collected from its runs' folders: the rows of its tables, and the curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.study.claims import ATTRIBUTES, claims
from ldm.study.plan import IMAGE, Budget, generator_name, init_name
from ldm.study.settings import StudySettings, variant_name
from odvae.running.files import read_json, read_json_lines
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
    main, first = rows.get(settings.main_vae), rows.get(variant_name(1))
    return {**found, "claims": claims(main, first, others, found["modes"], found["generators"])}


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
    part = report["reconstruction"]
    quality = {name: part[name] for name in SCORES if name in part}
    return {"label": label, "run": folder.name, **quality, **cost, "curve": psnr_curve(folder), **_source(part)}


def psnr_curve(folder: Path) -> list[tuple[int, float]]:
    """(step, held-out PSNR) of the training on clips."""
    path = folder / "vae" / "metrics.jsonl"
    rows = read_json_lines(path) if path.is_file() else []
    return [(row["step"], row["validation_psnr"]) for row in rows if "validation_psnr" in row]


def mode_rows(settings: StudySettings) -> list[dict]:
    """c. Whole, streamed, tiled: the modes that were scored on the long clips."""
    report = _read(settings.folder / "long_clips" / "report" / "report.json")
    if report is None:
        return []
    part = report["reconstruction"]
    frames = part["protocol"]["frames"]
    return [
        {"label": mode, "run": "long_clips", "frames": frames, **row, **_source(part)}
        for mode, row in part["modes"].items()
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
    return {
        "steps": max(row["step"] for row in logged),
        "minutes": read_stage_record(folder / "ldm" / "stage.json")["minutes"],
        "held_out_loss": next((row["held_out_loss"] for row in reversed(logged) if "held_out_loss" in row), None),
        "curve": [(row["step"], row["held_out_loss"]) for row in logged if "held_out_loss" in row],
    }


def scores(report: dict) -> dict:
    """Distances with their baselines, and prompt accuracy where the videos are the demo's."""
    network, part = next((name, part) for name, part in report["distances"].items() if isinstance(part, dict))
    accuracy = report["prompt_accuracy"]
    return {
        "distance": part["name"],
        "network": network,
        "n": part["n"],
        **{key: part["generated"][key] for key in ("frechet", "frechet_interval", "kernel", "kernel_interval")},
        "frechet_reconstructed": part["reconstructed"]["frechet"],
        "frechet_real": part["real"]["frechet"],
        "inception_score": part["generated"].get("inception_score"),
        "prompt_accuracy": None if accuracy is None else {name: accuracy[name] for name in ATTRIBUTES},
        **_source(report["distances"]),
    }


def minutes(folder: Path) -> dict[str, float]:
    """Wall time of each run's commands."""
    spent: dict[str, float] = {}
    for marker in sorted(folder.glob("*/done/*.json")):
        run = marker.parents[1].name
        spent[run] = round(spent.get(run, 0.0) + read_json(marker)["minutes"], 3)
    return spent


def _read(path: Path) -> dict | None:
    return read_json(path) if path.is_file() else None


def _source(part: dict) -> dict:
    return {"command": part["command"], "commit": part["commit"]}
