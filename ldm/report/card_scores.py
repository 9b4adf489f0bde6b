"""Model cards: their templates, and what they say of the scores in report.json: values, protocols, commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ldm.report.flat_table import as_text
from ldm.report.report_values import distance_parts
from odvae.running.files import read_object
from odvae.running.json_objects import JsonObject
from odvae.running.stage import RECORD

# Scores that a model card lists, as far as they were measured: path in report.json and label.
SCORES = {
    "reconstruction.psnr": "reconstruction PSNR, dB",
    "reconstruction.ssim": "reconstruction SSIM",
    "prompt_accuracy.color": "prompt accuracy, color",
    "prompt_accuracy.shape": "prompt accuracy, shape",
    "prompt_accuracy.motion": "prompt accuracy, motion",
    "prompt_accuracy.speed": "prompt accuracy, speed",
}


def render_card(template: str, **values: Any) -> str:
    """A card from one of ldm/report/templates. Raises jinja2's UndefinedError where a template's value is missing."""
    loader = PackageLoader("ldm.report", "templates")
    return Environment(loader=loader, undefined=StrictUndefined, autoescape=False).get_template(template).render(values)


def report_scores(report: JsonObject) -> list[tuple[str, str]]:
    """(label, value) of the scores of a report.json that a model card lists, as far as they were measured."""
    scores = []
    for dotted, label in SCORES.items():
        section, key = dotted.split(".")
        if report.has(section) and key in report.section(section):
            scores.append((label, f"{report.section(section).number(key):.4g}"))
    for _, part in distance_parts(report):
        generated, real = part.section("generated"), part.section("real")
        label = f"{part.text('name')} of {generated.number('n')} generated to {part.number('n')} real videos"
        values = f"{generated.number('frechet'):.4g} (other real videos: {real.number('frechet'):.4g})"
        scores.append((label, values))
    return scores


def report_protocols(report: JsonObject) -> list[tuple[str, str, str]]:
    """(part, protocol, command) of each part of a report.json that `report_scores` takes scores from."""
    parts = [name for name in dict.fromkeys(dotted.split(".")[0] for dotted in SCORES) if report.has(name)]
    found = [(name, report.section(name), report.section(name)) for name in parts]
    found += [(part.text("name"), part, report.section("distances")) for _, part in distance_parts(report)]
    return [
        (name, as_text(part["protocol"]), command_words(source.text("command")))
        for name, part, source in found
        if "protocol" in part and "command" in source
    ]


def recorded_command(folder: Path) -> str:
    """The last command that a stage's folder was written by; empty where there is no record."""
    path = folder / RECORD
    return command_words(read_object(path).text("command")) if path.is_file() else ""


def command_words(command: str) -> str:
    """A recorded command, without the folder that its script is in on the machine that ran it."""
    script, *arguments = command.split(" ")
    return " ".join([Path(script).name, *arguments])
