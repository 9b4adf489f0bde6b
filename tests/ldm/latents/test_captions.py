"""Captions in latents: captioned clips are counted, all captions embedded, one is chosen by sample number."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save as save_safetensors
from small_latents import DATA, TEXT, encode
from small_ldm import settings, train

from ldm.encoding.settings import EncodeSettings
from ldm.latents.batches import latent_batches
from ldm.latents.entries import caption_count, load_entries, load_entry, pack_entry, pack_text
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import load_manifest
from ldm.networks.settings import ConditioningSettings, TextSettings
from ldm.networks.text_encoder import load_text_encoder
from odvae.clips.samplers import BatchPlan
from odvae.clips.settings import DataSettings
from odvae.clips.video_set import VideoSet
from odvae.running.errors import InputError
from odvae.running.seeds import derive_seed
from odvae.shards.tars import index_shards, list_shards, shard_writer

CLASSES = ["blue", "cyan", "green", "magenta", "red", "white", "yellow", "gray"]
SEVERAL = ["a red square", "a square, red, that moves", "something moves"]


@pytest.fixture(scope="module")
def source(ldm_run, tmp_path_factory):
    """vae/ and shards/ of videos, of which the first three have three captions, the next no caption, others one."""
    folder = tmp_path_factory.mktemp("several")
    shutil.copytree(ldm_run / "vae", folder / "vae")
    (folder / "shards").mkdir()
    with shard_writer(folder / "shards/00000.tar") as writer:
        for i, sample in enumerate(index_shards(list_shards(ldm_run / "shards", "?"))):
            members = {extension: sample.read(extension) for extension in sample.members}
            if i < 3:
                about = json.loads(members["json"]) | {"caption": SEVERAL[0], "captions": SEVERAL}
                members |= {"txt": SEVERAL[0].encode(), "json": json.dumps(about).encode()}
            elif i == 3:
                members["txt"] = b""
            writer.write({"__key__": sample.key, **members})
    encode(folder, folder / "latents", encode=EncodeSettings(batch_size=3))
    return folder


def entries_of(folder):
    latents = open_latents(folder, load_manifest(folder))
    return [entry for split in (latents.train, latents.held_out) for entries in split.values() for entry in entries]


def test_all_captions_are_embedded_independently(source):
    entries = entries_of(source / "latents")
    several = [entry for entry in entries if caption_count(entry) > 1]
    assert [caption_count(entry) for entry in several] == [3, 3, 3]
    encoder = load_text_encoder(source / "latents/text_encoder")
    for number in range(3):
        texts, masks = encoder.encode([SEVERAL[number]], TEXT.max_tokens)
        seed = next(seed for seed in range(100) if derive_seed(seed, "caption", 7) % 3 == number)
        loaded = load_entries(several[:1], [7], CLASSES, seed)
        assert torch.equal(loaded["text_mask"], masks)
        assert torch.allclose(loaded["text"], texts * masks.unsqueeze(-1), atol=0.02)  # padding is zero
    assert several[0].read_json()["captions"] == SEVERAL
    assert load_entry(several[0], 7, CLASSES)["text"].equal(
        load_entries(several[:1], [9], CLASSES)["text"][0]
    )  # the first


def test_the_draw_is_a_function_of_the_sample_number_and_draws_all(source):
    latents = open_latents(source / "latents", load_manifest(source / "latents"))
    batches = {
        plan: latent_batches(latents, seed=5, plan=plan)
        for plan in (BatchPlan(4), BatchPlan(2, gradient_accumulation_steps=2))
    }
    whole = {}
    for _ in range(20):
        batch = next(batches[BatchPlan(4)])
        whole |= dict(zip(batch["number"].tolist(), batch["text"], strict=True))
    for _ in range(40):
        batch = next(batches[BatchPlan(2, gradient_accumulation_steps=2)])
        for number, text in zip(batch["number"].tolist(), batch["text"], strict=True):
            assert torch.equal(whole[number], text)
    entry = next(entry for entry in entries_of(source / "latents") if caption_count(entry) == 3)
    drawn = {load_entries([entry], [number], CLASSES, seed=0)["text"].sum().item() for number in range(30)}
    assert len(drawn) == 3


def test_the_manifest_and_the_account_have_the_number_of_captioned_clips(source, capsys):
    manifest = load_manifest(source / "latents")
    entries = manifest.train_entries + manifest.held_out_entries
    assert (entries, manifest.captioned_entries, manifest.captions) == (16, 15, 21)
    assert manifest.captioned_share == pytest.approx(15 / 16, abs=1e-4)
    account = json.loads((source / "latents/account.json").read_text())
    assert (account["found"], account["used"], account["without_caption"]) == (16, 16, 1)
    encode(source, source / "latents", encode=EncodeSettings(batch_size=3))  # again: nothing to do, the same account
    assert "without a caption   1  (6% of the used)" in capsys.readouterr().out
    assert json.loads((source / "latents/account.json").read_text()) == account


def without_captions(source, folder):
    shutil.copytree(source / "vae", folder / "vae")
    (folder / "shards").mkdir()
    with shard_writer(folder / "shards/00000.tar") as writer:
        for sample in index_shards(list_shards(source / "shards", "?")):
            members = {extension: sample.read(extension) for extension in sample.members}
            writer.write({"__key__": sample.key, **members, "txt": b" \n"})
    return folder


@pytest.mark.parametrize("encoder", ["learned", "pretrained"])
def test_text_conditioning_without_captions_is_refused_for_every_text_encoder(source, tmp_path, encoder):
    folder = without_captions(source, tmp_path)
    name = "learned" if encoder == "learned" else str(source / "latents/text_encoder")
    text = TextSettings(encoder=name, max_tokens=8, width=16, steps=3)
    with pytest.raises(InputError, match=r"none of the \d+ training videos has a caption"):
        encode(folder, folder / "latents", text=text, needs_text=True)
    assert not (folder / "latents").exists()
    encode(folder, folder / "latents", text=text, encode=EncodeSettings(batch_size=3))
    assert load_manifest(folder / "latents").captioned_share == 0
    with pytest.raises(InputError, match="no training video has a caption"):
        train(folder, folder / "ldm", settings())
    train(folder, folder / "ldm", settings(steps=1, conditioning=ConditioningSettings(kind="none")))
    account = json.loads((folder / "ldm/account.json").read_text())
    assert (account["used"], account["without_caption"]) == (16, None)


def test_training_ends_with_an_account(source, tmp_path, capsys):
    train(source, tmp_path / "ldm", settings(steps=1))
    said = capsys.readouterr().out
    assert "1 of 16 clips have no caption" in said
    assert "encoded clips found  16" in said
    train(source, tmp_path / "by_class", settings(steps=1, conditioning=ConditioningSettings(kind="class")))
    account = json.loads((tmp_path / "by_class/account.json").read_text())
    assert sum(account["classes"].values()) == 16
    assert account["without_caption"] is None


def test_a_caption_that_cannot_be_read_costs_its_video_and_is_named_so(source, tmp_path):
    shutil.copytree(source / "vae", tmp_path / "vae")
    (tmp_path / "shards").mkdir()
    with shard_writer(tmp_path / "shards/00000.tar") as writer:
        samples = index_shards(list_shards(source / "shards", "?"))
        bad = samples[5].key
        for sample in samples:
            members = {extension: sample.read(extension) for extension in sample.members}
            writer.write({"__key__": sample.key, **members, **({"txt": b"pr\xe8s"} if sample.key == bad else {})})
        writer.write({"__key__": "lonely", "txt": b"of no video"})
    data = DataSettings(**{**DATA.model_dump(), "failures_allowed": 0.5})
    encode(tmp_path, tmp_path / "latents", data=data)
    account = json.loads((tmp_path / "latents/account.json").read_text())
    assert list(account["left_out"]["caption cannot be read"]["names"]) == [bad]
    assert list(account["left_out"]["holds no video"]["names"]) == ["lonely"]
    assert account["found"] == 17
    assert load_manifest(tmp_path / "latents").failed.keys() == {bad}
    train(tmp_path, tmp_path / "ldm", settings(steps=1))
    account = json.loads((tmp_path / "ldm/account.json").read_text())
    assert "is not UTF-8" in account["left_out"]["could not be encoded"]["names"][bad]
    assert len(VideoSet(tmp_path / "shards", data, "?").samples) == 16


def test_an_embedding_is_stored_without_padding_and_read_as_one_with_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    mean, text = (torch.randn(shape, generator=generator) for shape in ((4, 2, 4, 4), (2, 16, 8)))
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[0, :3] = True
    masks[1, 11:] = True  # of a tokenizer that pads on the left
    about = json.dumps({"label": "red"}).encode()
    for name, mask in zip(("right", "left"), masks, strict=True):
        padded = {"mean": mean.bfloat16(), "text": text[0].bfloat16(), "text_mask": mask}
        further = {"text": text[1].bfloat16(), "text_mask": mask}
        with shard_writer(tmp_path / f"{name}.tar") as shard:
            old = {"safetensors": save_safetensors(padded), "text1.safetensors": save_safetensors(further)}
            new = {
                "safetensors": pack_entry(mean, None, text[0], mask, torch.bfloat16),
                "text1.safetensors": pack_text(text[1], mask, torch.bfloat16),
            }
            for key, members in {"old": old, "new": new}.items():
                shard.write({"__key__": f"{key}-000", **members, "json": about})
        before, after = index_shards([tmp_path / f"{name}.tar"])
        assert after.members["text1.safetensors"].size < before.members["text1.safetensors"].size - 10 * 8 * 2
        for number in range(6):  # both captions
            batches = [load_entries([entry], [number], CLASSES, seed=0) for entry in (before, after)]
            assert batches[0].keys() == batches[1].keys()
            for one, other in zip(*(batch.values() for batch in batches), strict=True):
                assert torch.equal(one, other)
        assert torch.equal(batches[0]["text_mask"][0], mask)
        assert batches[0]["text"][0, ~mask].abs().sum() == 0 < batches[0]["text"][0, mask].abs().sum()
