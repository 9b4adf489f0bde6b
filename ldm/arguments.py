"""Command line of the commands: a YAML file, `section.key=value` overrides, and `--help` from the settings."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import types
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from odvae.running.resume_check import field_may_change
from odvae.running.settings import Settings, SettingsT, find_config, load_settings, section_in


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


def settings_help(kind: type[Settings], prefix: str = "", without: Collection[str] = ()) -> str:
    """Every key with its type, default and meaning, one paragraph per key; not those in `without`."""
    lines: list[str] = []
    for name, field in kind.model_fields.items():
        if name in without:
            continue
        section = section_in(field.annotation)
        default = field.get_default(call_default_factory=True, validated_data={})
        meaning = " ".join((field.description or "").split())
        if section is not None:
            optional = " (may be null)" if type(None) in get_args(field.annotation) else ""
            lines.append(f"\n{prefix}{name}:{optional}  {meaning}")
            lines.append(settings_help(section, f"{prefix}{name}."))
        else:
            shown = "required" if default is PydanticUndefined else json.dumps(default, default=str)
            notes = ", may change on resume" if field_may_change(field) else ""
            lines.append(f"  {prefix}{name}  [{_type_name(field.annotation)}, default {shown}{notes}]")
            lines.append(textwrap.fill(meaning, 108, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


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
