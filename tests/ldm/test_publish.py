"""Publishing: what is uploaded of each kind of folder, with which card, and what is refused; on a hub of our own."""

import json
import shutil

import huggingface_hub.constants
import pytest
import yaml
from hub_server import serve_hub
from huggingface_hub import HfApi
from small_pipeline import make_components, make_pipeline

from ldm import TextToVideoPipeline
from ldm.latents.latent_set import open_latents
from ldm.latents.manifest import load_manifest
from ldm.publish import publish
from odvae import ODVAE
from odvae.packing.packing import pack_folder
from odvae.running.errors import InputError
from odvae.shards.tars import index_shards, list_shards
from odvae.shards.unfinished import UNFINISHED


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serve_hub() as hub:
        yield hub


def downloaded(hub, kind, name, folder):
    for path, content in hub.repos[kind, name].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def test_of_a_run_the_vae_is_published_with_its_scores_and_without_its_checkpoints(hub, vae, tmp_path):
    folder = tmp_path / "run/vae"
    vae.save_pretrained(folder)
    for name in ("checkpoints/step_00000001/model.safetensors", "metrics.jsonl", "image_vae/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "experiment.yaml").write_text("vae: {}\n")
    (folder / "stage.json").write_text(json.dumps({"command": "/home/me/pipelines/train_vae.py seed=1"}))
    (tmp_path / "run/report").mkdir()
    score = {"psnr": 31.25, "ssim": 0.9, "protocol": {"clips": "64"}, "command": "/home/me/evaluate_vae.py"}
    (tmp_path / "run/report/report.json").write_text(json.dumps({"reconstruction": score}))
    assert publish(folder, "me/vae", private=True, api=hub.client()).endswith("/me/vae")
    assert hub.private == {"me/vae"}
    found = downloaded(hub, "model", "me/vae", tmp_path / "found")
    assert hub.repos["model", "me/vae"].keys() == {
        "README.md", "config.json", "diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    card = (found / "README.md").read_text()
    assert "| reconstruction PSNR, dB | 31.25 |" in card
    assert "- reconstruction: clips: 64. Measured by `evaluate_vae.py`." in card
    assert "`train_vae.py seed=1`" in card
    assert 'ODVAE.from_pretrained("me/vae")' in card
    assert ODVAE.from_pretrained(found).config.latent_channels == vae.config.latent_channels


def test_a_pipeline_is_published_whole_and_its_card_names_the_repository(hub, tmp_path):
    pipeline = make_pipeline(make_components())
    card = '---\npipeline_tag: other\n---\n# {0}\n\npipeline = TextToVideoPipeline.from_pretrained("{0}")\n'
    pipeline.register_to_config(model_card=card.format("pipeline"))  # as of `--out pipeline`
    pipeline.save_pretrained(tmp_path / "out")
    publish(tmp_path / "out", "me/video", api=hub.client())
    found = downloaded(hub, "model", "me/video", tmp_path / "found")
    assert (found / "README.md").read_text() == card.format("me/video")
    TextToVideoPipeline.from_pretrained(found)


def test_a_card_of_ones_own_is_published_as_it_is_and_a_pipeline_needs_one(hub, tmp_path):
    make_pipeline(make_components()).save_pretrained(tmp_path / "out")
    with pytest.raises(InputError, match=r"out has no README\.md: export the run with odvae-export"):
        publish(tmp_path / "out", "me/video", api=hub.client())
    (tmp_path / "out/README.md").write_text("# Circles\n\nCircles that move.\n")
    publish(tmp_path / "out", "me/video", api=hub.client())
    assert hub.repos["model", "me/video"]["README.md"] == b"# Circles\n\nCircles that move.\n"


def test_shards_and_latents_are_published_as_data_sets_that_can_be_read(hub, ldm_run, tmp_path):
    pack_folder(ldm_run / "videos", tmp_path / "shards")
    publish(tmp_path / "shards", "me/shards", api=hub.client())
    publish(ldm_run / "latents", "me/latents", api=hub.client())
    shards = downloaded(hub, "dataset", "me/shards", tmp_path / "found/shards")
    assert len(index_shards(list_shards(shards, "?"))) == 16
    latents = downloaded(hub, "dataset", "me/latents", tmp_path / "found/latents")
    manifest = load_manifest(latents)
    assert len(open_latents(latents, manifest).train) == len(manifest.buckets)
    for folder, name in ((shards, "me/shards"), (latents, "me/latents")):
        card = (folder / "README.md").read_text()
        assert yaml.safe_load(card.split("---\n")[1])["configs"][0]["data_files"] == "*.tar"
        assert f'load_dataset("{name}"' in card
        assert not [path for path in folder.rglob("*") if path.name.startswith(".") or path.name == "stage.json"]


def test_what_is_incomplete_or_something_else_is_refused_before_anything_is_uploaded(hub, ldm_run, tmp_path):
    (tmp_path / "empty").mkdir()
    shutil.copytree(ldm_run / "packed", tmp_path / "shards")
    (tmp_path / "shards" / UNFINISHED).write_text("{}")
    shutil.copytree(ldm_run / "latents", tmp_path / "latents")
    (tmp_path / "latents/00000.tar").unlink()
    shutil.copytree(ldm_run / "shards", tmp_path / "others")  # packed by another program
    (tmp_path / "ldm").mkdir()
    for name in ("config.json", "trained_on.json"):
        (tmp_path / "ldm" / name).write_text("{}")
    (tmp_path / "run/vae").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name, message in (
        ("empty", "no folder of a pipeline, a VAE, latents or shards"),
        ("shards", "is not finished"),
        ("latents", "is missing, but the manifest lists it"),
        ("others", r"neither a README\.md nor a packing\.json"),
        ("ldm", "ldm is a network, which needs its VAE: export the run"),
        ("run", "no folder of a pipeline, a VAE, latents or shards; publish one of its folders: vae$"),
        ("file", "is a file, not a folder"),
        ("nothing", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            publish(tmp_path / name, "me/x", api=hub.client())
    assert not hub.repos


def test_a_token_that_may_not_write_and_a_hub_that_is_not_there_are_said(hub, vae, tmp_path):
    vae.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"does not take me/vae.*hf auth login"):
        publish(tmp_path, "me/vae", api=hub.client("other"))
    with pytest.raises(InputError, match="cannot be a repository's name"):
        publish(tmp_path, "me/vae/x", api=hub.client())
    with pytest.raises(InputError, match="cannot be reached"):
        publish(tmp_path, "me/vae", api=HfApi(endpoint="http://127.0.0.1:9", token="x"))
