"""Settings as frozen pydantic models, read from a strict YAML file with dotted command-line overrides.

The docstring under a field is also its description in `--help`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from odvae.running.errors import InputError
from odvae.running.strict_yaml import read_yaml
from odvae.running.text import read_text_file


class Settings(BaseModel):
    """Base class of the sections of a config: frozen; unknown keys and wrong types are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Key of version 0.1 -> its name now; for a renamed value, "key: value" -> "key: new value"."""
    renamed_section: ClassVar[str | None] = None
    """The name that version 0.1 used for the section with these settings."""


SettingsT = TypeVar("SettingsT", bound=Settings)

Precision = Literal["auto", "bf16", "fp32"]


class MayChange:
    """Marks a field whose value may change when a run is resumed: `steps: Annotated[int, MayChange]`.

    Such a field determines the length of a run, its logging or its workers, but not the result of a step.
    """


def differing_keys(before: Any, now: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (before, now) for every value in which two nested mappings differ; None for a missing value.

    Elements of lists have their index as key. A section that only one of the mappings has is one value.
    """
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = ({str(i): value for i, value in enumerate(values)} for values in (before, now))
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return {} if before == now else {prefix.removesuffix("."): (before, now)}
    differing: dict[str, tuple[Any, Any]] = {}
    for key in sorted(before | now, key=str):  # a record that was damaged may have keys of any type
        differing |= differing_keys(before.get(key), now.get(key), f"{prefix}{key}.")
    return differing


def load_settings(kind: type[SettingsT], path: str | Path, overrides: Sequence[str] = ()) -> SettingsT:
    """Read `kind` from a YAML file and apply `section.key=value` overrides, whose values are YAML too.

    Raises InputError with the file, the key, what was found and what is allowed.
    """
    path = Path(path)
    data = read_yaml(read_text_file(path, "config file"), str(path)) or {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected sections with keys, found {type(data).__name__}")
    source = str(path) if not overrides else f"{path} with {' '.join(overrides)}"
    return make_settings(kind, data, overrides, source)


def find_config(given: str | Path, shipped: Path) -> Path:
    """Path of a config file, given by its path or by its name in the folder `shipped` (demo or configs/demo.yaml).

    Raises InputError, with the names of the shipped configs, if there is no such file.
    """
    given = Path(given)
    if given.is_file():
        return given
    found = shipped / (given.as_posix().removeprefix("configs/").removesuffix(".yaml") + ".yaml")
    if given.is_absolute() or not found.is_file():
        names = sorted(str(path.relative_to(shipped).with_suffix("")) for path in shipped.rglob("*.yaml"))
        raise InputError(f"config file {given} does not exist; the configs of this project are: {', '.join(names)}")
    return found


def make_settings(kind: type[SettingsT], data: dict[str, Any], overrides: Sequence[str], source: str) -> SettingsT:
    """Create `kind` from values and `section.key=value` overrides. Raises InputError, which names `source`."""
    for override in overrides:
        _apply_override(data, override)
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: a value is not a text, number, list or section: {error}") from None
    try:
        return kind.model_validate_json(text, strict=True)  # JSON mode: strict, yet lists fill tuples
    except ValidationError as error:
        renamed = find_renamed(kind, data)
        lines = [f"{old} is now {new} (since version 0.2)" for old, new in renamed.items()]
        for problem in error.errors():
            dotted = ".".join(map(str, problem["loc"]))
            if dotted not in renamed and f"{dotted}: {problem['input']}" not in renamed:
                lines.append(_describe(problem, kind))
        raise InputError("\n  ".join([f"{source}:", *lines])) from None


def _apply_override(data: dict, override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise InputError(f"override {override!r}: expected section.key=value")
    *sections, key = dotted.split(".")
    node = data
    for section in sections:
        if node.get(section) is None:
            node[section] = {}
        node = node[section]
        if not isinstance(node, dict):
            raise InputError(f"override {override!r}: {section} is a value, not a section")
    node[key] = read_yaml(text, f"override {override!r}")


def _describe(problem: Any, kind: type[Settings]) -> str:
    location = [str(part) for part in problem["loc"]]
    dotted = ".".join(location) or "(whole file)"
    if problem["type"] == "extra_forbidden":
        allowed = _keys_at(kind, location[:-1])
        close = difflib.get_close_matches(location[-1], allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{dotted}: unknown key; {hint}allowed: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"{dotted}: required, not given"
    if problem["type"] == "value_error":
        return f"{dotted}: {problem['ctx']['error']}"
    return f"{dotted}: found {problem['input']!r}; {problem['msg']}"


def _keys_at(kind: type[BaseModel], sections: Sequence[str]) -> list[str]:
    for section in sections:
        if section.isdecimal():  # an index in a tuple
            continue
        field = kind.model_fields.get(section)
        if field is None:
            return []
        kind = next(iter(_settings_in(field.annotation)), kind)
    return list(kind.model_fields)


def _settings_in(annotation: Any) -> list[type[Settings]]:
    """The Settings classes in an annotation: itself, or the members of a union, tuple or dict."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in _settings_in(argument)]


def _is_marked(annotation: Any) -> bool:
    """Whether an annotation contains `MayChange`, as in `Annotated[int, MayChange] | None`."""
    return annotation is MayChange or any(_is_marked(argument) for argument in get_args(annotation))


def _field_may_change(field: FieldInfo) -> bool:
    return MayChange in field.metadata or _is_marked(field.annotation)


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
        if fields and all(_field_may_change(field) for field in fields):
            return True
        kinds = [kind for field in fields for kind in _settings_in(field.annotation)]
    return False


def find_renamed(kind: type[Settings], data: Mapping[str, Any], old: str = "", new: str = "") -> dict[str, str]:
    """Dotted key of version 0.1 -> dotted key now, for every key and value in `data` that was renamed.

    `old` and `new` are the dotted prefixes of the section `data`, in version 0.1 and now.
    """
    now = dict(kind.renamed_keys)
    for name, field in kind.model_fields.items():
        now |= {inner.renamed_section: name for inner in _settings_in(field.annotation) if inner.renamed_section}
    found: dict[str, str] = {}
    for key, value in data.items():
        name = key if key in kind.model_fields else now.get(key, key)
        if name != key:
            found[f"{old}{key}"] = f"{new}{name}"
        elif f"{key}: {value}" in now:
            found[f"{old}{key}: {value}"] = f"{new}{now[f'{key}: {value}']}"
        if name not in kind.model_fields:
            continue
        annotation = kind.model_fields[name].annotation
        for inner in _settings_in(annotation):
            several = _section_in(annotation) is None  # in a tuple or a dict
            found |= _find_renamed_in(inner, value, f"{old}{key}.", f"{new}{name}.", several)
    return found


def _find_renamed_in(kind: type[Settings], value: Any, old: str, new: str, several: bool) -> dict[str, str]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {}
    if not several:
        return find_renamed(kind, value, old, new)
    found: dict[str, str] = {}
    for name, one in value.items():
        found |= _find_renamed_in(kind, one, f"{old}{name}.", f"{new}{name}.", several=False)
    return found


def _type_name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(str(value) for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(arg) for arg in args)
    if origin is typing.Annotated:
        return _type_name(args[0])
    if origin is not None:
        return f"{origin.__name__}[{', '.join('...' if arg is Ellipsis else _type_name(arg) for arg in args)}]"
    return "null" if annotation is type(None) else annotation.__name__


def _section_in(annotation: Any) -> type[Settings] | None:
    """The Settings class of a section, `X` or `X | None`; None for a tuple or dict of sections."""
    return next(iter(_settings_in(annotation)), None) if get_origin(annotation) not in (tuple, dict) else None


def settings_help(kind: type[Settings], prefix: str = "") -> str:
    """Every key with its type, default and meaning, one paragraph per key."""
    lines: list[str] = []
    for name, field in kind.model_fields.items():
        section = _section_in(field.annotation)
        default = field.get_default(call_default_factory=True, validated_data={})
        meaning = " ".join((field.description or "").split())
        if section is not None:
            optional = " (may be null)" if type(None) in get_args(field.annotation) else ""
            lines.append(f"\n{prefix}{name}:{optional}  {meaning}")
            lines.append(settings_help(section, f"{prefix}{name}."))
        else:
            shown = "required" if default is PydanticUndefined else json.dumps(default, default=str)
            notes = ", may change on resume" if _field_may_change(field) else ""
            lines.append(f"  {prefix}{name}  [{_type_name(field.annotation)}, default {shown}{notes}]")
            lines.append(textwrap.fill(meaning, 108, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def parse_command_line(
    kind: type[SettingsT],
    description: str,
    default_config: Path,
    extra: argparse.ArgumentParser | None = None,
    arguments: Sequence[str] | None = None,
) -> tuple[SettingsT, argparse.Namespace]:
    """Parse `[--config FILE] [section.key=value ...]` and the options of `extra` -> (settings, all parsed options).

    FILE may also be the name of a config in the folder of the default one.
    """
    parser = argparse.ArgumentParser(
        description=description,
        parents=[extra] if extra else [],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"settings (YAML keys; override any as section.key=value):\n{settings_help(kind)}",
    )
    meaning = "a YAML file, or the name of a config of this project (default: %(default)s)"
    parser.add_argument("--config", type=Path, default=default_config, help=meaning)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace settings of the file")
    options = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    config = find_config(options.config, shipped=default_config.parent)
    return load_settings(kind, config, options.overrides), options
