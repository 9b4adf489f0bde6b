"""A study's page: what holds, the tables, the curves, and the same captions generated on both kinds of latents."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from ldm.report import charts
from ldm.report.flat_table import flatten, to_csv
from ldm.report.page import asked_for, data_uri, render_page
from ldm.study.plan import StudySettings
from odvae.running.files import read_json_lines, write_json, write_text

SHOWN = 8  # captions a generator's videos are shown for


def write_study(settings: StudySettings, found: dict) -> Path:
    """Write study.json, study.csv and study.html into the study's folder; returns the page's path."""
    folder = settings.folder
    table = to_csv(flatten(by_name(found), {}))
    page = render_page(
        "study.html.j2",
        title=found["title"],
        report=found,
        variant_chart=psnr_chart("Held-out PSNR of the variants", found["variants"]),
        initialization_chart=psnr_chart("Held-out PSNR by initialization", found["initializations"]),
        loss_charts={name: loss_chart(name, rows) for name, rows in found["generators"].items() if rows},
        videos={name: same_captions(folder, rows) for name, rows in found["generators"].items()},
        csv=data_uri(table.encode(), "text/csv"),
        json=data_uri(json.dumps(found, indent=1).encode(), "application/json"),
    )
    write_json(folder / "study.json", found)
    write_text(folder / "study.csv", table)
    write_text(folder / "study.html", page)
    return folder / "study.html"


def psnr_chart(title: str, rows: list[dict]):
    lines = {row["label"]: row["curve"] for row in rows if row["curve"]}
    return charts.curve(title, "step", {"PSNR (dB)": lines}) if lines else None


def loss_chart(generator: str, rows: list[dict]):
    """Held-out losses over minutes; losses of different latents do not compare, their courses do."""
    lines = {
        row["label"]: [(step * row["minutes"] / row["steps"], loss) for step, loss in row["curve"]] for row in rows
    }
    return charts.curve(f"Held-out loss of {generator}", "minutes", {"held-out loss": lines})


def same_captions(folder: Path, rows: list[dict]) -> list[dict]:
    """The first held-out captions, each with the video of every run."""
    found: dict[str, dict] = {}
    for row in rows:
        samples = folder / row["run"] / "samples"
        held_out = (sample for sample in read_json_lines(samples / "samples.jsonl") if sample["group"] == "held_out")
        for sample in islice(held_out, SHOWN):
            entry = found.setdefault(sample["file"], {"caption": asked_for(sample), "videos": {}})
            entry["videos"][row["label"]] = data_uri((samples / sample["file"]).read_bytes(), "video/mp4")
    return [entry for entry in found.values() if len(entry["videos"]) == len(rows)]


def by_name(found: dict) -> dict:
    """The tables keyed by their rows' names, as the flat table of numbers wants them."""
    tables = {name: {row["label"]: row for row in found[name]} for name in ("variants", "initializations", "modes")}
    tables["generators"] = {name: {row["label"]: row for row in rows} for name, rows in found["generators"].items()}
    return tables
