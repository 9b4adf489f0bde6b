"""Pipelines saved, loaded by either class, published; what is missing or incomplete in a folder is named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from small import REPOSITORY
from small_pipeline import PROMPTS, generate, pipeline_of, quiet

from ldm import TextToVideoPipeline
from odvae.running.errors import InputError
from odvae.running.hashing import weights_fingerprint


@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder", "tokenizer", "scheduler"])
def test_a_component_that_is_missing_or_incomplete_is_named_with_its_file(pipeline, tmp_path, part):
    pipeline.save_pretrained(tmp_path)
    config = next(path for path in sorted((tmp_path / part).glob("*config.json")))
    text = config.read_text()
    config.unlink()
    with pytest.raises(InputError, match=f"missing parts: {part}/{config.name}; export the run again"):
        TextToVideoPipeline.from_pretrained(tmp_path)
    config.write_text(text[:-10])
    with pytest.raises(InputError, match=rf"{part}/{config.name} is not valid JSON"):
        TextToVideoPipeline.from_pretrained(tmp_path)
    config.write_text(text)
    if weights := sorted((tmp_path / part).glob("*.safetensors")):
        weights[0].write_bytes(weights[0].read_bytes()[:-10])
        with pytest.raises(InputError, match=rf"{part}/{weights[0].name} is truncated"):
            TextToVideoPipeline.from_pretrained(tmp_path)


def test_saved_and_loaded_by_either_class_it_gives_bit_identical_videos(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    expected = generate(pipeline, PROMPTS, [0, 1, 2])
    again = quiet(TextToVideoPipeline.from_pretrained(tmp_path))
    assert np.array_equal(generate(again, PROMPTS, [0, 1, 2]), expected)
    foreign = quiet(DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True))
    assert isinstance(foreign, TextToVideoPipeline)
    assert np.array_equal(generate(foreign, PROMPTS, [0, 1, 2]), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loading",
    [
        "from ldm import TextToVideoPipeline as Pipeline; options = {}",
        "from diffusers import DiffusionPipeline as Pipeline; options = {'trust_remote_code': True}",
    ],
)
def test_a_process_that_has_imported_nothing_else_loads_it(pipeline, tmp_path, loading):
    """diffusers takes a part's class only from a module that is imported, as all are in the process of the tests."""
    pipeline.save_pretrained(tmp_path)
    code = f"{loading}; print(type(Pipeline.from_pretrained({str(tmp_path)!r}, **options).vae).__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("ODVAE"), done.stderr


def test_a_text_encoder_stored_as_a_reference_is_loaded_when_needed_and_must_be_unchanged(vae, text, tmp_path):
    full = pipeline_of(vae, text)
    bare = TextToVideoPipeline(
        vae, full.transformer, full.scheduler, None, None, text.name, weights_fingerprint(text.model)
    )
    bare.save_pretrained(tmp_path)
    assert not (tmp_path / "text_encoder").exists()
    again = quiet(TextToVideoPipeline.from_pretrained(tmp_path))
    assert np.array_equal(generate(again, PROMPTS[0], [0]), generate(full, PROMPTS[0], [0]))
    again = TextToVideoPipeline.from_pretrained(tmp_path, text_sha256="0" * 64)
    with pytest.raises(InputError, match="is not the text encoder the network was trained with"):
        generate(again, PROMPTS[0], [0])
    again = TextToVideoPipeline.from_pretrained(tmp_path, text_encoder_name=None)
    with pytest.raises(InputError, match="neither a text encoder nor the name of one"):
        generate(again, PROMPTS[0], [0])


def test_a_published_pipeline_has_a_model_card_and_the_file_of_its_class(pipeline, monkeypatch):
    uploaded = {}

    def upload(repo_id, folder_path, **_):
        uploaded.update({str(p.relative_to(folder_path)): p.read_text(errors="replace")
                         for p in Path(folder_path).rglob("*") if p.is_file()})  # fmt: skip

    class Repository:
        repo_id = "me/videos"

    monkeypatch.setattr("diffusers.utils.hub_utils.create_repo", lambda *_, **__: Repository)
    monkeypatch.setattr("diffusers.utils.hub_utils.upload_folder", upload)
    monkeypatch.setattr("diffusers.utils.hub_utils.load_or_create_model_card", lambda *_, **__: ModelCard("a card"))
    monkeypatch.setattr("diffusers.utils.hub_utils.populate_model_card", lambda card: card)
    pipeline.register_to_config(model_card="# What this is\n")
    try:
        pipeline.push_to_hub("me/videos")
    finally:
        pipeline.register_to_config(model_card=None)
    assert uploaded["README.md"] == "# What this is\n"
    assert "from ldm.pipeline import TextToVideoPipeline" in uploaded["pipeline.py"]
    assert json.loads(uploaded["model_index.json"])["_class_name"] == ["pipeline", "TextToVideoPipeline"]
    assert "transformer/config.json" in uploaded
