"""Settings as frozen pydantic models, read from strict YAML (1e-4 is a number, `yes` is a string, a duplicate key is an
error) with dotted command-line overrides.

The docstring under a field is also its description in `--help`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from odvae.running.errors import InputError
from odvae.running.text import check_is_file, did_you_mean, read_text_file


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

# Folders of configs that other programs read: accelerate launch and Ray.
_OF_LAUNCHERS = ("accelerate", "ray")

# Problems of one file that an error lists.
_PROBLEMS_SHOWN = 30

# More values than any config has, with each alias (*name) counted as the values it stands for.
_MAX_VALUES = 1_000_000


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
        if os.path.lexists(given):
            check_is_file(given, "config file")
        paths = [path.relative_to(shipped).with_suffix("") for path in shipped.rglob("*.yaml")]
        names = sorted(str(path) for path in paths if path.parts[0] not in _OF_LAUNCHERS)
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
        moved = [f"{old} is now {new} (since version 0.2)" for old, new in renamed.items()]
        lines: list[str] = []
        for problem in error.errors():
            dotted = ".".join(map(str, problem["loc"]))
            if dotted not in renamed and f"{dotted}: {problem['input']}" not in renamed:
                lines.append(_describe(problem, kind))
        more = [f"and {len(lines) - _PROBLEMS_SHOWN} more problems"] if len(lines) > _PROBLEMS_SHOWN else []
        raise InputError("\n  ".join([f"{source}:", *moved, *lines[:_PROBLEMS_SHOWN], *more])) from None


class _StrictLoader(yaml.SafeLoader):
    """Reads numbers and booleans as YAML 1.2 does (PyYAML implements 1.1), and rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise InputError(f"line {node.start_mark.line + 1}: key given twice: {', '.join(repeated)}")
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def read_yaml(text: str, name: str) -> Any:
    """Parse a YAML text. Raises InputError, which names the text `name`, if it is not valid."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # _StrictLoader is a SafeLoader: no code runs
        _count_values(value, {})
        return value
    except InputError as error:
        raise InputError(f"{name}, {error}") from None
    except Exception as error:  # a tag that does not fit its value (!!timestamp x) raises errors of various types
        raise InputError(f"{name} is not valid YAML: {error}") from None


def _count_values(value: Any, counts: dict[int, int]) -> int:
    """The number of values in a value, with aliases expanded. Raises InputError if there are too many.

    A few lines with nested aliases can expand to billions of values, and an alias of its own value to infinitely many.
    """
    if not isinstance(value, dict | list):
        return 1
    if (known := counts.get(id(value))) is None:
        counts[id(value)] = -1  # until it is counted
        inner = value.values() if isinstance(value, dict) else value
        known = counts[id(value)] = 1 + sum(_count_values(one, counts) for one in inner)
    if known < 0:
        raise InputError("an alias is inside the value that it stands for")
    if known > _MAX_VALUES:
        raise InputError(f"its aliases expand to more than {_MAX_VALUES} values")
    return known


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
        hint = did_you_mean(location[-1], allowed)
        return f"{dotted}: unknown key; {hint}{hint and ' '}allowed: {', '.join(allowed)}"
    if problem["type"] == "missing":
        return f"{dotted}: required, not given"
    if problem["type"] == "value_error":
        return f"{dotted}: {problem['ctx']['error']}"
    return f"{dotted}: found {problem['input']!r:.300}; {problem['msg']}"


def _keys_at(kind: type[BaseModel], sections: Sequence[str]) -> list[str]:
    for section in sections:
        if section.isdecimal():  # an index in a tuple
            continue
        field = kind.model_fields.get(section)
        if field is None:
            return []
        kind = next(iter(settings_in(field.annotation)), kind)
    return list(kind.model_fields)


def settings_in(annotation: Any) -> list[type[Settings]]:
    """The Settings classes in an annotation: itself, or the members of a union, tuple or dict."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in settings_in(argument)]


def find_renamed(kind: type[Settings], data: Mapping[str, Any], old: str = "", new: str = "") -> dict[str, str]:
    """Dotted key of version 0.1 -> dotted key now, for every key and value in `data` that was renamed.

    `old` and `new` are the dotted prefixes of the section `data`, in version 0.1 and now.
    """
    now = dict(kind.renamed_keys)
    for name, field in kind.model_fields.items():
        now |= {inner.renamed_section: name for inner in settings_in(field.annotation) if inner.renamed_section}
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
        for inner in settings_in(annotation):
            several = section_in(annotation) is None  # in a tuple or a dict
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


def section_in(annotation: Any) -> type[Settings] | None:
    """The Settings class of a section, `X` or `X | None`; None for a tuple or dict of sections."""
    return next(iter(settings_in(annotation)), None) if get_origin(annotation) not in (tuple, dict) else None
