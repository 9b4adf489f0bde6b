"""Text in shards of its own: the same trainings, other captions and encoders without videos, parts, and mismatches."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load
from small_latents import DATA, encode, opened
from small_ldm import settings, train

from ldm.encoding.settings import EncodeSettings
from ldm.encoding.verify import find_problems
from ldm.latents.batches import entry_failures, latent_batches
from ldm.latents.latent_set import held_out_batches
from ldm.latents.manifest import check_latents, load_manifest
from ldm.networks.settings import ConditioningSettings, TextSettings
from ldm.networks.text_encoder import learn_text_encoder
from odvae.clips.samplers import BatchPlan
from odvae.running.errors import InputError
from odvae.shards.tars import index_shard, index_shards, list_shards, shard_writer

ENCODE = EncodeSettings(batch_size=3, clips_per_video=2, flip=True)
SEPARATE, ONLY = (ENCODE.model_copy(update={"text": text}) for text in ("separate", "only"))
SEVERAL = ["a red square", "a square, red, that moves", "something moves"]


def write_shards(run, folder, change=lambda key, members: members):
    """The videos of a run in four shards; the first three videos have three captions, the fourth has none."""
    (folder / "shards").mkdir(exist_ok=True)
    samples = index_shards(list_shards(run / "shards", "?"))
    for i in range(4):
        with shard_writer(folder / f"shards/{i:05d}.tar") as writer:
            for j, sample in list(enumerate(samples))[i::4]:
                members = sample.read_all()
                if j < 3:
                    members["json"] = json.dumps(json.loads(members["json"]) | {"captions": SEVERAL}).encode()
                elif j == 3:
                    members["txt"] = b""
                writer.write({"__key__": sample.key, **change(sample.key, members)})


@pytest.fixture(scope="module")
def runs(ldm_run, tmp_path_factory):
    """`together/` and `apart/`: the same videos and VAE, with both kinds of latents."""
    folder = tmp_path_factory.mktemp("separate")
    for name, chosen in (("together", ENCODE), ("apart", SEPARATE)):
        shutil.copytree(ldm_run / "vae", folder / name / "vae")
        write_shards(ldm_run, folder / name)
        encode(folder / name, folder / name / "latents", encode=chosen)
    return folder


@pytest.fixture
def run(runs, tmp_path):
    """A copy of `apart/`, which a test may change."""
    shutil.copytree(runs / "apart", tmp_path / "run")
    return tmp_path / "run"


def first_batches(folder, count=12):
    latents = opened(folder)
    batches = latent_batches(latents, 5, BatchPlan(4))
    return [next(batches) for _ in range(count)] + list(held_out_batches(latents, 4, 0, 1))


def test_both_layouts_have_the_same_batches_bit_for_bit(runs):
    for one, other in zip(*(first_batches(runs / name / "latents") for name in ("together", "apart")), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_both_layouts_train_the_same_weights_bit_for_bit(runs, tmp_path):
    one, other = (train(runs / name, tmp_path / name, settings()) for name in ("together", "apart"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((tmp_path / "apart/account.json").read_text())["without_caption"] == 4  # clips of one video


def test_both_manifests_say_the_same_of_text(runs):
    together, apart = (load_manifest(runs / name / "latents") for name in ("together", "apart"))
    for name in (
        "text_sha256",
        "text_width",
        "text_tokens",
        "captioned_entries",
        "captions",
        "captioned_train_entries",
    ):
        assert getattr(together, name) == getattr(apart, name), name
    assert apart.text_encoder == "text/text_encoder"
    assert [record.latents_sha256 for record in apart.separate_text.shards] == [one.sha256 for one in apart.shards]
    assert json.loads((runs / "apart/latents/manifest.json").read_text())["text_tokens"] == 0


def test_latents_have_neither_text_nor_captions_and_a_video_with_several_clips_has_its_text_once(runs):
    (entry, *_) = index_shard(runs / "apart/latents/00000.tar")
    assert load(entry.read("safetensors")).keys() == {"mean", "std"}
    assert "caption" not in entry.read_json()
    texts = index_shard(runs / "apart/latents/text/00000.tar")
    assert [text.key for text in texts] == [one.key for one in index_shard(runs / "apart/shards/00000.tar")]
    assert texts[0].read_json()["captions"][1:] == SEVERAL
    numbered = {f"text{i}.safetensors" for i in (1, 2, 3)}
    assert texts[0].members.keys() == {"safetensors", "json"} | numbered


def test_a_network_without_text_reads_none(run, tmp_path):
    shutil.rmtree(run / "latents/text")
    train(run, tmp_path / "ldm", settings(conditioning=ConditioningSettings(kind="none")))
    with pytest.raises(InputError, match=r"captions are not embedded yet; run: .*encode\.text=only"):
        train(run, tmp_path / "other", settings())
    with pytest.raises(InputError, match="captions of these latents are not embedded yet"):
        opened(run / "latents")


def given_encoder(folder, width=32):
    learn_text_encoder(["a red square moves"], TextSettings(max_tokens=8, width=width, steps=1), folder, 1)
    return TextSettings(max_tokens=8, encoder=str(folder))


def modification_times(folder, pattern):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_another_text_encoder_needs_no_video_and_leaves_the_latents_as_they_are(run, tmp_path, monkeypatch):
    text = given_encoder(tmp_path / "encoder")
    with pytest.raises(InputError, match=r"holds a run with other settings[^$]*text\.encoder: was 'learned'"):
        encode(run, run / "latents", encode=ONLY, text=text)
    shutil.rmtree(run / "latents/text")
    shutil.rmtree(run / "vae")
    before = modification_times(run / "latents", "*.tar")
    encode(run, run / "latents", encode=ONLY, text=text)
    assert modification_times(run / "latents", "*.tar") == before
    manifest = load_manifest(run / "latents")
    assert (manifest.text_width, manifest.text_encoder) == (32, text.encoder)
    assert first_batches(run / "latents")[0]["text"].shape == (4, 8, 32)


def test_latents_with_text_can_get_another_one(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "together", run)
    encode(run, run / "latents", encode=ONLY, text=given_encoder(tmp_path / "encoder"))
    batch, before = first_batches(run / "latents")[0], first_batches(runs / "together/latents")[0]
    assert batch["text"].shape == (4, 8, 32)
    assert torch.equal(batch["mean"], before["mean"])
    assert list(find_problems(run / "latents", load_manifest(run / "latents"))) == []


def test_changed_captions_are_embedded_again_and_only_they(ldm_run, runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "apart", run)
    shutil.rmtree(run / "latents/text")
    text = given_encoder(tmp_path / "encoder")
    encode(run, run / "latents", encode=ONLY, text=text)
    times, before = modification_times(run / "latents/text", "*.tar"), first_batches(run / "latents")
    changed = index_shard(run / "shards/00002.tar")[1].key
    write_shards(ldm_run, run, lambda key, members: members | ({"txt": b"a red square"} if key == changed else {}))
    encode(run, run / "latents", encode=ONLY, text=text)
    after = modification_times(run / "latents/text", "*.tar")
    assert [name for name in times if after[name] != times[name]] == ["00002.tar"]
    different = [
        (one["text"] != other["text"]).flatten(1).any(1).sum().item()
        for one, other in zip(before, first_batches(run / "latents"), strict=True)
    ]
    assert sum(different) > 0
    assert sum(different) < 20


def test_captions_that_change_are_refused_for_the_encoder_that_was_trained_on_them(ldm_run, run):
    write_shards(ldm_run, run, lambda key, members: members | {"txt": b"a red square"})
    with pytest.raises(InputError, match=r"have changed since the text encoder .* remove .*/latents/text and run"):
        encode(run, run / "latents", encode=ONLY)


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.*")
        if path.suffix in (".tar", ".arrow", ".safetensors") or path.parent.name == "shards"
    }


def test_parts_in_any_order_and_an_interrupted_run_have_the_bytes_of_one_run(runs, run):
    expected = files_of(runs / "apart/latents/text")
    shutil.rmtree(run / "latents/text")
    for part in ("2/3", "3/3"):
        encode(run, run / "latents", encode=ONLY.model_copy(update={"part": part}))
    with pytest.raises(InputError, match=r"lacks the text of 2 latent shards: 00000\.tar, 00003\.tar"):
        encode(run, run / "latents", encode=ONLY.model_copy(update={"finish": True}))
    encode(run, run / "latents", encode=ONLY.model_copy(update={"part": "1/3"}))
    encode(run, run / "latents", encode=ONLY.model_copy(update={"finish": True}))
    assert files_of(run / "latents/text") == expected
    for name in ("00001.tar", "shards/00002.json", "index/00003.tar.arrow", "index.arrow", "manifest.json"):
        (run / "latents/text" / name).unlink()
    encode(run, run / "latents", encode=SEPARATE)
    assert files_of(run / "latents/text") == expected


def test_parts_of_both_have_the_bytes_of_one_run(runs, run):
    expected = files_of(runs / "apart/latents")
    shutil.rmtree(run / "latents")
    for part in ("2/2", "1/2"):
        encode(run, run / "latents", encode=SEPARATE.model_copy(update={"part": part}))
    encode(run, run / "latents", encode=SEPARATE.model_copy(update={"finish": True}))
    assert files_of(run / "latents").keys() == expected.keys()
    for name, data in files_of(run / "latents").items():
        assert name.startswith("shards/") or data == expected[name], name


def test_text_of_other_latents_or_missing_text_is_named(run, ldm_run):
    latents, text = run / "latents", run / "latents/text"
    manifest = load_manifest(latents)
    path = text / "manifest.json"
    good = json.loads(path.read_text())
    wrong = json.loads(path.read_text())
    wrong["shards"][1]["latents_sha256"] = "0" * 64
    for change, message in (
        (wrong, r"text/00001\.tar is the text of other latents"),
        (good | {"shards": good["shards"][:2]}, r"latents/text has no text of 00002\.tar"),
        (good | {"shards": good["shards"][::-1]}, r"or in another order"),
        (good | {"text_width": "x"}, r"text/manifest\.json was damaged"),
    ):
        path.write_text(json.dumps(change))
        with pytest.raises(InputError, match=message):
            opened(latents)
    path.write_text(json.dumps(good))
    (text / "00003.tar").rename(text / "away")
    with pytest.raises(InputError, match=r"text/00003\.tar is missing.*; run: .*encode\.text=only"):
        check_latents(latents, manifest, manifest.vae_sha256, run / "vae")
    assert any("text/00003.tar is missing" in one for one in find_problems(latents, manifest))
    (text / "away").rename(text / "00003.tar")
    (text / "index.arrow").unlink()
    assert first_batches(latents)[0]["text"].shape == (4, 8, 16)  # made again from those of the shards
    (text / "index.arrow").unlink()
    (text / "index/00001.tar.arrow").unlink()
    with pytest.raises(InputError, match=r"00001\.tar\.arrow is not the index of 00001\.tar, or is missing"):
        opened(latents)


def test_a_damaged_text_is_named_counted_and_replaced(run):
    latents = run / "latents"
    first = opened(latents)
    (entries,) = first.train.values()
    text = entries.text_index.sample(entries.rows[0])
    data = bytearray(text.shard.read_bytes())
    for offset, size, _ in (text.members[name] for name in text.members if name.endswith("safetensors")):
        data[offset + size - 1] ^= 1
    text.shard.write_bytes(data)
    failures = entry_failures(first, 0.9)
    batches = latent_batches(first, 5, BatchPlan(4), failures=failures)
    for _ in range(2 * len(entries) // 4):
        next(batches)
    assert {name.rpartition(":")[2].rpartition("-")[0] for name in failures.reasons} == {text.key}
    assert all("text/" in reason and "its checksum is" in reason for reason in failures.reasons.values())


def test_a_caption_that_cannot_be_read_is_counted_and_its_clips_are_not_trained_on(ldm_run, run, tmp_path):
    text = given_encoder(tmp_path / "encoder")
    broken = index_shard(run / "shards/00002.tar")[1].key
    write_shards(ldm_run, run, lambda key, members: members | ({"txt": b"\xff"} if key == broken else {}))
    shutil.rmtree(run / "latents/text")
    with pytest.raises(InputError, match=r"1 of 16 videos could not be used[^$]*is not UTF-8"):
        encode(run, run / "latents", encode=ONLY, text=text, data=DATA.model_copy(update={"failures_allowed": 0.0}))
    encode(run, run / "latents", encode=ONLY, text=text, data=DATA.model_copy(update={"failures_allowed": 0.1}))
    assert list(load_manifest(run / "latents").separate_text.failed) == [broken]
    latents = opened(run / "latents")
    (entries,) = latents.train.values()
    failures = entry_failures(latents, 0.9)
    batches = latent_batches(latents, 5, BatchPlan(4), failures=failures)
    for _ in range(2 * len(entries) // 4):
        next(batches)
    assert all("is not UTF-8" in reason for reason in failures.reasons.values())


def test_videos_that_are_not_in_the_shard_any_more_are_named(run):
    key = index_shard(run / "shards/00001.tar")[0].key
    samples = [(one.key, one.read_all()) for one in index_shard(run / "shards/00001.tar")[1:]]
    with shard_writer(run / "shards/00001.tar") as writer:
        for other, members in samples:
            writer.write({"__key__": other, **members})
    shutil.rmtree(run / "latents/text")
    with pytest.raises(InputError, match=rf"00001\.tar has latents of {key}, which is not in 00001\.tar any more"):
        encode(run, run / "latents", encode=ONLY)
