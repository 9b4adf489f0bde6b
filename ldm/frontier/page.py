"""The page of a frontier: its answers, the picture, the table, and the same captions as videos at each rate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ldm.frontier.picture import draw
from ldm.frontier.results import answers, markdown, minutes_of, read_results, rows_of
from ldm.frontier.settings import FrontierSettings
from ldm.report.page import data_uri, describe_condition, render_page, video_uri
from ldm.sampling.sample_table import read_sample_rows
from odvae.running.files import write_json, write_text
from odvae.running.run_folder import code_version

NUM_VISUALIZED = 6  # captions


def write_frontier(settings: FrontierSettings) -> Path:
    """Write frontier.json, frontier.md, frontier.png and frontier.html of all points that have results.

    Returns the page. Raises InputError where there are none, or they are not of these settings.
    """
    results, missing = read_results(settings)
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(results)
    roles = list(dict.fromkeys(row["role"] for row in rows))
    found = {
        "title": folder.name,
        "points": rows,
        "missing": missing,
        "answers": {role: answers(results, role) for role in roles},
        "minutes": minutes_of(results),
    }
    draw(rows, folder / "frontier.png")
    write_json(folder / "frontier.json", found)
    write_text(folder / "frontier.md", markdown(rows))
    page = render_page(
        "frontier.html.j2",
        title=folder.name,
        report=code_version(),
        frontier=found,
        picture=data_uri((folder / "frontier.png").read_bytes(), "image/png"),
        videos=same_captions(folder, rows),
        json=data_uri(json.dumps(found, indent=1).encode(), "application/json"),
    )
    write_text(folder / "frontier.html", page)
    return folder / "frontier.html"


def same_captions(folder: Path, rows: Sequence[dict[str, Any]]) -> list[dict]:
    """The first held-out captions, each with the videos of those points that were generated on this machine."""
    found: dict[str, dict] = {}
    for row in rows:
        for samples in islice(sorted((folder / row["point"]).glob("seed_*/samples")), 1):
            held_out = (sample for sample in read_sample_rows(samples) if sample["group"] == "held_out")
            for sample in islice(held_out, NUM_VISUALIZED):
                caption = describe_condition(sample)
                entry = found.setdefault(sample.text("file"), {"caption": caption, "videos": {}})
                entry["videos"][row["point"]] = video_uri(samples / sample.text("file"))
    return list(found.values())
