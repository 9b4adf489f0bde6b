"""Command line of the commands and tools: options, a YAML file, `section.key=value` overrides, `--help` from the
settings."""

from __future__ import annotations

import argparse
import json
import textwrap
import types
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from odvae.running.resume_check import field_may_change
from odvae.running.settings import Settings, SettingsT, find_config, load_settings, section_in
from odvae.running.text import did_you_mean


class CommandParser(argparse.ArgumentParser):
    """Parser of a command line on which no option is abbreviated: `--smal` is an error that names `--small`.

    An abbreviation would change its meaning, or stop working, with the next option of that beginning. The description
    and the epilog are printed as they are written, and other parsers can be `parents`, made with `add_help=False`.
    """

    def __init__(
        self,
        description: str | None = None,
        epilog: str | None = None,
        parents: Sequence[argparse.ArgumentParser] = (),
        add_help: bool = True,
    ) -> None:
        super().__init__(
            description=description,
            epilog=epilog,
            parents=parents,
            add_help=add_help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the command line (default: that of the process); options may stand between the other arguments.

        Ends the process with status 2, and a message that names each argument that is not known.
        """
        options, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            self.error("; ".join(map(self._describe_unknown, unknown)))
        return options

    def _describe_unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"unexpected argument {argument}"
        name = argument.partition("=")[0]
        forms = [form for action in self._get_positional_actions() if "=" in (form := str(action.metavar))]
        hint = did_you_mean(name, list(self._option_string_actions)) or "".join(
            f"settings are given as {form}" for form in forms
        )
        return f"unknown option {name}{hint and ': ' + hint}"


def parse_command_line(
    kind: type[SettingsT],
    description: str,
    default_config: Path,
    extra: CommandParser | None = None,
    arguments: Sequence[str] | None = None,
) -> tuple[SettingsT, argparse.Namespace]:
    """Parse `[--config FILE] [section.key=value ...]` and the options of `extra` -> (settings, all parsed options).

    FILE may also be the name of a config in the folder of the default one.
    """
    parser = CommandParser(
        description,
        epilog=f"settings (YAML keys; override any as section.key=value):\n{settings_help(kind)}",
        parents=[extra] if extra else [],
    )
    meaning = "a YAML file, or the name of a config of this project (default: %(default)s)"
    parser.add_argument("--config", type=Path, default=default_config, help=meaning)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace settings of the file")
    options = parser.parse(arguments)
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
