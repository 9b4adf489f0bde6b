"""Latents, manifests and their JSON that were damaged are refused by name."""

import json
import re

import pytest
import torch
from safetensors.torch import save

from ldm.fuzzing.latents import make_manifests
from ldm.latents.entries import entry_rate, load_entries
from ldm.latents.manifest import load_manifest
from odvae.running.errors import InputError
from odvae.shards.tars import index_shard, shard_writer

TENSORS = {
    "mean": torch.zeros(2, 1, 4, 4),
    "std": torch.ones(2, 1, 4, 4),
    "text": torch.zeros(3, 8),
    "text_mask": torch.ones(3, dtype=torch.bool),
}


def entry(path, tensors, about):
    data = save(tensors) if isinstance(tensors, dict) else tensors
    with shard_writer(path) as shard:
        shard.write({"__key__": "a-000", "safetensors": save(TENSORS), "json": b'{"label": null}'})
        shard.write({"__key__": "b-000", "safetensors": data, "json": about})
    return index_shard(path)


def test_entries_in_order_are_a_batch(tmp_path):
    entries = entry(tmp_path / "x.tar", TENSORS, b'{"label": "run", "fps": 8}')
    batch = load_entries(entries, [0, 1], ["jump", "run"])
    assert batch["label"].tolist() == [-1, 1]
    assert (entry_rate(entries[0]), entry_rate(entries[1])) == (None, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": None}, "must have the tensor mean"),
        ({"mean": torch.zeros(2, 1, 4, 4, dtype=torch.int32)}, "must have the tensor mean"),
        ({"mean": torch.zeros(2, 16)}, r"mean \(2, 16\) and std"),
        ({"std": torch.zeros(1)}, r"and std \(1,\)"),
        ({"std": None}, r"has tensors of shapes"),
        ({"text": None}, "must have the tensors text"),
        ({"text": torch.zeros(3, 9)}, "has tensors of shapes"),
        ({"text_mask": torch.ones(3)}, "must have the tensors text"),
        ({"text_mask": torch.ones(2, dtype=torch.bool)}, "incompatible shapes"),
    ],
)
def test_an_entry_that_lacks_a_tensor_or_has_another_shape_is_named(tmp_path, changes, message):
    tensors = {name: tensor for name, tensor in (TENSORS | changes).items() if tensor is not None}
    with pytest.raises(InputError, match=f"x.tar:b-000.*{message}"):
        load_entries(entry(tmp_path / "x.tar", tensors, b"{}"), [0, 1], [])


def test_a_tensor_type_that_torch_lacks_is_named(tmp_path):
    data = save(TENSORS)
    data = re.sub(rb'"F32"', b'"F9 "', data)
    with pytest.raises(InputError, match=r"b-000\.safetensors cannot be read"):
        load_entries(entry(tmp_path / "x.tar", data, b"{}"), [0, 1], [])


@pytest.mark.parametrize("about", [b"[]", b"{", b"\xff", b'{"label": "swim"}', b'{"label": ["run"]}', b"[" * 100_000])
def test_an_entry_s_json_that_says_nothing_usable_is_named(tmp_path, about):
    with pytest.raises(InputError, match=r"x\.tar:b-000\.json"):
        load_entries(entry(tmp_path / "x.tar", TENSORS, about), [0, 1], ["run"])


@pytest.mark.parametrize("fps", ["8", [8], -1, float("nan"), 10**400])
def test_a_rate_that_is_none_is_named(tmp_path, fps):
    (_, broken) = entry(tmp_path / "x.tar", TENSORS, json.dumps({"fps": fps}).encode())
    with pytest.raises(InputError, match=r"x\.tar:b-000\.json: fps is"):
        entry_rate(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": {}}, "the shapes of its buckets"),
        ({"buckets": {"5x32x32": [4, 2, 4, 2**40]}}, "the shapes of its buckets"),
        ({"buckets": {"5x32x32": [4, 2, 4]}}, "buckets.5x32x32.3"),
        ({"buckets": {"9x32x32": [4, 2, 4, 4]}}, "is in bucket '5x32x32', which is not listed"),
        ({"latents_std": [1.0]}, "different numbers of channels"),
        ({"latents_std": [0.0] * 4}, "latents_std above 0"),
        ({"latents_mean": [float("nan")] * 4}, "must be finite"),
        ({"text_width": 10**12}, "text_width is 1000000000000"),
        ({"held_out": 2.0}, "held_out is 2.0"),
        ({"train_entries": "3"}, "train_entries: found '3'"),
        ({"classes": None}, "classes: found None"),
        ({"shards": [{}]}, "shards.0.name"),
    ],
)
def test_a_damaged_manifest_is_refused_with_what_is_wrong(tmp_path, changes, message):
    make_manifests(tmp_path)
    manifest = tmp_path / "manifest.json"
    load_manifest(tmp_path)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        load_manifest(tmp_path)
    assert "manifest.json was damaged:" in str(error.value)
