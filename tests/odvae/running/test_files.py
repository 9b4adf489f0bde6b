"""JSON that the project wrote for itself and that was damaged since."""

from dataclasses import dataclass

import pytest

from odvae.running.errors import InputError
from odvae.running.files import parse_record, read_json_lines, read_object


@dataclass(frozen=True)
class Record:
    size: int
    shape: tuple[int, int]
    names: dict[str, str]


GOOD = {"size": 1, "shape": [2, 3], "names": {"a": "b"}}


def test_a_record_comes_back_with_its_types():
    assert parse_record(Record, dict(GOOD), "x.json") == Record(1, (2, 3), {"a": "b"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "1"}, r"x\.json was damaged:\n  size: found '1'; "),
        ({"size": True}, r"size: found True"),
        ({"size": 1.5}, r"size: found 1\.5"),
        ({"shape": [1]}, r"shape\.1: found"),
        ({"names": {"a": None}}, r"names\.a: found None"),
        ({"more": 1}, r"x\.json: missing or unexpected keys: 'more'"),
        ({"names": {"a": "\ud800"}}, r"x\.json was damaged"),
    ],
)
def test_every_wrong_key_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        parse_record(Record, GOOD | changes, "x.json")


@pytest.mark.parametrize("text", ["[]", "1", "{", "", "[" * 100_000])
def test_what_is_no_object_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        read_object(tmp_path / "x.json")
    with pytest.raises(InputError, match=r"gone\.json does not exist"):
        read_object(tmp_path / "gone.json")


def test_a_last_line_that_was_cut_is_left_out_and_any_other_one_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert read_json_lines(path) == [{"a": 1}]
    for line in ("{", "[1]", "[" * 100_000, "9" * 5000):
        path.write_text(f'{line}\n{{"a": 1}}\n')
        with pytest.raises(InputError, match=r"rows\.jsonl, line 1"):
            read_json_lines(path)
