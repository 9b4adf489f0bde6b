"""The report page: one self-contained HTML file with videos side by side, scores and training curves.

`numbers.csv` next to it lists every value with its protocol, command and commit; `overview.png` shows the first videos.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ldm.demo.judge import ATTRIBUTES
from ldm.report import charts
from ldm.report.flat_table import as_text, flatten, to_csv
from ldm.report.report_values import SETS, check_shown, check_source, distance_parts, interval_of, vae_measures
from ldm.sampling.sample_table import read_sample_rows
from odvae.report_file import STAGES
from odvae.running.errors import InputError
from odvae.running.files import read_json_lines, read_object, write_text
from odvae.running.json_objects import JsonObject
from odvae.running.run_folder import RunFolder
from odvae.video.frame_grid import frame_grid, save_image
from odvae.video.video_io import decode


def render_report(folders: RunFolder, report: JsonObject, num_visualized: int) -> Path:
    """Write report.html, numbers.csv and overview.png from the outputs of the stages; return the page's path.

    Raises InputError that names the file, and the key or line, where one of them was damaged or a video is missing.
    """
    stages = stage_records(folders)
    check_shown(report)
    numbers = flatten(report, stages)
    table = to_csv(numbers)
    samples = read_sample_rows(folders.samples)
    rows = side_by_side(folders, samples, num_visualized)
    page = render_page(
        "report.html.j2",
        title=folders.root.name,
        report=dict(report),
        rows=rows,
        groups=[
            ("Generated", "The evaluation's samples; there are no real videos with the same captions to compare with.",
             [] if rows else sample_cells(folders, samples, "held_out", num_visualized)),
            ("Held-out combinations",
             "Each word was in the training captions; this combination of shape, color and motion was not.",
             sample_cells(folders, samples, "unseen", num_visualized)),
            ("User prompts", "Generated with --prompt, --class or --image.",
             sample_cells(folders, samples, "user", num_visualized)),
        ],
        labels=SETS,
        vae_measures=vae_measures(report),
        distance_charts=distance_charts(report),
        curves=training_curves(folders),
        stages=stages,
        numbers=numbers,
        csv=data_uri(table.encode(), "text/csv"),
        json=data_uri((folders.report / "report.json").read_bytes(), "application/json"),
    )  # fmt: skip
    write_text(folders.report / "numbers.csv", table)
    write_text(folders.report / "report.html", page)
    write_overview(folders, rows)
    return folders.report / "report.html"


def render_page(template: str, **values: Any) -> str:
    """A page from one of ldm/report/templates. Raises jinja2's UndefinedError where a template's value is missing."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ldm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["attributes"] = ATTRIBUTES
    environment.filters |= {"text": as_text, "number": short_number, "percent": lambda share: f"{100 * share:.1f}%"}
    return environment


def short_number(value: float | None) -> str:
    """Three significant digits, with an exponent only for very small and very large values."""
    if value is None:
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    digits = 3 - len(str(int(abs(value)))) if abs(value) >= 1 else 3
    return f"{value:.{max(0, digits)}f}"


def stage_records(folders: RunFolder) -> dict[str, JsonObject]:
    """Each stage's record: minutes, command, commit."""
    paths = {stage: getattr(folders, stage) / "stage.json" for stage in STAGES}
    records = {stage: read_object(path) for stage, path in paths.items() if path.is_file()}
    for record in records.values():
        record.number("minutes")
        check_source(record)
    return records


def side_by_side(folders: RunFolder, samples: Sequence[JsonObject], num_visualized: int) -> list[dict]:
    """Rows of a real video, its reconstruction and a video generated from its caption.

    Empty where the VAE was not evaluated.
    """
    table = folders.report / "reconstructions.jsonl"
    generated = {row.text("source"): row for row in reversed(samples) if row["group"] == "held_out" and row["source"]}
    rows = []
    for row in read_json_lines(table) if table.is_file() else []:
        if "reconstructed" in row and row.text("key") in generated and len(rows) < num_visualized:
            files = {
                "real": folders.report / row.text("real"),
                "reconstructed": folders.report / row.text("reconstructed"),
                "generated": folders.samples / generated[row.text("key")].text("file"),
            }
            videos = {name: video_uri(path) for name, path in files.items()}
            about = {"caption": row.text("caption"), "psnr": row.number("psnr")}
            rows.append({**about, "files": files, "videos": videos})
    return rows


def sample_cells(folders: RunFolder, samples: Sequence[JsonObject], group: str, num_visualized: int) -> list[dict]:
    return [
        {"caption": describe_condition(row), "video": video_uri(folders.samples / row.text("file"))}
        for row in samples
        if row["group"] == group
    ][:num_visualized]


def describe_condition(row: JsonObject) -> str:
    """What a sample was generated from, in words: its prompt, its class, or "unconditional"."""
    prompt = row.text("prompt") if row["prompt"] is not None else ""
    return prompt or (f"class {row['class_label']}" if row.get("class_label") is not None else "unconditional")


def write_overview(folders: RunFolder, rows: list[dict]) -> None:
    """Write frames of the first rows' real, reconstructed and generated videos as one image."""
    strips = [np.stack(list(decode(path, path.name))) for row in rows[:3] for path in row["files"].values()]
    if strips:
        save_image(folders.report / "overview.png", frame_grid(strips))


def distance_charts(report: JsonObject) -> dict[str, list[Markup]]:
    """Charts per feature network: distances with their intervals, and distance over 1/n."""
    found = {}
    for network, part in distance_parts(report):
        sets, name = {label: part.section(label) for label in SETS}, part.text("name")
        dots = {label: (one.number("frechet"), interval_of(one, "frechet")) for label, one in sets.items()}
        lines = {
            label: [(1 / n, value) for n, value in one.number_pairs("frechet_by_n")] for label, one in sets.items()
        }
        found[network] = [
            charts.whiskers(f"{name} and its 95% interval", name.split(" (")[0], dots),
            charts.curve("Distance over 1/n", "1 / number of videos", {"distance": lines}),
        ]
    return found


def training_curves(folders: RunFolder) -> list[tuple[str, Markup]]:
    """(title, chart) of training loss and validation metric, for each training in the run folder."""
    plots = (
        ("image VAE", folders.vae / "image_vae", "validation_psnr", "held-out PSNR (dB)"),
        ("OD-VAE", folders.vae, "validation_psnr", "held-out PSNR (dB)"),
        ("latent diffusion model", folders.ldm, "held_out_loss", "held-out loss"),
    )
    curves = []
    for title, folder, validation, label in plots:
        rows = read_json_lines(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
        panels = {
            name: {title: [(row.number("step"), row.number(key)) for row in rows if key in row]}
            for name, key in (("training loss", "loss"), (label, validation))
        }
        if rows:
            curves.append((title, charts.curve(title, "step", panels)))
    return curves


def video_uri(path: Path) -> str:
    """A video's file as a data URI. Raises InputError where it is missing."""
    if not path.is_file():
        raise InputError(f"{path} is missing, but a table of this run lists it: make it again, or restore it")
    return data_uri(path.read_bytes(), "video/mp4")


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
