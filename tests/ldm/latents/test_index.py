"""The index of a folder of latents: written with the shards, made where it is missing, and what it notices."""

import dataclasses
import json
import pickle
import shutil

import pytest
import torch
from small_latents import encode_in_four_shards, opened

from ldm.encoding.settings import EncodeSettings
from ldm.latents.batches import entry_failures, latent_batches
from ldm.latents.entries import load_entry
from ldm.latents.index_files import latent_rows
from ldm.latents.latent_set import held_out_batches
from ldm.latents.manifest import check_latents, load_manifest
from odvae.clips.sample_order import SampleOrder
from odvae.clips.samplers import BatchPlan
from odvae.clips.video_set import is_held_out
from odvae.index.building import INDEX
from odvae.index.folder_index import FolderIndex
from odvae.running.errors import InputError
from odvae.running.seeds import derive_seed
from odvae.shards.facts_journal import shard_index_path
from odvae.shards.tars import index_shards


@pytest.fixture(scope="module")
def encoded(ldm_run, tmp_path_factory):
    """vae/, shards/ and latents/ of 16 videos of classes, each with two clips, in four shards."""
    folder = tmp_path_factory.mktemp("indexed")
    encode_in_four_shards(ldm_run, folder, EncodeSettings(batch_size=3, clips_per_video=2))
    return folder


@pytest.fixture
def latents(encoded, tmp_path):
    shutil.copytree(encoded / "latents", tmp_path / "latents")
    return tmp_path / "latents"


def damage(entry, member="safetensors"):
    data, (offset, size, _) = bytearray(entry.shard.read_bytes()), entry.members[member]
    data[offset + size // 2] ^= 1
    entry.shard.write_bytes(data)


def test_what_encoding_writes_is_what_reading_the_shards_gives(latents):
    manifest = load_manifest(latents)
    for record in manifest.shards:
        written = FolderIndex(shard_index_path(latents, record.name), latents)
        rows = latent_rows(latents / record.name)
        assert [written.sample(i).members for i in range(len(written))] == [row.members for row in rows]
        assert [written.label(i) for i in range(len(written))] == [row.label for row in rows]
        assert written.chunks[0].captions.tolist() == [row.captions for row in rows] == [1] * len(rows)
        assert written.chunks[0].split.tolist() == [row.split for row in rows]
        assert written.header.shards[0].sha256 == record.sha256
    assert {label for row in rows for label in [row.label]} <= set(manifest.classes)


def test_the_entries_are_those_of_the_shards_in_their_order(latents):
    manifest = load_manifest(latents)
    (bucket,) = manifest.buckets
    samples = index_shards([latents / record.name for record in manifest.shards])
    found = opened(latents)
    for split, held_out in ((found.train, False), (found.held_out, True)):
        keys = [
            one.key for one in samples if is_held_out(one.key.rpartition("-")[0], "", manifest.held_out) == held_out
        ]
        assert [entry.key for entry in split[bucket]] == keys
        assert len(keys) > 3


def test_a_folder_without_an_index_gets_the_same_one_at_first_use(latents):
    before = {path.relative_to(latents): path.read_bytes() for path in latents.rglob("*.arrow")}
    assert len(before) == len(load_manifest(latents).shards) + 1
    shutil.rmtree(latents / "index")
    (latents / INDEX).unlink()
    opened(latents)
    assert {path.relative_to(latents): path.read_bytes() for path in latents.rglob("*.arrow")} == before


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(latents, monkeypatch, tmp_path):
    shutil.rmtree(latents / "index")
    (latents / INDEX).unlink()
    (latents / "index").write_text("a file in the place of the folder, for a disk that is read-only")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    entries = opened(latents).train
    (index,) = (tmp_path / "cache").rglob(INDEX)
    made = index.stat().st_mtime_ns
    assert len(opened(latents).train) == len(entries)
    assert index.stat().st_mtime_ns == made
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("neither")
    with pytest.raises(InputError, match="can be written neither into"):
        opened(latents)


@pytest.mark.parametrize("damage_to", [lambda data: b"", lambda data: data[:500], lambda data: data[:-20] + bytes(20)])
def test_a_damaged_index_is_made_again_from_those_of_the_shards(latents, damage_to):
    whole = (latents / INDEX).read_bytes()
    (latents / INDEX).write_bytes(damage_to(whole))
    opened(latents)
    assert (latents / INDEX).read_bytes() == whole


def test_an_index_of_other_shards_is_not_used(latents, encoded, tmp_path):
    """Shards encoded again have the same names, sizes and numbers of entries: they are recognized by their hashes."""
    manifest = load_manifest(latents)
    first = dataclasses.replace(manifest.shards[0], sha256="0" * 64)
    dataclasses.replace(manifest, shards=[first, *manifest.shards[1:]]).save(latents)
    with pytest.raises(InputError, match=rf"{first.name} was changed after it was written: its sha256 is"):
        opened(latents)


def test_a_shard_without_an_index_that_was_changed_is_refused(latents):
    manifest = load_manifest(latents)
    damage(opened(latents).train[next(iter(manifest.buckets))][0])
    shutil.rmtree(latents / "index")
    (latents / INDEX).unlink()
    with pytest.raises(InputError, match=r"was changed after it was written: its sha256 is .*restore the file"):
        opened(latents)


def test_a_start_reads_no_data(latents, encoded, monkeypatch):
    """All of the shards' bytes could be wrong: names and sizes are what a start compares."""
    manifest = load_manifest(latents)
    for record in manifest.shards:
        (latents / record.name).write_bytes(bytes(record.bytes))
    check_latents(latents, manifest, manifest.vae_sha256, encoded / "vae")
    assert sum(map(len, opened(latents).train.values())) == manifest.train_entries


def test_the_index_is_pickled_as_its_path(latents):
    (entries,) = opened(latents).train.values()
    assert len(pickle.dumps(entries.folder_index)) < 500
    again = pickle.loads(pickle.dumps(entries))
    assert [entry.key for entry in again] == [entry.key for entry in entries]


def drawn(latents, steps, workers=0, ranks=1, share=1.0, seed=3, order=SampleOrder()):  # noqa: B008 - frozen
    """{sample number: its mean latents} of the first steps over all ranks, and the failures of all ranks."""
    found, failed = {}, {}
    for rank in range(ranks):
        failures = entry_failures(latents, share)
        batches = latent_batches(latents, seed, BatchPlan(4 // ranks, 1, rank, ranks), 0, workers, failures, order)
        for _ in range(steps):
            batch = next(batches)
            found |= dict(zip(batch["number"].tolist(), batch["mean"], strict=True))
        failed |= failures.reasons
    return found, failed


def test_wrong_entries_are_replaced_by_a_function_of_the_number_for_any_ranks_and_workers(latents, capsys):
    (entries,) = opened(latents).train.values()
    right, _ = drawn(opened(latents), steps=12)
    wrong = entries[5]
    damage(wrong)
    found, failed = drawn(opened(latents), steps=12)
    assert list(failed) == [wrong.name]
    assert "its checksum is" in failed[wrong.name]
    assert f"1 of {len(entries)} training entries so far" in capsys.readouterr().err
    replaced = [number for number, mean in found.items() if not torch.equal(mean, right[number])]
    assert 0 < len(replaced) < 6
    for number in replaced:
        attempts = [derive_seed(3, "replacement", number, attempt) % len(entries) for attempt in (1, 2)]
        other = next(entries[i] for i in attempts if entries[i].name != wrong.name)
        assert torch.equal(found[number], load_entry(other, number, opened(latents).classes)["mean"])
    for ranks, workers in ((2, 0), (1, 2), (4, 1)):
        again, also_failed = drawn(opened(latents), 12, workers, ranks)
        assert failed == also_failed
        assert all(torch.equal(mean, found[number]) for number, mean in again.items())


def test_entries_by_blocks_are_the_same_for_any_ranks_and_each_comes_once_an_epoch(latents):
    latents, order = opened(latents), SampleOrder("blocks", block=4, buffer=8, parts=2, global_batch=4)
    (entries,) = latents.train.values()
    epoch = len(entries) // 4
    found, failed = drawn(latents, epoch, order=order)
    assert not failed
    assert len({mean.numpy().tobytes() for mean in found.values()}) == 4 * epoch
    for ranks, workers in ((2, 0), (4, 1)):
        again, _ = drawn(latents, epoch, workers, ranks, order=order)
        assert all(torch.equal(mean, found[number]) for number, mean in again.items())
    assert any(not torch.equal(mean, found[number]) for number, mean in drawn(latents, epoch)[0].items())


def test_a_truncated_shard_costs_its_entries(latents):
    (entries,) = opened(latents).train.values()
    shard = entries[0].shard
    lost = [entry.name for entry in entries if entry.shard == shard]
    shard.write_bytes(shard.read_bytes()[:600])
    found, failed = drawn(opened(latents), steps=12)
    assert len(found) == 48
    assert sorted(failed) == sorted(lost)
    shard.unlink()
    assert sorted(drawn(opened(latents), steps=12)[1]) == sorted(lost)


def test_too_many_wrong_entries_end_the_run_and_none_is_allowed_without_a_record(latents):
    (entries,) = opened(latents).train.values()
    damage(entries[2])
    drawn(opened(latents), steps=12, share=1.5 / len(entries))
    for share in (0.0, 0.5 / len(entries)):
        with pytest.raises(InputError, match=rf"1 of {len(entries)} training entries could not be used, more than"):
            drawn(opened(latents), steps=12, share=share)
    with pytest.raises(InputError, match="its checksum is"):
        for _, _ in zip(range(12), latent_batches(opened(latents), 3, BatchPlan(4)), strict=False):
            pass


def test_where_no_entry_can_be_read_the_run_ends(latents):
    for record in load_manifest(latents).shards:
        (latents / record.name).write_bytes(bytes(record.bytes))
    with pytest.raises(InputError, match="none of 100 entries that were tried can be read"):
        drawn(opened(latents), steps=1)


def test_a_wrong_held_out_entry_is_named(latents):
    (entries,) = opened(latents).held_out.values()
    damage(entries[1])
    with pytest.raises(InputError, match=rf"{entries[1].key}\.safetensors: its checksum is"):
        list(held_out_batches(opened(latents), 2, 0, 1))


def test_an_entry_whose_json_is_damaged_has_a_problem_and_is_replaced(latents):
    shard = latents / load_manifest(latents).shards[0].name
    entry = index_shards([shard])[0]
    data, (offset, size, _) = bytearray(shard.read_bytes()), entry.members["json"]
    data[offset : offset + size] = b"x" * size
    shard.write_bytes(data)
    rows = latent_rows(shard)
    assert ".json is not valid JSON" in rows[0].problem
    assert not any(row.problem for row in rows[1:])
    for about, problem in (([], "expected an object"), ({"label": 3}, "label 3 is no name of a class")):
        text = json.dumps(about).encode()
        data[offset : offset + size] = text + b" " * (size - len(text))
        shard.write_bytes(data)
        assert problem in latent_rows(shard)[0].problem
