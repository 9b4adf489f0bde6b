"""Latent shards and their manifest: what they hold, what is refused, that an interrupted encoding goes on."""

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from ldm.encode import LatentSettings, encode_latents
from ldm.encoding_plan import clip_starts
from ldm.latents import load_entry, open_latents
from ldm.manifest import check_latents, load_manifest
from ldm.text import TextSettings, learn_text_encoder, load_text_encoder
from ldm.train import LatentData
from odvae.shared.clips import DataSettings, VideoSet, is_held_out, load_clip
from odvae.shared.demo_videos import write_demo_videos
from odvae.shared.errors import InputError
from odvae.shared.fingerprints import file_fingerprint, weights_fingerprint
from odvae.shared.packing import pack_folder
from odvae.shared.pixels import to_float
from odvae.shared.shards import index_shards, shard_writer

DATA = DataSettings(frames=5, height=32, width=32, held_out=0.3, workers=0)
TEXT = TextSettings(max_tokens=8, width=16, steps=3)
LATENTS = LatentSettings(batch_size=3, clips_per_video=2)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, vae):
    """A folder with shards/, vae/ and latents/ of twelve small videos."""
    folder = tmp_path_factory.mktemp("encoded")
    write_demo_videos(folder / "videos", 12, 9, 32, 8, seed=3, progress=False)
    pack_folder(folder / "videos", folder / "shards", samples_per_shard=5)
    vae.save_pretrained(folder / "vae")
    encode(folder, folder / "latents")
    return folder


def entries_of(folder):
    """(training, held-out) entries of the only bucket."""
    manifest = load_manifest(folder)
    latents, (bucket,) = open_latents(folder, manifest), manifest.buckets
    return latents.train[bucket], latents.held_out[bucket]


def encode(folder, out, **changes):
    settings = {"latents": LATENTS, "text": TEXT, "data": DATA, **changes}
    videos = VideoSet(folder / "shards", settings["data"], "?")
    arguments = (settings["latents"], settings["text"], settings["data"], videos)
    encode_latents(*arguments, folder / "vae", out, seed=0)


def test_every_declared_clip_is_there_with_its_posterior_caption_and_start(encoded, vae):
    train, held_out = entries_of(encoded / "latents")
    assert len(train) + len(held_out) == 24
    videos = VideoSet(encoded / "shards", DATA, "?")
    sources = {sample.key: sample for sample in videos.train + videos.held_out}
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


def test_class_names_become_places_in_the_sorted_list_of_classes(encoded, tmp_path):
    for name in ("shards", "vae"):
        shutil.copytree(encoded / name, tmp_path / name)
    relabel(tmp_path / "shards/00000.tar", ["walk", "run", None, "walk", "archery"])
    encode(tmp_path, tmp_path / "latents", latents=LatentSettings(batch_size=3))
    manifest = load_manifest(tmp_path / "latents")
    assert manifest.classes == ["archery", "run", "walk"]
    assert load_manifest(encoded / "latents").classes == []
    entries = index_shards([tmp_path / "latents/00000.tar"])
    assert [load_entry(entry, 0, manifest.classes)["label"] for entry in entries] == [2, 1, -1, 2, 0]


def test_means_alone_take_half_the_room_and_have_no_spread(encoded, tmp_path):
    encode(encoded, tmp_path / "latents", latents=LatentSettings(batch_size=3, clips_per_video=2, stored="mean"))
    manifest = load_manifest(tmp_path / "latents")
    means, moments = (entries_of(folder)[0][3] for folder in (tmp_path / "latents", encoded / "latents"))
    mean, both = (load_entry(entry, 0, manifest.classes) for entry in (means, moments))
    assert torch.equal(mean["mean"], both["mean"])
    assert mean["std"].abs().max() == 0 < both["std"].min()
    assert manifest.latents_std == pytest.approx(load_manifest(encoded / "latents").latents_std)


def test_clips_of_a_video_are_spread_over_it():
    assert clip_starts(30, 10, 3) == [0, 10, 20]
    assert clip_starts(30, 10, 1) == [0]
    assert clip_starts(11, 10, 4) == [0, 1]  # none twice


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
    assert all(is_held_out(key, DATA.held_out) for key in keys[1])


def test_an_encoding_that_was_stopped_goes_on_and_ends_in_the_same_bytes(encoded, tmp_path):
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
    with pytest.raises(InputError, match=r"latents\.clips_per_video: was 2, now 1"):
        encode(encoded, tmp_path / "run/latents", latents=LatentSettings(batch_size=3))
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
    with pytest.raises(InputError, match="its manifest says 3"):
        LatentData(tmp_path / "latents", load_manifest(tmp_path / "latents"))
    values = json.loads((tmp_path / "latents/manifest.json").read_text())
    (tmp_path / "latents/manifest.json").write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(InputError, match="format 99, this version reads 2; update this project"):
        load_manifest(tmp_path / "latents")
    (tmp_path / "latents/manifest.json").unlink()
    with pytest.raises(InputError, match="does not exist: the latents are not"):
        load_manifest(tmp_path / "latents")


CAPTIONS = ["a red circle moves left", "a blue square moves up", "a red square moves right"] * 5


def test_a_learned_encoder_and_any_transformers_folder_go_through_the_same_code(tmp_path):
    learn_text_encoder(CAPTIONS, TEXT, tmp_path / "learned", seed=0)
    learned = load_text_encoder(tmp_path / "learned")
    torch.manual_seed(0)
    small = {"vocab_size": len(learned.tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    t5 = T5Config(vocab_size=len(learned.tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    clip = CLIPTextConfig(num_hidden_layers=1, max_position_embeddings=8, **small)
    for name, model in (("t5", T5EncoderModel(t5)), ("clip", CLIPTextModel(clip))):
        model.save_pretrained(tmp_path / name)
        learned.tokenizer.save_pretrained(tmp_path / name)
    for name in ("learned", "t5", "clip"):
        encoder = load_text_encoder(tmp_path / name)
        embeddings, mask = encoder.encode([CAPTIONS[0], ""], 8)
        assert embeddings.shape == (2, 8, encoder.width) == (2, 8, 16)
        assert mask.sum(dim=1).tolist() == [7, 2]  # five words, start and end
        again, _ = load_text_encoder(tmp_path / name).encode([CAPTIONS[0], ""], 8)
        assert torch.equal(embeddings, again)


def test_a_learned_encoder_tells_every_word_of_the_captions_apart(tmp_path):
    learn_text_encoder(CAPTIONS, TextSettings(max_tokens=8, width=16, steps=60), tmp_path / "learned", seed=0)
    encoder = load_text_encoder(tmp_path / "learned")
    changed = [
        "a blue circle moves left",
        "a red square moves left",
        "a red circle moves up",
        "a red circle moves right",
    ]
    embeddings, _ = encoder.encode([CAPTIONS[0], *changed], 8)
    distances = (embeddings[1:] - embeddings[0]).norm(dim=-1).amax(dim=1)
    assert distances.min() > 0.3 * embeddings[0].norm(dim=-1).mean()


def test_learning_is_the_same_for_the_same_captions_and_seed(tmp_path):
    for name in ("one", "two"):
        learn_text_encoder(CAPTIONS, TEXT, tmp_path / name, seed=0)
    one, two = (weights_fingerprint(load_text_encoder(tmp_path / name).model) for name in ("one", "two"))
    assert one == two


def test_an_encoder_that_is_not_there_and_captions_that_are_not_there_are_errors(tmp_path):
    with pytest.raises(InputError, match=r"text\.encoder=.*nowhere"):
        load_text_encoder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="needs captions"):
        learn_text_encoder([], TEXT, tmp_path / "learned", seed=0)
