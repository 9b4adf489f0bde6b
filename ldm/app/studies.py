"""The runs of a study for the page: their numbers as tables, and their videos of the same captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from ldm.report.flat_table import flatten
from ldm.report.page import describe_condition, render_page, short_number, video_uri
from ldm.sampling.sample_requests import HELD_OUT
from ldm.sampling.sample_table import read_sample_rows
from odvae.running.errors import InputError
from odvae.running.files import read_object
from odvae.running.json_objects import JsonObject

NUM_CAPTIONS = 24
MOST_RUNS = 6  # side by side

# What is no result of a row but its name, or belongs beside the table.
_NO_COLUMNS = {"label", "run", "point", "command", "commit", "protocol", "generator_protocol", "machine", "curve"}

# The numbers of a run's report that its row has, by their names in report.json.
_OF_A_REPORT = {
    "reconstruction.psnr": "PSNR",
    "reconstruction.ssim": "SSIM",
    "prompt_accuracy.color": "color as prompted",
    "prompt_accuracy.shape": "shape as prompted",
    "prompt_accuracy.motion": "motion as prompted",
    "prompt_accuracy.speed": "speed as prompted",
}


@dataclass(frozen=True)
class Run:
    """A row of a table: its name, its numbers by column, and the folder of its videos."""

    name: str
    values: Mapping[str, Any]
    samples: Path


@dataclass(frozen=True)
class Study:
    """A study's tables, by title; the rows of a table are runs."""

    title: str
    tables: Mapping[str, Sequence[Run]]

    def runs(self, table: str) -> Sequence[Run]:
        """Raises InputError for a table that there is not: the browser may send any name."""
        if table not in self.tables:
            raise InputError(f"{self.title} has no table {table!r:.100}; choose one of the list")
        return self.tables[table]


def find_studies(folders: Sequence[Path]) -> dict[str, Study]:
    """The studies in these folders, by title. Raises InputError for a folder without any run's results."""
    found: dict[str, Study] = {}
    for folder in folders:
        study = read_study(folder)
        if study is None:
            raise InputError(
                f"{folder} has no results: neither a study.json or frontier.json, nor folders of runs with a "
                "report/report.json"
            )
        found[study.title if study.title not in found else str(folder)] = study
    return found


def read_study(folder: Path) -> Study | None:
    """The study in a folder: of compression_study, of compression_frontier, or a folder of run folders.

    None where it has no results. Raises InputError for damaged ones.
    """
    if (folder / "study.json").is_file():
        tables = _study_tables(folder, read_object(folder / "study.json"))
    elif (folder / "frontier.json").is_file():
        frontier = read_object(folder / "frontier.json")
        measure = frontier.section("measure").text("name") if frontier.has("measure") else "accuracy"
        tables = {"points": [_point(folder, row, measure) for row in frontier.sections("points")]}
    else:
        reports = sorted(folder.glob("*/report/report.json"))
        tables = {"runs": [_run(path) for path in reports]}
    tables = {name: runs for name, runs in tables.items() if runs}
    return Study(folder.resolve().name, tables) if tables else None


def _study_tables(folder: Path, found: JsonObject) -> dict[str, Sequence[Run]]:
    tables = {name: found.sections(name) for name in ("variants", "initializations", "modes")}
    generators = found.section("generators")
    tables |= {f"generator {name}": generators.sections(name) for name in generators}
    return {
        title: [Run(row.text("label"), _columns(row), folder / row.text("run") / "samples") for row in rows]
        for title, rows in tables.items()
    }


def _point(folder: Path, row: JsonObject, measure: str) -> Run:
    values = {**_columns(row), **{f"{measure}, {budget}": value for budget, value in _budgets(row)}}
    samples = sorted((folder / row.text("point")).glob("seed_*/samples"))
    return Run(row.text("point"), values, samples[0] if samples else folder / row.text("point") / "samples")


def _budgets(row: JsonObject) -> Iterator[tuple[str, float]]:
    """(Budget, mean score over the seeds) of a point, of the budgets at which it was scored."""
    budgets = row.section("budgets")
    for name in budgets:
        if scores := budgets.numbers(name):
            yield name, mean(scores)


def _run(report: Path) -> Run:
    folder = report.parents[1]
    found = read_object(report)
    numbers = {row.name: row.value for row in flatten(found, {})}
    values = {label: numbers[name] for name, label in _OF_A_REPORT.items() if name in numbers}
    values |= {
        f"Fréchet distance ({name.split('.')[1]} features)": value
        for name, value in numbers.items()
        if name.startswith("distances.") and name.endswith(".generated.frechet")
    }
    minutes = found.section("minutes") if found.has("minutes") else {}
    if minutes:
        values["minutes"] = sum(minutes.values())
    return Run(folder.name, values, folder / "samples")


def _columns(row: JsonObject) -> dict[str, Any]:
    return {
        key.replace("_", " "): value
        for key, value in row.items()
        if key not in _NO_COLUMNS and isinstance(value, int | float | str)
    }


def table_html(runs: Sequence[Run]) -> str:
    """The numbers of runs side by side: a row a run."""
    columns = list(dict.fromkeys(column for run in runs for column in run.values))
    rows = [(run.name, [_cell(run.values.get(column)) for column in columns]) for run in runs]
    return render_page("app_table.html.j2", columns=columns, rows=rows)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else short_number(value)


def captions(runs: Sequence[Run]) -> list[str]:
    """The first captions of which any of the runs has a video."""
    found = dict.fromkeys(caption for run in runs for caption, _ in _videos(run))
    return list(islice(found, NUM_CAPTIONS))


def videos_html(runs: Sequence[Run], names: Sequence[str], caption: str | None) -> str:
    """The videos that the named runs generated from a caption, side by side. Raises InputError for unknown names."""
    by_name = {run.name: run for run in runs}
    if unknown := [name for name in names if name not in by_name]:
        raise InputError(f"there is no run {unknown[0]!r:.100} in this table; choose from the list")
    if len(names) > MOST_RUNS:
        raise InputError(f"{len(names)} runs are chosen; at most {MOST_RUNS} are shown side by side")
    found = {name: next((path for each, path in _videos(by_name[name]) if each == caption), None) for name in names}
    videos = {name: None if path is None else video_uri(path) for name, path in found.items()}
    return render_page("app_videos.html.j2", caption=caption, videos=videos)


def _videos(run: Run) -> Iterator[tuple[str, Path]]:
    """(Caption, file) of a run's videos of held-out captions."""
    for row in read_sample_rows(run.samples):
        name = row.text("file")
        if row["group"] == HELD_OUT and Path(name).name == name:  # a table may come from elsewhere
            yield describe_condition(row), run.samples / name
