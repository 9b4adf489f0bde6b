"""Whether a run may be resumed: its recorded settings must equal the present ones, except keys that may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from odvae.running.errors import InputError
from odvae.running.files import read_object, write_text
from odvae.running.settings import Settings, find_renamed, read_yaml, section_in, settings_in
from odvae.running.text import read_text_file


class MayChange:
    """Marks a field whose value may change when a run is resumed: `steps: Annotated[int, MayChange]`.

    Such a field is about length, logging, checkpoints, workers, limits, speed or memory. Only `steps` changes later
    steps too: a learning rate with cosine decay falls until the new last step. docs/cluster.md lists these fields.
    """


@dataclass(frozen=True)
class EarlierValue:
    """Marks a field that is newer than runs which may be resumed, and whose default is not what these did:
    `shuffle: Annotated[str, EarlierValue("exact")] = "blocks"`. Where a run's record lacks it, the run had this value.

    A field without this mark had its default. So a new setting whose default is what was done before needs no mark.
    """

    value: Any


def check_not_made_by_0_1(path: Path, sections: Mapping[str, Any]) -> None:
    """Raise InputError for a record with settings' names of version 0.1, with the names they have now."""
    record = _read_sections(path) if path.exists() else {}
    renamed: dict[str, str] = {}
    for name, section in sections.items():
        if isinstance(section, Settings):
            before = name if name in record else section.renamed_section or name
            if isinstance(record.get(before), dict):
                renamed |= {before: name} if before != name else {}
                renamed |= find_renamed(type(section), record[before], f"{before}.", f"{name}.")
    if renamed:
        raise InputError(
            f"{path.parent} was made by version 0.1, whose settings had other names:\n"
            + "".join(f"  {old} is now {new}\n" for old, new in renamed.items())
            + "nothing in it was changed. This version cannot resume it: choose another run folder (run=...), or "
            "finish it with version 0.1 (docs/changes.md)"
        )


def _read_sections(path: Path) -> dict[Any, Any]:
    """The sections in a run's record of its settings. Raises InputError if it has none."""
    found = read_yaml(read_text_file(path), str(path))
    if not isinstance(found, dict):
        raise InputError(
            f"{path} was damaged: expected the settings of its run, found {type(found).__name__}; restore it, or "
            "choose another run folder (run=...)"
        )
    return found


def record_settings(path: Path, sections: Mapping[str, Any]) -> bool:
    """Write the resolved settings of a run, or check that they equal those of the run that is already in the folder.

    A setting that the record of an earlier version lacks counts as its default (or `EarlierValue`). Returns whether all
    keys are equal to those of an earlier run. Raises InputError with every key that differs and is not marked with
    `MayChange`.
    """
    resolved = {
        name: section.model_dump(mode="json") if isinstance(section, Settings) else section
        for name, section in sections.items()
    }
    if path.exists():
        differing = differing_keys(_with_later_fields(_read_sections(path), sections), resolved)
        if not differing:
            return True
        if changed := {key: values for key, values in differing.items() if not may_change(key, sections)}:
            raise InputError(
                f"{path.parent} holds a run with other settings; choose another run folder (run=...) or remove it:\n"
                + "\n".join(f"  {key}: was {before!r}, now {now!r}" for key, (before, now) in changed.items())
            )
    write_text(path, yaml.safe_dump(resolved, sort_keys=False))
    return False


def _with_later_fields(record: Mapping[Any, Any], sections: Mapping[str, Any]) -> dict[Any, Any]:
    """A record with the sections and settings that it lacks, as they were when it was written."""
    return {**record} | {
        name: _completed(type(section), record.get(name, {}))
        for name, section in sections.items()
        if isinstance(section, Settings)
    }


def _completed(kind: type[Settings], record: Any) -> Any:
    """The recorded values of a section, with those that it lacks; what is no section is returned as it is."""
    if not isinstance(record, dict):
        return record
    values = dict(record)
    for name, field in kind.model_fields.items():
        if name in values:
            values[name] = _completed_within(field.annotation, values[name])
        elif not field.is_required():
            values[name] = to_jsonable_python(_earlier_value(field, values))
    return values


def _completed_within(annotation: Any, value: Any) -> Any:
    """The value of a field, where it is a section, a list or a dictionary of sections, with what these lack."""
    kinds = settings_in(annotation)
    if not kinds:
        return value
    if isinstance(value, list):
        return [_completed_within(annotation, one) for one in value]
    if isinstance(value, dict) and section_in(annotation) is None and get_origin(annotation) is dict:
        return {name: _completed_within(kinds[0], one) for name, one in value.items()}
    fitting = [kind for kind in kinds if isinstance(value, dict) and value.keys() <= kind.model_fields.keys()]
    closest = min(fitting, key=lambda kind: len(kind.model_fields), default=None)  # of a union's classes
    return value if closest is None else _completed(closest, value)


def _earlier_value(field: FieldInfo, values: dict[str, Any]) -> Any:
    """What a record that lacks a field stands for; `values` are those of the fields before it."""
    marks = [mark for mark in field.metadata if isinstance(mark, EarlierValue)]
    return marks[0].value if marks else field.get_default(call_default_factory=True, validated_data=values)


def differing_keys(before: Any, now: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (before, now) for every value in which two nested mappings differ; None for a missing value.

    Elements of lists have their index as key. A section that only one of the mappings has is one value.
    """
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = ({str(i): value for i, value in enumerate(values)} for values in (before, now))
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return {} if before == now else {prefix.removesuffix("."): (before, now)}
    differing: dict[str, tuple[Any, Any]] = {}
    for key in sorted(before | now, key=str):  # a damaged record may have keys of any type
        differing |= differing_keys(before.get(key), now.get(key), f"{prefix}{key}.")
    return differing


def may_change(dotted: str, sections: Mapping[str, Any]) -> bool:
    """Whether a key may change when a run is resumed: its field, or a section around it, is marked with `MayChange`.

    A field of several classes of a union must be marked in each of them.
    """
    section, *names = dotted.split(".")
    kinds = [type(sections[section])] if isinstance(sections.get(section), Settings) else []
    for name in names:
        if name.isdecimal():  # an index in a tuple
            continue
        fields = [kind.model_fields[name] for kind in kinds if name in kind.model_fields]
        if fields and all(field_may_change(field) for field in fields):
            return True
        kinds = [kind for field in fields for kind in settings_in(field.annotation)]
    return False


def field_may_change(field: FieldInfo) -> bool:
    return MayChange in field.metadata or _is_marked(field.annotation)


def _is_marked(annotation: Any) -> bool:
    """Whether an annotation contains `MayChange`, as in `Annotated[int, MayChange] | None`."""
    return annotation is MayChange or any(_is_marked(argument) for argument in get_args(annotation))


def read_stage_record(path: Path) -> dict[str, Any]:
    """`minutes` and whether the stage is `finished`, in its `stage.json`. Raises InputError where it was damaged."""
    record = read_object(path)
    minutes, finished = record.get("minutes"), record.get("finished")
    if not isinstance(minutes, int | float) or not 0 <= minutes < 1e9 or not isinstance(finished, bool):
        raise InputError(
            f"{path} was damaged: minutes is {minutes!r:.100} and finished {finished!r:.100}; remove it, and the same "
            "command looks at what is in the folder"
        )
    return {"minutes": minutes, "finished": finished}
