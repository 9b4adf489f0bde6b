"""What a frontier shows: its page, and the picture, table and videos that stay beside the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from ldm.frontier.claims import frontier_claims
from ldm.frontier.picture import draw
from ldm.frontier.results import budget_columns, markdown, minutes_of, read_results, rows_of
from ldm.frontier.scores import Measure, answers, measure_of
from ldm.frontier.settings import FrontierSettings
from ldm.frontier.side_by_side import write_side_by_side
from ldm.report.page import data_uri, describe_condition, render_page, video_uri
from ldm.sampling.sample_table import read_sample_rows
from odvae.running.files import write_json, write_text
from odvae.running.run_folder import code_version

NUM_VISUALIZED = 6  # captions on the page and in the moving picture


def write_frontier(settings: FrontierSettings) -> Path:
    """Write what all points that have results show, and return the page.

    Into the working folder: frontier.html and frontier.json. Beside the results, to be kept with them: frontier.png,
    frontier.md (the tables), and frontier.gif (videos of the same captions at each rate), where the rates' videos are
    in the working folder. Raises InputError where there are no results, or they are not of these settings.
    """
    results, missing = read_results(settings)
    folder, kept = settings.folder, Path(settings.results)
    folder.mkdir(parents=True, exist_ok=True)
    measure = measure_of(results)
    rows = rows_of(results, measure)
    roles = list(dict.fromkeys(row["role"] for row in rows))
    found = {
        "title": folder.name,
        "points": rows,
        "missing": missing,
        "measure": {"name": measure.name, "lower_is_better": measure.lower_is_better},
        "answers": {role: answers(results, measure, role) for role in roles},
        "claims": [asdict(claim) for claim in frontier_claims(results, settings.reference, settings.longest_budget)],
        "minutes": minutes_of(results),
    }
    draw(rows, measure, kept / "frontier.png")
    write_json(folder / "frontier.json", found)
    write_text(kept / "frontier.md", describe(found, measure))
    videos = same_captions(folder, rows)
    write_rates_side_by_side(settings, rows, videos, kept / "frontier.gif")
    page = render_page(
        "frontier.html.j2",
        title=folder.name,
        report=code_version(),
        frontier=found,
        measure=measure,
        budgets=budget_columns(rows),
        picture=data_uri((kept / "frontier.png").read_bytes(), "image/png"),
        videos=[
            {**entry, "videos": {name: video_uri(file) for name, file in entry["videos"].items()}} for entry in videos
        ],
        json=data_uri(json.dumps(found, indent=1).encode(), "application/json"),
    )
    write_text(folder / "frontier.html", page)
    return folder / "frontier.html"


def same_captions(folder: Path, rows: Sequence[dict[str, Any]]) -> list[dict]:
    """The first held-out captions, each with the video files of those points that were generated on this machine."""
    found: dict[str, dict] = {}
    for row in rows:
        for samples in islice(sorted((folder / row["point"]).glob("seed_*/samples")), 1):
            held_out = (sample for sample in read_sample_rows(samples) if sample["group"] == "held_out")
            for sample in islice(held_out, NUM_VISUALIZED):
                caption = describe_condition(sample)
                known = {"caption": caption, "fps": sample["fps"], "videos": {}}
                entry = found.setdefault(sample.text("file"), known)
                entry["videos"][row["point"]] = samples / sample.text("file")
    return list(found.values())


def write_rates_side_by_side(
    settings: FrontierSettings, rows: Sequence[dict[str, Any]], videos: Sequence[dict], path: Path
) -> None:
    """Write the videos of the first captions at each rate, where all rates have them."""
    rates = sorted((row for row in rows if row["role"] == "rate"), key=lambda row: row["compression"])
    names = [row["point"] for row in rates]
    whole = [entry for entry in videos if names and all(name in entry["videos"] for name in names)]
    if whole:
        grid = [[entry["videos"][name] for name in names] for entry in whole]
        write_side_by_side(grid, [row["rate"] for row in rates], path, whole[0]["fps"])


def describe(found: dict[str, Any], measure: Measure) -> str:
    """The main numbers, the answers and the claims in Markdown."""
    lines = [markdown(found["points"], measure), "\n"]
    for role, by_budget in found["answers"].items():
        lines += [f"- {role}, {budget}: {text}\n" for budget, text in by_budget.items()]
    lines.append("\n| claim | measured | verdict |\n| --- | --- | --- |\n")
    lines += [f"| {row['claim']} | {row['measured']} | {row['verdict']} |\n" for row in found["claims"]]
    return "".join(lines)
