"""Alignment of a DiT with an image encoder: targets known by hand, local encoders, exact resume, what is exported."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from scripts import on_ranks
from small_encoders import PREPROCESSING, small_convnext, small_timm, small_vit
from small_ldm import SMALL_DIT, SMALL_UNET, WEIGHTS, settings, train
from transformers import ViTModel

from ldm.experiment import Experiment
from ldm.networks.conditioning import Condition
from ldm.networks.dit import DiT
from ldm.training.alignment import (
    AlignedNetwork,
    check_not_sharded,
    cosine_distance,
    features_of_tokens,
    frames_at_latents,
)
from ldm.training.image_encoders import load_image_encoder
from ldm.training.settings import AlignmentSettings, LDMSettings
from odvae.running.errors import InputError
from odvae.running.files import read_json_lines
from odvae.running.settings import load_settings


def test_the_distance_is_one_minus_the_cosine_of_each_token():
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [3.0, 3.0]]])
    y = torch.tensor([[[5.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    expected = [(0 + 2) / 2, (1 + 1 - 0.5**0.5) / 2]
    assert cosine_distance(x, y).tolist() == pytest.approx(expected)


def test_features_meet_the_tokens_of_their_time_and_place():
    """Four latent frames in tokens of two frames; each place of the grid keeps its own value."""
    values = torch.arange(4 * 2 * 3.0).view(1, 4, 1, 2, 3)
    tokens = features_of_tokens(values, (2, 2, 3))  # (1, 12, 1)
    means = (values[0, ::2] + values[0, 1::2]) / 2  # (2, 1, 2, 3)
    assert torch.equal(tokens.view(2, 1, 2, 3), means)
    ramp = torch.arange(8.0).expand(1, 1, 1, 8, 8)
    halved = features_of_tokens(ramp, (1, 4, 4)).view(4, 4)
    assert torch.allclose(halved[:, 1:3], torch.tensor([2.5, 4.5]).expand(4, 2), atol=1e-5)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_frames_are_those_with_which_latent_frames_end(ratio):
    class Counting:
        temporal_compression_ratio = ratio

        def decode(self, latents):
            frames = ratio * (latents.shape[2] - 1) + 1
            video = torch.arange(frames).view(1, 1, -1, 1, 1).expand(1, 3, -1, 4, 4) / 100
            return type("Output", (), {"sample": video})

    frames = frames_at_latents(Counting(), torch.zeros(1, 4, 3, 1, 1))
    assert torch.allclose(frames[0, 0, :, 0, 0] * 100, torch.tensor([0.0, ratio, 2.0 * ratio]))


def test_a_transformers_encoder_gives_its_patches_without_the_class_token(tmp_path):
    encoder = load_image_encoder(str(small_vit(tmp_path / "vit")))
    frames = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(PREPROCESSING[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    with torch.no_grad():
        hidden = ViTModel.from_pretrained(tmp_path / "vit").eval()((frames / 2 + 0.5 - mean) / std).last_hidden_state
    found = encoder(frames)
    assert found.shape == (2, encoder.dimension, 2, 2) == (2, 24, 2, 2)
    assert torch.allclose(found.flatten(2).transpose(1, 2), hidden[:, 1:], atol=1e-5)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert load_image_encoder(str(tmp_path / "vit"), image_size=32)(frames).shape == (2, 24, 4, 4)


def test_other_kinds_of_encoders_give_grids_too(tmp_path):
    frames = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    timm = load_image_encoder(str(small_timm(tmp_path / "timm")))
    assert timm(frames).shape == (2, timm.dimension, 10, 10)
    assert load_image_encoder(str(tmp_path / "timm"), image_size=32)(frames).shape == (2, timm.dimension, 2, 2)
    convolutional = load_image_encoder(str(small_convnext(tmp_path / "convnext")))
    assert convolutional(frames).shape == (2, 16, 4, 4)


def test_what_cannot_be_loaded_is_named(tmp_path):
    folder = small_vit(tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"ldm\.alignment\.encoder=.*preprocessor_config\.json must have image_mean"):
        load_image_encoder(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no \*\.safetensors"):
        load_image_encoder(str(folder))
    with pytest.raises(InputError, match=r"ldm\.alignment\.encoder='nobody/nothing' cannot be loaded"):
        load_image_encoder("nobody/nothing")


def aligned(block=1, **dit):
    torch.manual_seed(0)
    network = DiT(width=32, depth=2, heads=2, text_width=None, sample_size=(3, 4, 4), **dit)
    for parameter in network.parameters():  # adaLN-Zero's blocks are identities at first
        parameter.data += 0.05 * torch.randn_like(parameter)
    return AlignedNetwork(network, AlignmentSettings(encoder="x", block=block, hidden_width=16), 5)


def test_the_prediction_is_the_networks_and_features_are_those_after_the_block():
    first, last = aligned(block=1), aligned(block=2)
    x, time = torch.randn(2, 4, 3, 4, 4), torch.tensor([0.3, 0.8])
    prediction, features = first(x, time, Condition())
    assert features.shape == (2, 3 * 2 * 2, 5)
    assert torch.equal(prediction, first.network(x, time, Condition()).sample)
    assert not torch.allclose(features, last(x, time, Condition())[1])
    features.sum().backward()
    blocks = first.network.blocks
    assert blocks[0].mlp.fc1.weight.grad.abs().sum() > 0
    assert blocks[1].mlp.fc1.weight.grad is None  # later blocks are not aligned


def test_gradient_checkpointing_changes_no_gradient_of_the_alignment():
    gradients = []
    for checkpointing in (False, True):
        module = aligned()
        if checkpointing:
            module.network.enable_gradient_checkpointing()
        prediction, features = module(torch.ones(1, 4, 3, 4, 4), torch.tensor([0.5]), Condition())
        (prediction.square().sum() + F.normalize(features, dim=-1).sum()).backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.fixture(scope="module")
def alignment(tmp_path_factory):
    folder = small_vit(tmp_path_factory.mktemp("encoder") / "vit")
    return {"encoder": str(folder), "block": 1, "hidden_width": 16, "weight": 5.0}


def test_an_aligned_run_resumes_exactly_and_exports_the_network_alone(ldm_run, tmp_path, alignment):
    chosen = settings(optimizer="adamw", alignment=alignment)
    whole = train(ldm_run, tmp_path / "ldm", chosen)
    rows = read_json_lines(tmp_path / "ldm/metrics.jsonl")
    assert all(0 < row["alignment"] < 2 for row in rows if "loss" in row)
    assert not any("projection" in name for name in whole)
    saved = load_file(tmp_path / "ldm/checkpoints/step_00000004/model.safetensors")
    assert sum(name.startswith("projection.") for name in saved) == 6
    shutil.rmtree(tmp_path / "ldm/checkpoints/step_00000004")
    (tmp_path / "ldm/stage.json").unlink()
    (tmp_path / "ldm" / WEIGHTS).unlink()
    again = train(ldm_run, tmp_path / "ldm", chosen)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    without = train(ldm_run, tmp_path / "without", settings(optimizer="adamw"))
    assert without.keys() == whole.keys()
    assert any(not torch.equal(without[name], whole[name]) for name in whole)


def test_a_run_does_not_resume_with_another_encoder(ldm_run, tmp_path, alignment):
    encoder = tmp_path / "vit"
    shutil.copytree(alignment["encoder"], encoder)
    chosen = settings(steps=2, alignment={**alignment, "encoder": str(encoder)})
    train(ldm_run, tmp_path / "ldm", chosen)
    changed = {**PREPROCESSING, "image_mean": [0.1, 0.1, 0.1]}
    (encoder / "preprocessor_config.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="alignment_sha256"):
        train(ldm_run, tmp_path / "ldm", settings(steps=4, alignment={**alignment, "encoder": str(encoder)}))


def test_the_distance_to_the_encoder_falls(ldm_run, tmp_path, alignment):
    chosen = settings(14, "adamw", alignment=alignment, optimization={"learning_rate": 1e-2})
    train(ldm_run, tmp_path / "ldm", chosen)
    distances = [row["alignment"] for row in read_json_lines(tmp_path / "ldm/metrics.jsonl") if "alignment" in row]
    assert sum(distances[-3:]) < 0.8 * sum(distances[:3])


def test_only_a_dit_with_that_block_can_be_aligned(alignment):
    with pytest.raises(ValueError, match=r"alignment\.block=3: the DiT has 2 blocks"):
        LDMSettings(dit=SMALL_DIT, alignment={**alignment, "block": 3})
    with pytest.raises(ValueError, match=r"alignment is for ldm\.dit"):
        LDMSettings(unet=SMALL_UNET, alignment=alignment)
    with pytest.raises(InputError, match=r"Linear has no method predict_with_features"):
        AlignedNetwork(torch.nn.Linear(2, 2), AlignmentSettings(**alignment), 5)


CONFIG = """
run: {run}
data: {{frames: 9, height: 32, width: 32, held_out: 0.25, workers: 0}}
ldm:
  dit: {{width: 32, depth: 2, heads: 2}}
  alignment: {{encoder: {encoder}, block: 1, hidden_width: 16}}
  optimization: {{steps: 3, batch_size: 4, optimizer: sgd, learning_rate: 2e-2, checkpoint_every: 3, log_every: 3}}
"""


@pytest.mark.slow
def test_two_ranks_align_as_one_process(ldm_run, tmp_path, alignment):
    for name in ("vae", "latents"):
        shutil.copytree(ldm_run / name, tmp_path / name)
    (tmp_path / "config.yaml").write_text(CONFIG.format(run=tmp_path, encoder=alignment["encoder"]))
    expected = train(tmp_path, tmp_path / "one", load_settings(Experiment, tmp_path / "config.yaml").ldm)
    halves = ["--config", str(tmp_path / "config.yaml"), "ldm.optimization.batch_size=2"]
    on_ranks(2, "pipelines/train_ldm.py", *halves)
    found = load_file(tmp_path / "ldm" / WEIGHTS)
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < 1e-6


def test_sharded_networks_are_refused(monkeypatch):
    accelerator = Accelerator(cpu=True)
    check_not_sharded(accelerator)
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    with pytest.raises(InputError, match=r"ldm\.alignment is not supported under FSDP2"):
        check_not_sharded(accelerator)
