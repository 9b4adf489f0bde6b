"""Strict YAML: values that are not settings are refused, whatever they do to the parser."""

import pytest

from odvae.running.errors import InputError
from odvae.running.settings import read_yaml


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: !!timestamp soon", r"x\.yaml is not valid YAML: .*NoneType"),
        ("seed: !!float no", r"x\.yaml is not valid YAML"),
        ("run: !!python/object/apply:os.getcwd []", r"x\.yaml is not valid YAML"),
        ("a: &a [*a]", r"x\.yaml, an alias is inside the value that it stands for"),
        ("a: &a {b: [*a]}", r"x\.yaml, an alias is inside the value that it stands for"),
    ],
)
def test_tags_that_do_not_fit_and_values_that_hold_themselves_are_errors_with_the_name(text, message):
    with pytest.raises(InputError, match=message):
        read_yaml(text, "x.yaml")


def test_aliases_may_repeat_a_value_but_not_expand_without_limit():
    assert read_yaml("a: &a [1]\nb: [*a, *a]", "x") == {"a": [1], "b": [[1], [1]]}
    lines = ["l0: &l0 [0]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10))]
    with pytest.raises(InputError, match="expand to more than 1000000 values"):
        read_yaml("\n".join(lines), "x")
