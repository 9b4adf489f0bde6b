"""The report page: one self-contained HTML file with the numbers, the curves and the videos side by side."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from odvae.shared.pictures import save_picture, strip
from odvae.shared.run_folder import RunFolder, read_json_lines, write_text
from odvae.shared.video import decode

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def render_report(folders: RunFolder, report: dict, shown: int) -> Path:
    """Write `report/report.html` and `report/overview.png` from what the stages left; returns the page's path."""
    samples = read_json_lines(folders.samples / "samples.jsonl")
    reconstructions = [row for row in read_json_lines(folders.report / "reconstructions.jsonl") if "made" in row]
    rows = _rows(folders, samples, reconstructions, shown)
    page = _template().render(
        report=report,
        rows=rows,
        unseen=[_sample_cell(folders, row) for row in samples if row["group"] == "unseen"][:shown],
        asked=[_sample_cell(folders, row) for row in samples if row["group"] == "asked"][:shown],
        curves=[_data_uri(curve, "image/svg+xml") for curve in _curves(folders)],
        run=folders.root.name,
    )
    write_text(folders.report / "report.html", page)
    _write_overview(folders, rows)
    return folders.report / "report.html"


def _rows(folders: RunFolder, samples: list[dict], reconstructions: list[dict], shown: int) -> list[dict]:
    """Real, reconstructed and generated video of the same caption, as the page's rows."""
    generated = {row["source"]: row for row in reversed(samples) if row["group"] == "held_out"}
    rows = []
    for row in reconstructions:
        if row["key"] in generated and len(rows) < shown:
            files = {
                "real": folders.report / row["real"],
                "reconstructed": folders.report / row["made"],
                "generated": folders.samples / generated[row["key"]]["file"],
            }
            videos = {name: _data_uri(path.read_bytes(), "video/mp4") for name, path in files.items()}
            rows.append({"caption": row["caption"], "psnr": row["psnr"], "files": files, **videos})
    return rows


def _sample_cell(folders: RunFolder, row: dict) -> dict:
    path = folders.samples / row["file"]
    return {"caption": row["prompt"], "video": _data_uri(path.read_bytes(), "video/mp4")}


def _write_overview(folders: RunFolder, rows: list[dict]) -> None:
    """The first rows as one picture: frames of the real, the reconstructed and the generated video."""
    strips = [np.stack(list(decode(path, path.name))) for row in rows[:3] for path in row["files"].values()]
    if strips:
        save_picture(folders.report / "overview.png", strip(strips))


def _curves(folders: RunFolder) -> list[bytes]:
    """Training curves as SVG: loss, and what validation measured."""
    plots = (
        (folders.vae / "image_vae", "image VAE", "loss", "validation_psnr", "held-out PSNR (dB)"),
        (folders.vae, "OD-VAE", "loss", "validation_psnr", "held-out PSNR (dB)"),
        (folders.ldm, "latent diffusion model", "loss", "held_out_loss", "held-out loss"),
    )
    curves = []
    for folder, title, training, validation, label in plots:
        path = folder / "metrics.jsonl"
        if path.is_file():
            curves.append(_curve(read_json_lines(path), title, training, validation, label))
    return curves


def _curve(rows: list[dict], title: str, training: str, validation: str, label: str) -> bytes:
    figure, axes = plt.subplots(figsize=(4.6, 2.7), layout="constrained")
    steps = [(row["step"], row[training]) for row in rows if training in row]
    measured = [(row["step"], row[validation]) for row in rows if validation in row]
    gray, blue, orange = "#808080", "#3b82f6", "#f59e0b"
    if steps:
        axes.plot(*zip(*steps, strict=True), color=blue, linewidth=1.2)
        axes.set_yscale("log")
    axes.set_ylabel(f"training {training}", color=blue)
    twin = axes.twinx()
    if measured:
        twin.plot(*zip(*measured, strict=True), color=orange, marker="o", markersize=3, linewidth=1.2)
    twin.set_ylabel(label, color=orange)
    axes.set_title(title, color=gray, fontsize=10)
    for side in (axes, twin):
        side.tick_params(colors=gray, which="both", labelsize=8)
        for spine in side.spines.values():
            spine.set_color(gray)
    axes.set_xlabel("step", color=gray)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True)
    plt.close(figure)
    return buffer.getvalue()


def _template():
    return Environment(loader=PackageLoader("ldm"), autoescape=select_autoescape(["j2"])).get_template("report.html.j2")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
