"""JSON that the project wrote for itself and that was damaged since; files that do not fit on the disk."""

import resource
import signal
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file

from odvae.running.errors import InputError
from odvae.running.files import atomic_folder, install_folder, parse_json, parse_record, read_json_lines, read_object


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
        (parse_json('{"size": 9223372036854775808}', "x.json"), r"size: found 9\.2"),
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


@pytest.mark.parametrize("folder", [atomic_folder, install_folder])
def test_a_model_that_does_not_fit_on_the_disk_is_named_and_nothing_of_it_stays(tmp_path, folder):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("before")

    def write_model():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with folder(tmp_path / "model") as temporary:
                save_file({"weight": torch.zeros(1000)}, temporary / "model.safetensors")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with pytest.raises(InputError, match=r"cannot write .*model: .*File too large.*run the same command again"):
        write_model()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "config.json"]
    assert (tmp_path / "model/config.json").read_text() == "before"
