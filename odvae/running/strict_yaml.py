"""Strict YAML reader: 1e-4 is a number, `yes` is a string, a duplicate key is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from odvae.running.errors import InputError


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
        return yaml.load(text, Loader=_StrictLoader)  # _StrictLoader is a SafeLoader: no code runs
    except InputError as error:
        raise InputError(f"{name}, {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an invalid number or date
        raise InputError(f"{name} is not valid YAML: {error}") from None
