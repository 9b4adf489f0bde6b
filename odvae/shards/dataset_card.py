"""README.md of a folder of tar shards, by which `datasets.load_dataset` and the Hugging Face hub find its data.

Without it they would take a JSON file that describes the shards for the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from odvae.storage.files import atomic_file

CARD = "README.md"

# The type of a column of videos, which are read as bytes: to decode them `datasets` needs torchcodec.
VIDEO = "video"


def dataset_card(
    title: str,
    about: str,
    facts: Mapping[str, str],
    example: str,
    data_files: Mapping[str, str],
    columns: Mapping[str, Any],
    tags: Sequence[str],
) -> str:
    """The text of a card.

    `about` are sentences, `facts` the rows of a table (without those that are empty), `example` is Python code that
    reads the data. `data_files` has a pattern of files for each configuration of the data set, the first is "default".
    `columns` has the default one's by name: a type of `datasets`, a list of one, or a dict of columns. Without them
    `datasets` takes those of the first five samples, and refuses data in which these are not the same.
    """
    configs = [{"config_name": name, "data_files": pattern} for name, pattern in data_files.items()]
    information = {"config_name": "default", "features": [_feature(*one) for one in columns.items()]}
    parts = {"tags": list(tags), "configs": configs, "dataset_info": information}
    head = yaml.safe_dump(parts, sort_keys=False)
    rows = "".join(f"| {name} | {_cell(value)} |\n" for name, value in facts.items() if value)
    return f"---\n{head}---\n# {title}\n\n{about}\n\n| | |\n|---|---|\n{rows}\n```python\n{example}```\n"


def write_card(folder: Path, card: str) -> None:
    """Write it into a folder, a path or a URL."""
    with atomic_file(folder / CARD) as file:
        file.write(card.encode())


def _feature(name: str, kind: Any) -> dict[str, Any]:
    """A column as `dataset_info` has it."""
    if isinstance(kind, list):
        return {"name": name, "list": kind[0]}
    if isinstance(kind, dict):
        return {"name": name, "struct": [_feature(*one) for one in kind.items()]}
    return {"name": name, "dtype": kind if kind != VIDEO else {"video": {"decode": False}}}


def _cell(value: str) -> str:
    """A value as a cell of a Markdown table."""
    return " ".join(value.replace("|", "\\|").split())
