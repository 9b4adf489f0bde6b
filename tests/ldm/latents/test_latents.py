"""Latent shards and their manifest: what encoding stores of which clips."""

import re
import shutil

import pytest
import torch
from small_latents import DATA, encode, entries_of, relabel

from ldm.encoding.finish import by_number_or_name
from ldm.encoding.settings import EncodeSettings
from ldm.latents.entries import load_entry
from ldm.latents.manifest import load_manifest
from ldm.networks.text_encoder import has_vocabulary
from odvae.clips.clip import load_clip
from odvae.clips.video_set import VideoSet, is_held_out
from odvae.running.errors import InputError
from odvae.running.hashing import file_fingerprint, weights_fingerprint
from odvae.shards.tars import index_shards, shard_writer
from odvae.video.pixels import to_float


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


def test_classes_that_are_numbers_are_in_the_order_of_their_values():
    assert sorted(["10", "b", "2", "a", "0"], key=by_number_or_name) == ["0", "2", "10", "a", "b"]
