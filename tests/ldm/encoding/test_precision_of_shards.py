"""The precision in the manifest is that in which the shards were encoded, not that of the process that finishes."""

import json
import re

import pytest
from encoded_alike import encode_in_process, prepare_run

from ldm.latents.manifest import load_manifest
from odvae.running import precision
from odvae.running.errors import InputError


@pytest.fixture(scope="module")
def runs(tmp_path_factory, vae):
    folder = tmp_path_factory.mktemp("precision")
    prepare_run(folder, vae)
    return folder


def let_auto_be_bf16(monkeypatch, is_bf16):
    """As on a GPU: the CPU computes in bf16 too where autocast says so."""
    monkeypatch.setattr(precision, "uses_bf16", lambda chosen, device: chosen == "bf16" or is_bf16)


def test_the_manifest_has_the_precision_of_the_records_not_of_the_finishing_process(runs, tmp_path, monkeypatch):
    let_auto_be_bf16(monkeypatch, True)
    encode_in_process(runs, tmp_path, "encode.part=1/2")
    encode_in_process(runs, tmp_path, "encode.part=2/2")
    assert {json.loads(path.read_text())["precision"] for path in (tmp_path / "shards").iterdir()} == {"bf16"}
    let_auto_be_bf16(monkeypatch, False)
    encode_in_process(runs, tmp_path, "encode.finish=true")
    assert load_manifest(tmp_path).precision == "bf16"
    assert load_manifest(runs / "undisturbed").precision == "fp32"


def test_a_part_on_a_device_of_another_precision_is_refused_before_it_encodes(runs, tmp_path, monkeypatch):
    encode_in_process(runs, tmp_path, "encode.part=1/2")
    let_auto_be_bf16(monkeypatch, True)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"00000\.tar was encoded in fp32, but here .* is bf16"):
        encode_in_process(runs, tmp_path, "encode.part=2/2")
    assert sorted(path.name for path in tmp_path.rglob("*.tar")) == [name for name in before if name.endswith(".tar")]


def test_shards_of_different_precisions_are_named_at_the_end_and_can_be_encoded_again(runs, tmp_path):
    encode_in_process(runs, tmp_path, "encode.part=1/2")
    encode_in_process(runs, tmp_path, "encode.part=2/2")
    path = tmp_path / "shards/5x32x32-00001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "bf16"}))
    with pytest.raises(InputError, match=re.escape("(bf16: 5x32x32-00001.tar; fp32: 5x32x32-00000.tar, ")) as error:
        encode_in_process(runs, tmp_path, "encode.finish=true")
    assert "remove their records, the files in" in str(error.value)
    path.unlink()
    encode_in_process(runs, tmp_path)
    assert load_manifest(tmp_path).precision == "fp32"


def test_the_precision_of_records_without_one_is_unknown(runs, tmp_path):
    encode_in_process(runs, tmp_path, "encode.part=1/1")
    for path in (tmp_path / "shards").iterdir():
        record = json.loads(path.read_text())
        del record["precision"]
        path.write_text(json.dumps(record))
    encode_in_process(runs, tmp_path, "encode.finish=true")
    assert load_manifest(tmp_path).precision == "unknown"
