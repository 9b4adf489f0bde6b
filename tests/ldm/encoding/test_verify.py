"""Verification of latents: what it finds, that it goes on after a stop, in processes, and of random entries."""

import dataclasses
import shutil

import pytest
from scripts import Script, succeed
from small_latents import encode_in_four_shards

from ldm.encoding import verify
from ldm.encoding.settings import EncodeSettings
from ldm.encoding.verified_files import VERIFIED
from ldm.encoding.verify import find_problems, sample_problems
from ldm.latents.index_files import latent_rows, write_latent_index
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import load_manifest
from odvae.index.building import INDEX
from odvae.index.merging import merge_indexes
from odvae.shards.facts_journal import shard_index_path
from odvae.shards.tars import index_shards


@pytest.fixture(scope="module")
def encoded(ldm_run, tmp_path_factory):
    """vae/, shards/ and latents/ of 16 videos in four shards."""
    folder = tmp_path_factory.mktemp("verified")
    encode_in_four_shards(ldm_run, folder, EncodeSettings(batch_size=3))
    return folder


@pytest.fixture
def latents(encoded, tmp_path):
    shutil.copytree(encoded / "latents", tmp_path / "latents")
    return tmp_path / "latents"


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are hashed."""
    names = []
    real = verify.fingerprint
    monkeypatch.setattr(verify, "fingerprint", lambda path: (names.append(path.name), real(path))[1])
    return names


def damage(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def problems(folder, **options):
    return list(find_problems(folder, load_manifest(folder), **options))


def test_what_was_verified_is_skipped_until_it_changes_or_again_is_said(latents, hashed, capsys):
    assert problems(latents) == []
    shards = [f"{i:05d}.tar" for i in range(4)]
    assert hashed == ["empty_text.safetensors", *shards, *shards]  # and the sources
    hashed.clear()
    assert problems(latents) == []
    assert hashed == ["empty_text.safetensors"]
    assert "8 of 8 files were verified before" in capsys.readouterr().err
    damage(latents / shards[2], 3000)
    hashed.clear()
    for _ in range(2):  # a wrong file is not recorded
        (found,) = problems(latents)
        assert "00002.tar was changed after it was written" in found
    assert hashed == 2 * ["empty_text.safetensors", shards[2]]
    hashed.clear()
    assert len(problems(latents, again=True)) == 1
    assert len(hashed) == 9


def test_a_verification_that_was_stopped_goes_on_with_the_other_files(latents, hashed, monkeypatch):
    real = verify._check_file

    def stopped(index, check):
        if check.path == latents / "00002.tar":
            raise KeyboardInterrupt
        return real(index, check)

    monkeypatch.setattr(verify, "_check_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        problems(latents)
    monkeypatch.setattr(verify, "_check_file", real)
    with open(latents / VERIFIED, "a") as file:
        file.write('{"path": "x", "of"')  # as a kill may leave it
    hashed.clear()
    assert problems(latents) == []
    assert hashed[:3] == ["empty_text.safetensors", "00002.tar", "00003.tar"]
    assert "00000.tar" not in hashed[1:3]
    hashed.clear()
    (latents / VERIFIED).write_text("[1]\n\n{")
    assert problems(latents) == []
    assert len(hashed) == 9


def test_processes_find_the_same(latents):
    damage(latents / "00001.tar", 3000)
    damage(latents / "00003.tar", 3000)
    found = problems(latents, again=True)
    assert len(found) == 2
    assert problems(latents, processes=3, again=True) == found
    (latents / "00001.tar").write_bytes(b"x")
    (found,) = problems(latents, processes=2)
    assert "00001.tar has 1 bytes" in found


def test_an_index_that_is_not_what_the_shards_have_is_found(latents):
    manifest = load_manifest(latents)
    shard = latents / manifest.shards[1].name
    rows = latent_rows(shard)
    rows[2] = dataclasses.replace(rows[2], split=0.5)
    write_latent_index(shard_index_path(latents, shard.name), shard, rows, manifest.shards[1].sha256)
    merge_indexes(latents / INDEX, [shard_index_path(latents, record.name) for record in manifest.shards])
    (found,) = problems(latents)
    assert f"its rows of 00001.tar are not what the shard has: {rows[2].key}" in found


def test_random_entries_are_compared_with_their_checksums(latents):
    manifest = load_manifest(latents)
    (entries,) = open_latents(latents, manifest).train.values()
    total = manifest.train_entries + manifest.held_out_entries
    wrong = [entries[1], entries[7]]
    for entry, member in zip(wrong, ("safetensors", "json"), strict=True):
        damage(entry.shard, entry.members[member].offset + 20)
    found = list(sample_problems(latents, manifest, count=1000, seed=0))
    assert sorted(line.partition(".tar:")[2].partition(".")[0] for line in found) == sorted(one.key for one in wrong)
    assert list(sample_problems(latents, manifest, count=1000, seed=0, processes=2)) == found
    several = [list(sample_problems(latents, manifest, count=total // 2, seed=seed)) for seed in range(6)]
    assert {len(lines) for lines in several} == {0, 1, 2} or {len(lines) for lines in several} >= {0, 1}
    assert several[3] == list(sample_problems(latents, manifest, count=total // 2, seed=3))


def test_the_tool_verifies_files_and_random_entries(latents):
    tool = "tools/verify_latents.py"
    assert "16 entries in 4 shards; 0 problems" in succeed(tool, latents, "--processes", "2")
    entry = index_shards([latents / "00001.tar"])[2]
    damage(entry.shard, entry.members["safetensors"].offset + 20)
    script = Script([tool, latents, "--sample", "16"])
    assert script.wait() == 1
    assert "16 entries in 4 shards, of which 16 were compared; 1 problems" in script.stdout
    assert "its checksum is" in script.stdout
