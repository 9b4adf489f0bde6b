"""YAML without its surprises: 1e-4 is a number, `yes` is a word, a key given twice is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from odvae.running.errors import InputError


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2 where 1.1 surprises: 1e-4 is a number, `yes` is a word, a key given twice is an error."""

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
    """The value in a YAML text; `name` stands for it in error messages."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # _StrictLoader is a SafeLoader: no code runs
    except InputError as error:
        raise InputError(f"{name}, {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number or date that is none
        raise InputError(f"{name} is not valid YAML: {error}") from None
