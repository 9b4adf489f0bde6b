"""JSON that lacks a key, or has another type for it, is refused with file, line and key."""

import pickle

import pytest

from odvae.running.errors import InputError
from odvae.running.files import read_json_lines, read_object
from odvae.running.json_objects import JsonObject

GOOD = {
    "n": 1,
    "text": "a",
    "texts": ["a"],
    "numbers": [1, 2.5],
    "pairs": [[1, 2]],
    "part": {"n": 2},
    "rows": [{"n": 3}],
    "none": None,
}


def test_a_good_object_is_its_values():
    found = JsonObject(GOOD, "x.json")
    assert found == GOOD
    assert (found.number("n"), found.text("text"), found.texts("texts")) == (1, "a", ["a"])
    assert (found.numbers("numbers", 2), found.number_pairs("pairs")) == ([1, 2.5], [(1, 2)])
    assert found.section("part").number("n") == 2
    assert [row.number("n") for row in found.sections("rows")] == [3]
    assert (found.has("n"), found.has("none"), found.has("other")) == (True, False, False)
    assert pickle.loads(pickle.dumps(found)) == GOOD


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda one: one["other"], r"x\.json was damaged: it has no 'other'"),
        (lambda one: one.number("other"), r"x\.json was damaged: it has no 'other'"),
        (lambda one: one.number("text"), r"text must be a number, found 'a'"),
        (lambda one: one.number("none"), r"none must be a number, found None"),
        (lambda one: one.text("n"), r"n must be a text, found 1"),
        (lambda one: one.texts("numbers"), r"numbers must be a list of texts"),
        (lambda one: one.numbers("texts"), r"texts must be a list of numbers"),
        (lambda one: one.numbers("numbers", 3), r"numbers must be a list of 3 numbers"),
        (lambda one: one.number_pairs("numbers"), r"numbers must be a list of pairs of numbers"),
        (lambda one: one.section("n"), r"n must be an object, found 1"),
        (lambda one: one.sections("texts"), r"texts must be a list of objects"),
        (lambda one: one.sections("rows")[0].text("n"), r"x\.json: rows, number 1 was damaged: n must be a text"),
        (lambda one: one.section("part").text("n"), r"x\.json: part was damaged: n must be a text, found 2"),
    ],
)
def test_what_is_wrong_is_named(read, message):
    with pytest.raises(InputError, match=message):
        read(JsonObject(GOOD, "x.json"))


def test_files_give_objects_that_know_their_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"loss": 2}\n')
    first, second = read_json_lines(path)
    assert first.number("step") == 1
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2 was damaged: it has no 'step'"):
        second.number("step")
    path.write_text('{"a": {}}')
    with pytest.raises(InputError, match=r"rows\.jsonl: a was damaged: it has no 'b'"):
        read_object(path).section("a").text("b")
