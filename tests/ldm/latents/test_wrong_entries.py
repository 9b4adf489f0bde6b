"""Entries whose bytes are as encoded but not what the manifest says: other shapes, another type, NaN."""

import dataclasses
import json
import shutil
from itertools import islice

import pytest
import torch
from safetensors.torch import load, save
from small_latents import opened

from ldm.encoding.verify import sample_problems
from ldm.latents.batches import entry_failures, latent_batches
from ldm.latents.entries import load_entry
from ldm.latents.index_files import latent_rows, write_latent_index
from ldm.latents.latent_set import held_out_batches
from ldm.latents.manifest import Manifest, load_manifest
from odvae.clips.samplers import BatchPlan
from odvae.index.building import INDEX
from odvae.running.errors import InputError
from odvae.running.files import parse_record
from odvae.running.hashing import file_fingerprint
from odvae.shards.facts_journal import shard_index_path
from odvae.shards.tars import index_shard, shard_writer

WRONG = {
    "more channels": lambda one: one | {name: one[name].repeat(2, 1, 1, 1) for name in ("mean", "std")},
    "another size": lambda one: one | {name: one[name][..., :2].contiguous() for name in ("mean", "std")},
    "no std": lambda one: {name: one[name] for name in ("mean", "text", "text_mask")},
    "another width of the text": lambda one: one | {"text": one["text"][:, :4].contiguous()},
    "another type": lambda one: one | {"mean": one["mean"].float(), "std": one["std"].float()},
    "another type of the text": lambda one: one | {"text": one["text"].half()},
    "a NaN": lambda one: one | {"mean": one["mean"].where(torch.arange(4) != 3, torch.nan)},
    "an infinite std": lambda one: one | {"std": one["std"] / 0},
    "a NaN in the text": lambda one: one | {"text": one["text"] * torch.nan},
}


def encoded_wrongly(latents, change, is_wrong):
    """The folder as if some of its entries had been encoded so: their checksums and hashes are right."""
    manifest = load_manifest(latents)
    (record,) = manifest.shards
    path, wrong = latents / record.name, []
    written = [(entry, entry.read_all()) for entry in index_shard(path)]
    with shard_writer(path) as shard:
        for entry, members in written:
            if is_wrong(entry.key):
                wrong.append(entry.name)
                members["safetensors"] = save(change(load(members["safetensors"])))
            shard.write({"__key__": entry.key, **members})
    sha256 = file_fingerprint(path)
    changed = dataclasses.replace(record, sha256=sha256, bytes=path.stat().st_size)
    dataclasses.replace(manifest, shards=[changed]).save(latents)
    write_latent_index(shard_index_path(latents, record.name), path, latent_rows(path), sha256)
    (latents / INDEX).unlink()
    return wrong


@pytest.fixture
def latents(ldm_run, tmp_path):
    shutil.copytree(ldm_run / "latents", tmp_path / "latents")
    return tmp_path / "latents"


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_training_entry_is_named_counted_and_replaced(latents, what):
    (entries,) = opened(latents).train.values()
    key = entries[1].key
    (name,) = encoded_wrongly(latents, WRONG[what], lambda one: one == key)
    found = opened(latents)
    failures = entry_failures(found, 0.5)
    batches = latent_batches(found, 0, BatchPlan(4), failures=failures)
    for _ in range(8):
        batch = next(batches)
        assert batch["mean"].shape == (4, 4, 3, 4, 4)
        assert all(torch.isfinite(batch[part]).all() for part in ("mean", "std", "text"))
    assert list(failures.reasons) == [name]
    with pytest.raises(InputError, match=f"1 of {len(entries)} training entries could not be used"):
        list(islice(latent_batches(found, 0, BatchPlan(4)), 8))


def test_a_wrong_held_out_entry_is_named(latents):
    (entries,) = opened(latents).held_out.values()
    key = entries[0].key
    encoded_wrongly(latents, WRONG["a NaN"], lambda one: one == key)
    with pytest.raises(InputError, match=rf"{key}\.safetensors: mean has values that are not finite"):
        list(held_out_batches(opened(latents), 2, 0, 1))


def test_a_whole_folder_of_other_shapes_ends_the_run_by_the_first_entries(latents):
    encoded_wrongly(latents, WRONG["another size"], lambda key: True)
    found = opened(latents)
    with pytest.raises(InputError, match=r"has tensors of shapes .*'mean': \(4, 3, 4, 2\).* by the manifest they are"):
        next(latent_batches(found, 0, BatchPlan(4), failures=entry_failures(found, 0.05)))
    entries = sum(map(len, (*found.train.values(), *found.held_out.values())))
    assert len(list(sample_problems(latents, load_manifest(latents), entries, seed=0))) == entries


def test_the_data_type_in_the_manifest_is_one_that_is_stored(latents):
    values = json.loads((latents / "manifest.json").read_text()) | {"dtype": "fp64"}
    with pytest.raises(InputError, match="dtype: found 'fp64'"):
        parse_record(Manifest, values, "manifest.json")
    (entries,) = opened(latents).train.values()
    assert load_entry(entries[0], 0, opened(latents).classes)["mean"].shape == (4, 3, 4, 4)
