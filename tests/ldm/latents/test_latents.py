"""Latent shards and their manifest: content, what is refused, resuming an interrupted encoding."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from PIL import Image
from scripts import Script, succeed
from small_latents import DATA, encode

from ldm.demo.videos import write_demo_videos
from ldm.encoding.finish import by_number_or_name
from ldm.encoding.settings import EncodeSettings
from ldm.encoding.verify import TOLERANCE, find_problems, reencode
from ldm.latents.entries import load_entry
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import check_latents, load_manifest
from ldm.networks.text_encoder import has_vocabulary
from odvae.clips.clip import load_clip
from odvae.clips.video_set import VideoSet, is_held_out
from odvae.packing.packing import pack_folder
from odvae.packing.settings import PackingSettings
from odvae.running.errors import InputError
from odvae.running.folder_lock import sole_writer
from odvae.running.hashing import file_fingerprint, weights_fingerprint
from odvae.shards.tars import index_shards, shard_writer
from odvae.video.pixels import to_float


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, vae):
    """A folder with shards/, vae/ and latents/ of twelve small videos."""
    folder = tmp_path_factory.mktemp("encoded")
    write_demo_videos(folder / "videos", 12, 9, 32, 8, seed=3, progress=False)
    pack_folder(folder / "videos", folder / "shards", PackingSettings(samples_per_shard=5))
    vae.save_pretrained(folder / "vae")
    encode(folder, folder / "latents")
    return folder


def entries_of(folder):
    """(training, held-out) entries of the only bucket."""
    manifest = load_manifest(folder)
    latents, (bucket,) = open_latents(folder, manifest), manifest.buckets
    return latents.train[bucket], latents.held_out[bucket]


def test_every_planned_clip_is_stored_with_its_posterior_caption_and_start(encoded, vae):
    train, held_out = entries_of(encoded / "latents")
    assert len(train) + len(held_out) == 24
    videos = VideoSet(encoded / "shards", DATA, "?")
    sources = {sample.key: sample for sample in (*videos.train, *videos.held_out)}
    for entry in (train[0], train[1], held_out[1]):
        about, tensors = entry.read_json(), load_entry(entry, 0, [])
        source = sources[about["source"]]
        assert about["caption"] == source.read_text()
        assert about["start"] in (0, 4)
        with torch.no_grad():
            posterior = vae.encode(to_float(load_clip(source, DATA, about["start"])).unsqueeze(0)).latent_dist
        assert torch.allclose(tensors["mean"], posterior.mean[0], rtol=1e-2, atol=1e-2)  # stored in bf16
        assert torch.allclose(tensors["std"], posterior.std[0], rtol=1e-2, atol=1e-2)


def relabel(shard, labels):
    """Give the shard's samples class names, in order (None: none)."""
    samples = index_shards([shard])
    contents = [{ext: sample.read(ext) for ext in sample.members} for sample in samples]
    with shard_writer(shard) as writer:
        for sample, members, label in zip(samples, contents, labels, strict=True):
            about = json.loads(members["json"]) | ({} if label is None else {"label": label})
            writer.write({"__key__": sample.key, **members, "json": json.dumps(about).encode()})


def test_class_names_become_indices_in_the_sorted_list_of_classes(encoded, tmp_path):
    for name in ("shards", "vae"):
        shutil.copytree(encoded / name, tmp_path / name)
    relabel(tmp_path / "shards/00000.tar", ["walk", "run", None, "walk", "archery"])
    encode(tmp_path, tmp_path / "latents", encode=EncodeSettings(batch_size=3))
    manifest = load_manifest(tmp_path / "latents")
    assert manifest.classes == ["archery", "run", "walk"]
    assert load_manifest(encoded / "latents").classes == []
    entries = index_shards([tmp_path / "latents/00000.tar"])
    assert [load_entry(entry, 0, manifest.classes)["label"] for entry in entries] == [2, 1, -1, 2, 0]


def test_means_without_std_take_half_the_space(encoded, tmp_path):
    encode(encoded, tmp_path / "latents", encode=EncodeSettings(batch_size=3, clips_per_video=2, posterior="mean"))
    manifest = load_manifest(tmp_path / "latents")
    means, moments = (entries_of(folder)[0][3] for folder in (tmp_path / "latents", encoded / "latents"))
    mean, both = (load_entry(entry, 0, manifest.classes) for entry in (means, moments))
    assert torch.equal(mean["mean"], both["mean"])
    assert mean["std"].abs().max() == 0 < both["std"].min()
    assert manifest.latents_std == pytest.approx(load_manifest(encoded / "latents").latents_std)


def test_the_manifest_says_what_the_latents_are(encoded, vae):
    manifest = load_manifest(encoded / "latents")
    assert manifest.vae_sha256 == weights_fingerprint(vae)
    assert manifest.shape == (4, 2, 4, 4)
    assert manifest.train_entries + manifest.held_out_entries == sum(record.entries for record in manifest.shards) == 24
    for record in manifest.shards:
        assert file_fingerprint(encoded / "latents" / record.name) == record.sha256
        assert file_fingerprint(encoded / "shards" / record.name) == record.source_sha256


def test_the_statistics_are_those_of_training_latents_only(encoded):
    manifest = load_manifest(encoded / "latents")
    train, _ = entries_of(encoded / "latents")
    entries = [load_entry(entry, 0, []) for entry in train]
    mean = torch.stack([entry["mean"] for entry in entries]).double()
    second = mean.square() + torch.stack([entry["std"] for entry in entries]).double().square()
    expected_mean, expected_square = mean.mean(dim=(0, 2, 3, 4)), second.mean(dim=(0, 2, 3, 4))
    assert manifest.latents_mean == pytest.approx(expected_mean.tolist(), rel=1e-2, abs=2e-3)
    assert manifest.latents_std == pytest.approx((expected_square - expected_mean**2).sqrt().tolist(), rel=1e-2)


def test_all_clips_of_a_video_are_in_one_split(encoded):
    train, held_out = entries_of(encoded / "latents")
    keys = [{entry.read_json()["source"] for entry in split} for split in (train, held_out)]
    assert keys[0] & keys[1] == set()
    assert all(is_held_out(key, "", DATA.held_out) for key in keys[1])


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


def test_a_slice_of_a_longer_latent_is_not_the_latent_of_a_clip(encoded, vae):
    """Why clips are declared: a clip's first frame is encoded alone, a slice's first frame is not."""
    videos = VideoSet(encoded / "shards", DATA, "?")
    video = to_float(load_clip(videos.train[0], DATA.model_copy(update={"frames": 9}))).unsqueeze(0)
    whole, clip = (vae.encode(part).latent_dist.mean.detach() for part in (video, video[:, :, 4:]))
    slice_error = float((whole[:, :, 1:] - clip).norm() / clip.norm())
    assert torch.allclose(
        vae.encode(video[:, :, :5]).latent_dist.mean, whole[:, :, :2], atol=1e-5
    )  # causal: a prefix is
    assert slice_error > 0.05


def test_a_mirrored_clip_is_an_entry_of_its_own_unless_its_caption_mentions_a_side(encoded, tmp_path, vae, capsys):
    encode(encoded, tmp_path / "latents", encode=EncodeSettings(batch_size=5, flip=True))
    train, held_out = entries_of(tmp_path / "latents")
    mirrored = next(entry for entry in train if entry.read_json()["flip"])
    plain = train[train.index(mirrored) - 1]
    assert not plain.read_json()["flip"]
    source = next(s for s in VideoSet(encoded / "shards", DATA, "?").samples if s.key == plain.read_json()["source"])
    with torch.no_grad():
        expected = vae.encode(to_float(load_clip(source, DATA).flip(2)).unsqueeze(0)).latent_dist.mean[0]
    assert torch.allclose(load_entry(mirrored, 0, [])["mean"], expected, rtol=1e-2, atol=1e-2)

    entries = [entry.read_json() for entry in (*train, *held_out)]
    sided = {entry["source"] for entry in entries if re.search("left|right", entry["caption"])}
    assert 0 < len(sided) < 12
    assert len(entries) == 12 + (12 - len(sided))  # a caption that says "moves left" is wrong for the mirror image
    assert not any(entry["flip"] for entry in entries if entry["source"] in sided)
    assert f"{len(sided)} of 12 videos have no mirrored clips" in capsys.readouterr().out


def test_a_long_clip_encoded_in_pieces_is_the_clip_encoded_whole(encoded, tmp_path):
    data = DATA.model_copy(update={"frames": 9})
    for name, piece in (("whole", 65), ("pieces", 5)):
        encode(encoded, tmp_path / name, encode=EncodeSettings(batch_size=3, stream_frames=piece), data=data)
    pairs = zip(entries_of(tmp_path / "whole")[0], entries_of(tmp_path / "pieces")[0], strict=True)
    for whole, pieces in pairs:
        for name in ("mean", "std"):
            assert torch.allclose(load_entry(whole, 0, [])[name], load_entry(pieces, 0, [])[name], rtol=1e-2, atol=1e-2)


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


def test_a_video_that_cannot_be_decoded_is_left_out_and_listed_in_the_manifest(encoded, tmp_path):
    for name in ("shards", "vae"):
        shutil.copytree(encoded / name, tmp_path / name)
    shard = tmp_path / "shards/00001.tar"
    broken = index_shards([shard])[2]
    data, (offset, size, _) = bytearray(shard.read_bytes()), broken.members["mp4"]
    data[offset : offset + size] = bytes(size)
    shard.write_bytes(data)
    lenient = DATA.model_copy(update={"failures_allowed": 0.1, "workers": 1})
    encode(tmp_path, tmp_path / "latents", data=lenient)
    manifest = load_manifest(tmp_path / "latents")
    assert list(manifest.failed) == [broken.key]
    assert "cannot be decoded as a video" in manifest.failed[broken.key]
    assert manifest.train_entries + manifest.held_out_entries == 22
    with pytest.raises(InputError, match=r"1 of 12 videos could not be used, more than data\.failures_allowed=0\.05"):
        encode(tmp_path, tmp_path / "strict")


def test_videos_without_captions_are_encoded_for_networks_without_text_conditioning(encoded, tmp_path):
    for name in ("vae", "shards"):
        (tmp_path / name).mkdir()
    shutil.copytree(encoded / "vae", tmp_path / "vae", dirs_exist_ok=True)
    with shard_writer(tmp_path / "shards/00000.tar") as writer:
        for sample in index_shards(sorted((encoded / "shards").glob("*.tar"))):
            members = {extension: sample.read(extension) for extension in sample.members}
            writer.write({"__key__": sample.key, **members, "txt": b""})
    encode(tmp_path, tmp_path / "latents")
    assert not has_vocabulary(tmp_path / "latents/text_encoder")
    assert has_vocabulary(encoded / "latents/text_encoder")
    captions = [load_entry(entry, 0, {})["text_mask"].sum() for entry in entries_of(tmp_path / "latents")[0]]
    assert set(map(int, captions)) == {2}  # begin and end


def test_a_manifest_left_by_a_killed_process_is_rewritten(encoded, tmp_path):
    shutil.copytree(encoded / "latents", tmp_path / "latents")
    manifest = load_manifest(tmp_path / "latents")
    dataclasses.replace(manifest, shards=manifest.shards[:-1]).save(tmp_path / "latents")
    encode(encoded, tmp_path / "latents")
    assert load_manifest(tmp_path / "latents").shards == manifest.shards


def test_classes_that_are_numbers_are_in_the_order_of_their_values():
    assert sorted(["10", "b", "2", "a", "0"], key=by_number_or_name) == ["0", "2", "10", "a", "b"]
