"""Strict YAML reader: 1e-4 is a number, `yes` is a string, a duplicate key is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from odvae.running.errors import InputError

# More values than any config has, with each alias (*name) counted as the values it stands for.
_MAX_VALUES = 1_000_000


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
