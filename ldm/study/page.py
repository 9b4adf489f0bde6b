"""A study's page: claims, tables, curves, and videos of the same captions generated on both kinds of latents."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from ldm.report import charts
from ldm.report.flat_table import flatten, to_csv
from ldm.report.page import data_uri, describe_condition, render_page, video_uri
from ldm.sampling.sample_table import read_sample_rows
from ldm.study.settings import StudySettings
from odvae.running.files import write_json, write_text

NUM_VISUALIZED = 8  # captions per generator


def write_study(settings: StudySettings, found: dict) -> Path:
    """Write study.json, study.csv and study.html of `collect`'s results into the study's folder; return the page."""
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
    """Held-out losses over minutes. Losses on different latents are not comparable, the shapes of their curves are."""
    lines = {
        row["label"]: [(step * row["minutes"] / row["steps"], loss) for step, loss in row["curve"]] for row in rows
    }
    return charts.curve(f"Held-out loss of {generator}", "minutes", {"held-out loss": lines})


def same_captions(folder: Path, rows: list[dict]) -> list[dict]:
    """The first held-out captions, each with the videos of all runs."""
    found: dict[str, dict] = {}
    for row in rows:
        samples = folder / row["run"] / "samples"
        held_out = (sample for sample in read_sample_rows(samples) if sample["group"] == "held_out")
        for sample in islice(held_out, NUM_VISUALIZED):
            entry = found.setdefault(sample.text("file"), {"caption": describe_condition(sample), "videos": {}})
            entry["videos"][row["label"]] = video_uri(samples / sample.text("file"))
    return [entry for entry in found.values() if len(entry["videos"]) == len(rows)]


def by_name(found: dict) -> dict:
    """The tables as mappings from a row's label to the row, as `flatten` takes them."""
    tables = {name: {row["label"]: row for row in found[name]} for name in ("variants", "initializations", "modes")}
    tables["generators"] = {name: {row["label"]: row for row in rows} for name, rows in found["generators"].items()}
    return tables
