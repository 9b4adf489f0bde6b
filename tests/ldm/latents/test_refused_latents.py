"""Latents that are incomplete, damaged or of another VAE: refused, found by `verify_latents`, or encoded further."""

import dataclasses
import json
import shutil

import pytest
from PIL import Image
from scripts import Script, succeed
from small_latents import encode, entries_of, relabel

from ldm.encoding.settings import EncodeSettings
from ldm.encoding.verify import TOLERANCE, find_problems, reencode
from ldm.latents.entries import load_entry
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import check_latents, load_manifest
from odvae.running.errors import InputError
from odvae.running.folder_lock import sole_writer
from odvae.shards.tars import index_shards, shard_writer


def test_an_interrupted_encoding_resumes_with_the_same_bytes(encoded, tmp_path):
    shutil.copytree(encoded / "latents", tmp_path / "latents")
    for name in ("00001.tar", "shards/00001.json", "manifest.json"):  # as if killed within the second shard
        (tmp_path / "latents" / name).unlink()
    untouched = (tmp_path / "latents/00000.tar").stat().st_mtime_ns
    encode(encoded, tmp_path / "latents")
    assert (tmp_path / "latents/00000.tar").stat().st_mtime_ns == untouched
    for name in ("00000.tar", "00001.tar", "00002.tar", "empty_text.safetensors"):
        assert (tmp_path / "latents" / name).read_bytes() == (encoded / "latents" / name).read_bytes()
    assert load_manifest(tmp_path / "latents").shards == load_manifest(encoded / "latents").shards


def test_encoding_with_another_vae_or_other_settings_into_the_same_folder_is_refused(encoded, tmp_path):
    shutil.copytree(encoded, tmp_path / "run")
    with pytest.raises(InputError, match=r"encode\.clips_per_video: was 2, now 1"):
        encode(encoded, tmp_path / "run/latents", encode=EncodeSettings(batch_size=3))
    change_weights(tmp_path / "run/vae")
    with pytest.raises(InputError, match="was encoded by another VAE"):
        encode(tmp_path / "run", tmp_path / "run/latents")


def change_weights(folder):
    from odvae import ODVAE

    other = ODVAE.from_pretrained(folder)
    other.decoder.conv_out.bias.data += 0.01
    other.save_pretrained(folder)


def test_the_trainer_refuses_latents_of_another_vae_and_says_what_to_run(encoded):
    manifest = load_manifest(encoded / "latents")
    with pytest.raises(InputError, match=r"vae_sha256 is .* remove .*latents and run: accelerate launch"):
        check_latents(encoded / "latents", manifest, "0" * 64, encoded / "vae")


def test_missing_shards_wrong_counts_and_unknown_formats_are_refused(encoded, tmp_path):
    shutil.copytree(encoded / "latents", tmp_path / "latents")
    manifest = load_manifest(tmp_path / "latents")
    (tmp_path / "latents/00001.tar").rename(tmp_path / "elsewhere.tar")
    with pytest.raises(InputError, match=r"00001\.tar is missing"):
        check_latents(tmp_path / "latents", manifest, manifest.vae_sha256, encoded / "vae")
    (tmp_path / "elsewhere.tar").rename(tmp_path / "latents/00001.tar")
    dataclasses.replace(manifest, train_entries=3).save(tmp_path / "latents")
    with pytest.raises(InputError, match="its manifest lists 3"):
        open_latents(tmp_path / "latents", load_manifest(tmp_path / "latents"))
    values = json.loads((tmp_path / "latents/manifest.json").read_text())
    (tmp_path / "latents/manifest.json").write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(InputError, match="format 99, this version reads 3; update this project"):
        load_manifest(tmp_path / "latents")
    (tmp_path / "latents/manifest.json").unlink()
    with pytest.raises(InputError, match="does not exist: the latents are not"):
        load_manifest(tmp_path / "latents")


def flip_a_bit(entry, member="safetensors"):
    data, (offset, size, _) = bytearray(entry.shard.read_bytes()), entry.members[member]
    data[offset + size // 2] ^= 1
    entry.shard.write_bytes(data)


def test_one_flipped_bit_in_an_entry_is_found_when_it_is_read_and_by_verify(encoded, tmp_path):
    shutil.copytree(encoded / "latents", tmp_path / "latents")
    manifest = load_manifest(tmp_path / "latents")
    arguments = (tmp_path / "latents", manifest, manifest.vae_sha256, encoded / "vae")
    assert list(find_problems(tmp_path / "latents", manifest)) == []
    entry = next(entry for entry in entries_of(tmp_path / "latents")[0] if entry.shard.name == "00001.tar")
    flip_a_bit(entry)
    check_latents(*arguments)  # the sizes are right, and no start reads the data
    with pytest.raises(InputError, match=rf"{entry.key}\.safetensors: its checksum is .*, that in the index"):
        load_entry(entry, 0, [])
    (problem,) = find_problems(tmp_path / "latents", manifest)
    assert "00001.tar was changed" in problem


def test_a_vae_with_the_same_weights_and_another_mode_is_refused_with_the_name_of_the_field(encoded, tmp_path):
    shutil.copytree(encoded / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "norm": "clip"}))
    manifest = load_manifest(encoded / "latents")
    with pytest.raises(InputError, match=r"vae_config\.norm is 'frame', .* it is 'clip'; remove"):
        check_latents(encoded / "latents", manifest, manifest.vae_sha256, tmp_path / "vae")


@pytest.mark.slow
def test_verify_encodes_again_and_its_exit_status_has_the_result(encoded, tmp_path):
    manifest = load_manifest(encoded / "latents")
    again = list(reencode(encoded / "latents", manifest, encoded / "vae", count=5, seed=0))
    assert len(again) == 5
    assert max(one.error for one in again) < TOLERANCE / 2
    assert again[0].source.shape == again[0].decoded.shape == (5, 32, 32, 3)
    shutil.copytree(encoded / "latents", tmp_path / "latents")
    (tmp_path / "latents/00000.tar").write_bytes((encoded / "latents/00001.tar").read_bytes())
    tool = "tools/verify_latents.py"
    printed = succeed(tool, encoded / "latents", "--reencode", "2", "--picture", tmp_path / "seen.png")
    assert "24 entries in 3 shards; 0 problems" in printed
    assert Image.open(tmp_path / "seen.png").size[1] > 200
    bad = Script([tool, tmp_path / "latents"])
    assert bad.wait() == 1
    assert "00000.tar" in bad.stdout


def test_verify_finds_a_wrong_entry_with_correct_hashes(encoded, tmp_path):
    for name in ("shards", "vae"):
        shutil.copytree(encoded / name, tmp_path / name)
    encode(tmp_path, tmp_path / "latents")
    videos = index_shards([tmp_path / "shards/00000.tar"])
    contents = [{ext: video.read(ext) for ext in video.members} for video in videos]
    with shard_writer(tmp_path / "shards/00000.tar") as writer:  # every video under its neighbor's key
        for video, members in zip(videos, contents[1:] + contents[:1], strict=True):
            writer.write({"__key__": video.key, **members})
    manifest = load_manifest(tmp_path / "latents")
    assert any("source_sha256" in problem for problem in find_problems(tmp_path / "latents", manifest))
    again = list(reencode(tmp_path / "latents", manifest, tmp_path / "vae", count=24, seed=0))
    assert sum(one.error > TOLERANCE for one in again) == 10


def test_a_second_writer_of_a_folder_is_refused(encoded, tmp_path):
    (tmp_path / "latents/.text_encoder.partial").mkdir(parents=True)  # as a kill may leave it: it keeps nobody out
    with sole_writer(tmp_path / "latents"), pytest.raises(InputError, match="is being written by another process"):
        encode(encoded, tmp_path / "latents")


def test_resuming_after_the_videos_changed_is_refused(encoded, tmp_path):
    shutil.copytree(encoded, tmp_path / "run")
    relabel(tmp_path / "run/shards/00000.tar", ["walk"] * 5)
    (tmp_path / "run/latents/manifest.json").unlink()
    with pytest.raises(InputError, match=r"00000\.tar was changed after its latents 00000\.tar were encoded"):
        encode(tmp_path / "run", tmp_path / "run/latents")


def test_a_manifest_left_by_a_killed_process_is_rewritten(encoded, tmp_path):
    shutil.copytree(encoded / "latents", tmp_path / "latents")
    manifest = load_manifest(tmp_path / "latents")
    dataclasses.replace(manifest, shards=manifest.shards[:-1]).save(tmp_path / "latents")
    encode(encoded, tmp_path / "latents")
    assert load_manifest(tmp_path / "latents").shards == manifest.shards
