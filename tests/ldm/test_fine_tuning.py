"""Fine-tuning of a trained network, whole and by a LoRA: resuming, sampling, export, and bases that do not belong."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_ldm import SMALL_DIT, SMALL_UNET, WEIGHTS, evicted_at, settings, train

from ldm import TextToVideoPipeline
from ldm.diffusion.settings import ObjectiveSettings
from ldm.export import export_pipeline
from ldm.latents.manifest import load_manifest
from ldm.networks.factory import load_network
from ldm.networks.lora import LORA_WEIGHTS
from ldm.networks.provenance import Provenance
from ldm.networks.settings import ConditioningSettings, DiTSettings, LoRASettings
from ldm.networks.text_encoder import load_text_encoder
from ldm.sample import load_pipeline, sample_videos
from ldm.sampling.sample_requests import user_requests
from ldm.sampling.settings import SampleSettings
from ldm.train import train_ldm
from ldm.training.initial_network import initial_network
from odvae.running.errors import InputError
from odvae.running.files import read_json_lines
from odvae.running.hashing import weights_fingerprint
from odvae.running.run_folder import RunFolder

PROMPT = "a large red circle moves left"
LORA = LoRASettings(rank=2, alpha=4.0)
TRAINED = {"optimizer": "adamw", "optimization": {"learning_rate": 0.02}}  # far enough from the base to be seen


@pytest.fixture(scope="module")
def base(ldm_run, tmp_path_factory):
    """A run with a trained DiT, from whose latents another run can train further."""
    folder = tmp_path_factory.mktemp("base")
    for name in ("vae", "latents"):
        shutil.copytree(ldm_run / name, folder / name)
    train(folder, folder / "ldm", settings(**TRAINED))
    return folder


@pytest.fixture(scope="module")
def adapted(base):
    """The ldm folder of a LoRA of that DiT, in a run folder next to it."""
    pytest.importorskip("peft")
    return fine_tune(base, base.parent / "adapted" / "ldm", lora=LORA)


def fine_tune(run, folder, **changes):
    changes = {**TRAINED, "init_from": str(run), **changes}
    train_ldm(settings(**{"dit": None, **changes}), run / "vae", run / "latents", folder, seed=0)
    return folder


def same(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_all_weights_train_on_from_those_of_the_base(base, tmp_path):
    folder = fine_tune(base, tmp_path / "ldm", steps=1, optimization={"learning_rate": 1e-6})
    before, after = load_file(base / "ldm" / WEIGHTS), load_file(folder / WEIGHTS)
    changes = [float((before[name] - after[name]).abs().max()) for name in before]
    assert before.keys() == after.keys()
    assert 0 < max(changes) < 1e-5
    provenance = Provenance.load(folder)
    assert (folder / provenance.base).resolve() == (base / "ldm").resolve()
    assert json.loads((folder / "config.json").read_text())["depth"] == 2


@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "LoRA"])
def test_a_fine_tuning_that_was_stopped_resumes_with_the_same_weights(base, tmp_path, lora):
    if lora:
        pytest.importorskip("peft")
    file = LORA_WEIGHTS if lora else WEIGHTS
    every = {**TRAINED, "optimization": {**TRAINED["optimization"], "extra_ema_decays": (0.5,)}}
    whole = fine_tune(base, tmp_path / "whole", lora=lora, **every)
    with evicted_at(3):
        fine_tune(base, tmp_path / "ldm", lora=lora, **every)
    assert not (tmp_path / "ldm" / file).exists()
    fine_tune(base, tmp_path / "ldm", lora=lora, **every)
    assert same(whole / file, tmp_path / "ldm" / file)
    assert same(whole / "ema_0.5" / file, tmp_path / "ldm/ema_0.5" / file)
    assert not same(whole / file, whole / "ema_0.5" / file)


def test_a_lora_run_holds_the_adapter_alone_and_leaves_the_base_as_it_is(base, adapted):
    assert not (adapted / WEIGHTS).exists()
    rank = {value.shape[0] for name, value in load_file(adapted / LORA_WEIGHTS).items() if ".lora_A." in name}
    assert rank == {2}
    provenance = Provenance.load(adapted)
    assert provenance.base_sha256
    network, before = load_network(adapted), load_file(base / "ldm" / WEIGHTS)
    after = network.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rsplit(".", 2)[-2] for name in changed} == {"qkv", "q", "kv", "out"}
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_an_adapter_is_averaged_and_only_trained_tensors_are(adapted):
    averages = load_file(adapted / "checkpoints/step_00000004/ema_0.safetensors")
    assert averages
    assert all(".lora_" in name for name in averages)


def generate(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(PROMPT, generator=generator, num_inference_steps=2, output_type="latent").frames


def test_a_lora_run_samples_and_is_exported_whole(base, adapted, tmp_path):
    requests = user_requests([PROMPT], [], seed=5)
    sampling = SampleSettings(num_inference_steps=2)
    (file,) = sample_videos(requests, sampling, base / "vae", adapted, tmp_path / "samples")
    assert file.is_file()
    (row,) = read_json_lines(tmp_path / "samples/samples.jsonl")
    pipeline = load_pipeline(base / "vae", adapted)
    run = tmp_path / "run"
    shutil.copytree(base / "vae", run / "vae")
    os.symlink(adapted, run / "ldm")
    export_pipeline(RunFolder(run), sampling, tmp_path / "pipeline")
    exported = TextToVideoPipeline.from_pretrained(tmp_path / "pipeline")
    assert torch.equal(generate(exported), generate(pipeline))
    card = (tmp_path / "pipeline/README.md").read_text()
    assert row["ldm_sha256"][:16] in card
    assert "a LoRA, merged into it" in card
    text = load_text_encoder(tmp_path / "pipeline")  # the one that the base's run has learned
    assert weights_fingerprint(text.model) == load_manifest(base / "latents").text_sha256


def test_a_pipeline_of_the_base_takes_the_runs_adapter(base, adapted):
    pipeline = load_pipeline(base / "vae", base / "ldm")
    before = generate(pipeline)
    merged = generate(load_pipeline(base / "vae", adapted))
    assert not torch.allclose(before, merged, atol=1e-2)
    pipeline.load_lora_weights(adapted, adapter_name="first")
    assert torch.allclose(generate(pipeline), merged, atol=1e-4)
    with pytest.raises(InputError, match="adapter_name='first' is in use"):
        pipeline.load_lora_weights(adapted / LORA_WEIGHTS, adapter_name="first")
    pipeline.load_lora_weights(adapted, adapter_name="second")
    pipeline.set_adapters(["first", "second"], [0.0, 1.0])
    assert pipeline.get_list_adapters() == {"transformer": ["first", "second"]}
    assert torch.allclose(generate(pipeline), merged, atol=1e-4)
    pipeline.set_adapters("first", 0.0)
    assert torch.allclose(generate(pipeline), before, atol=1e-4)
    pipeline.set_adapters("first")
    pipeline.fuse_lora(adapter_names=["first"])
    pipeline.unload_lora_weights()
    assert torch.allclose(generate(pipeline), merged, atol=1e-4)


def test_a_pipeline_saves_an_adapter_that_another_one_loads(base, adapted, tmp_path):
    from peft.utils import get_peft_model_state_dict

    pipeline = load_pipeline(base / "vae", base / "ldm")
    pipeline.load_lora_weights(adapted)
    pipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(pipeline.transformer, adapter_name="default_0"))
    other = load_pipeline(base / "vae", base / "ldm")
    other.load_lora_weights(load_file(tmp_path / LORA_WEIGHTS))
    assert other.transformer.peft_config.keys() == {"default_0"}


def test_the_adapter_of_another_network_is_refused_by_the_pipeline(base, adapted, tmp_path):
    train(base, tmp_path / "ldm", settings(dit=DiTSettings(width=48, depth=1, heads=2), steps=1))
    pipeline = load_pipeline(base / "vae", tmp_path / "ldm")
    with pytest.raises(InputError, match=r"adapted.* cannot be loaded as a LoRA: it is a LoRA of another network"):
        pipeline.load_lora_weights(adapted)
    assert not getattr(pipeline.transformer, "peft_config", None)
    with pytest.raises(InputError, match="it is a LoRA of another network"):
        pipeline.load_lora_weights(load_file(adapted / LORA_WEIGHTS))


def test_an_exported_pipeline_is_a_base_as_the_run_is(base, tmp_path):
    export_pipeline(RunFolder(base), SampleSettings(), tmp_path / "pipeline")
    manifest = load_manifest(base / "latents")
    chosen = settings(dit=None, init_from=str(tmp_path / "pipeline"))
    start = initial_network(chosen, manifest).base
    assert start.folder == tmp_path / "pipeline/transformer"
    expected = initial_network(settings(dit=SMALL_DIT, init_from=str(base / "ldm")), manifest).base
    assert (start.sha256, start.vae_sha256, start.text_sha256) == (
        expected.sha256,
        expected.vae_sha256,
        expected.text_sha256,
    )


def test_a_base_keeps_the_mean_and_std_that_its_inputs_were_normalized_by(base, tmp_path):
    manifest = load_manifest(base / "latents")
    start = initial_network(settings(dit=None, init_from=str(base)), manifest)
    changed = json.loads((base / "latents/manifest.json").read_text()) | {"latents_mean": [9.0] * 4}
    shutil.copytree(base / "latents", tmp_path / "latents")
    (tmp_path / "latents/manifest.json").write_text(json.dumps(changed))
    assert start.normalization(load_manifest(tmp_path / "latents")) == manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dit": DiTSettings(width=64, depth=2, heads=2)}, r"has width=32, ldm\.dit 64: leave ldm\.dit out"),
        ({"unet": SMALL_UNET}, r"is a DiT: leave ldm\.unet out"),
        ({"conditioning": ConditioningSettings(kind="none")}, r"has text_width=16, but .* need None"),
        ({"conditioning": ConditioningSettings(first_frame=0.5)}, r"has first_frame=False, but .* need True"),
        (
            {"objective": ObjectiveSettings(prediction="v")},
            r"trained with ldm\.objective\.prediction='flow', found",
        ),
        ({"init_from": "nowhere"}, r"ldm\.init_from='nowhere' holds no trained network"),
    ],
)
def test_a_base_of_another_kind_than_the_settings_is_refused(base, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        fine_tune(base, tmp_path / "ldm", **changes)
    assert not (tmp_path / "ldm").exists()


@pytest.mark.parametrize(("key", "part"), [("vae_sha256", "another VAE"), ("text_sha256", "another text encoder")])
def test_a_base_of_other_latents_or_texts_is_refused(base, tmp_path, key, part):
    shutil.copytree(base / "ldm", tmp_path / "ldm", ignore=shutil.ignore_patterns("checkpoints"))
    record = json.loads((tmp_path / "ldm/trained_on.json").read_text()) | {key: "0" * 64}
    (tmp_path / "ldm/trained_on.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=rf"{part}: its {key} is 0{{16}}"):
        fine_tune(base, tmp_path / "new", init_from=str(tmp_path))


def test_a_lora_without_its_base_or_with_another_is_refused(base, adapted, tmp_path):
    shutil.copytree(adapted, tmp_path / "run/ldm", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(InputError, match=r"holds a LoRA of the network in .*, which is not there any more"):
        load_network(tmp_path / "run/ldm")
    record = tmp_path / "run/ldm/trained_on.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"base": "../../base"}))
    train(base, tmp_path / "base", settings(steps=1))
    with pytest.raises(InputError, match=r"holds a LoRA of another network than that in .*base: its base_sha256 is"):
        load_network(tmp_path / "run/ldm")


def test_a_lora_needs_a_base():
    with pytest.raises(ValueError, match="lora is an adapter of a trained network: name it in init_from"):
        settings(lora=LORA)
