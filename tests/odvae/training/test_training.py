"""Common code of both trainings (nonfinite steps, learning rate, optimizers), and the VAE's initial weights."""

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from odvae import ODVAE
from odvae.clips.samplers import BatchPlan
from odvae.initial_weights import load_image_vae, load_video_vae
from odvae.running.errors import DivergenceError, InputError, readable_errors
from odvae.running.resume_check import field_may_change
from odvae.settings import ModelSettings, VAESettings, VideoPhaseSettings
from odvae.training.optimization import (
    clipped_step,
    learning_rate_at,
    make_accelerator,
    make_optimizer,
    unused_launch_options,
)
from odvae.training.settings import OptimizationSettings
from odvae.training.state import TrainingState
from odvae.vae_batches import Batches


def make_state(folder, **settings):
    torch.manual_seed(0)
    optimization = OptimizationSettings(steps=10, learning_rate=0.1, **settings)
    state = TrainingState(nn.Linear(3, 1), optimization, folder, "none", "test")
    state.resume()
    return state


def train_step(state, step, value):
    loss = state.model(torch.full((2, 3), value)).mean()
    state.accelerator.backward(loss)
    state.apply_gradients(step, {"loss": loss.detach()})


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "nadamuon"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, optimizer):
    """The same weights as without that step: moments and step counts are untouched too."""
    weights = []
    for values in ((1.0, float("nan"), 2.0), (1.0, 2.0)):
        state = make_state(tmp_path / str(len(values)), optimizer=optimizer)
        for step, value in enumerate(values, start=1):
            train_step(state, step, value)
        weights.append(state.network.weight.detach().clone())
        assert state.guard.report(step) == len(values) - 2
    assert torch.equal(*weights)


def test_gradient_clipping_is_the_same_for_fused_and_other_optimizers():
    weights = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
        for length in (100.0, 0.5):
            layer.weight.grad, layer.bias.grad = torch.tensor([[length, 0.0, 0.0]]), torch.zeros(1)
            assert clipped_step(optimizer, layer.parameters(), max_norm=1.0) == length
        moment = optimizer.state[layer.weight]["exp_avg"][0, 0]
        assert moment == pytest.approx(0.9 * 0.1 * 1.0 + 0.1 * 0.5, rel=1e-4)
        weights.append(layer.weight.detach().clone())
    assert torch.allclose(*weights, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_torchs_optimizers_are_made_as_timms_factory_makes_them(name, weight_decay):
    model = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 1))
    model[1].weight.requires_grad_(False)
    settings = OptimizationSettings(optimizer=name, weight_decay=weight_decay, betas=(0.8, 0.9))
    ours = make_optimizer(model, settings)
    timms = create_optimizer_v2(model, name, settings.learning_rate, weight_decay, fused=True, betas=settings.betas)
    assert type(ours) is type(timms)
    assert len(ours.param_groups) == (2 if weight_decay else 1)
    for a, b in zip(ours.param_groups, timms.param_groups, strict=True):
        assert [id(parameter) for parameter in a.pop("params")] == [id(parameter) for parameter in b.pop("params")]
        assert a == b


def test_an_unknown_optimizer_is_an_error_that_names_it():
    for optimizer in ("no_such", "lookahead_no_such"):
        with pytest.raises(InputError, match=optimizer):
            make_optimizer(nn.Linear(2, 2), OptimizationSettings(optimizer=optimizer))


def test_too_many_nonfinite_steps_in_a_row_end_the_run_and_name_the_values(tmp_path):
    state = make_state(tmp_path, max_nonfinite_steps=2)
    for step, value in enumerate((float("inf"), float("inf"), 1.0, float("nan"), float("nan")), start=1):
        train_step(state, step, value)
        assert state.guard.report(step) == min(step, 2) if step <= 3 else step - 1
    train_step(state, 6, float("nan"))
    with pytest.raises(DivergenceError, match=r"step 6: the last 3 steps were skipped.*loss, gradient_norm"):
        state.guard.report(6)


def test_a_diverged_training_ends_with_advice_that_a_user_can_follow_and_no_traceback(tmp_path, capsys):
    """Its settings cannot change on resume, so it must be a new run; the checkpoint is still there."""
    state = make_state(tmp_path, max_nonfinite_steps=0)
    train_step(state, 1, 1.0)
    state.checkpoints.save(1)
    train_step(state, 2, float("nan"))
    with pytest.raises(SystemExit) as end, readable_errors():
        state.guard.report(2)
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: step 2: the last 1 steps were skipped")
    new_run, _, keys = message.partition("start a new run (run=...) with ")
    assert "The last checkpoint is kept" in new_run
    for key in ("learning_rate", "grad_clip", "precision"):
        assert key in keys
        assert not field_may_change(OptimizationSettings.model_fields[key])
    again = TrainingState(nn.Linear(3, 1), state.optimization, tmp_path, "none", "test")
    assert again.resume() == 1


def test_the_count_of_skipped_steps_survives_a_resume(tmp_path):
    state = make_state(tmp_path)
    train_step(state, 1, float("nan"))
    state.checkpoints.save(1)
    again = TrainingState(nn.Linear(3, 1), state.optimization, tmp_path, "none", "test")
    assert again.resume() == 1
    assert again.guard.report(1) == 1


def test_single_frames_of_a_step_are_divided_evenly_or_refused():
    phase = VideoPhaseSettings(image_every=2, images_per_step=8, gradient_accumulation_steps=2)
    plan = BatchPlan(8, gradient_accumulation_steps=2, ranks=3)
    with pytest.raises(InputError, match=r"images_per_step=8 is not divisible by 3 ranks times 2 micro-steps"):
        next(Batches(None, phase, plan, torch.device("cpu"), seed=0).from_step(0))


def test_the_learning_rate_warms_up_stays_constant_and_decays():
    settings = OptimizationSettings(
        steps=100, learning_rate=1.0, warmup_steps=10, lr_schedule="cosine", lr_decay_start=0.5
    )
    rates = [learning_rate_at(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def make_run_settings(**vae):
    sizes = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return VAESettings(model=ModelSettings(**sizes), **vae)


def test_training_starts_from_an_image_vaes_folder_or_a_pipelines(tmp_path, image_vae):
    image_vae.save_pretrained(tmp_path / "alone")
    image_vae.save_pretrained(tmp_path / "pipeline/vae")
    settings = make_run_settings(init_image_vae="unused", image_phase=None)
    for name in ("alone", "pipeline"):
        loaded = load_image_vae(str(tmp_path / name), settings.model)
        assert torch.equal(loaded.decoder.conv_out.weight, image_vae.decoder.conv_out.weight)
    image_vae.save_pretrained(tmp_path / "half", variant="fp16")
    loaded = load_image_vae(str(tmp_path / "half"), settings.model)
    assert torch.equal(loaded.decoder.conv_out.weight, image_vae.decoder.conv_out.weight)
    with pytest.raises(InputError, match=r"latent_channels=8, but the image VAE .* has 4"):
        load_image_vae(str(tmp_path / "alone"), settings.model.model_copy(update={"latent_channels": 8}))
    with pytest.raises(InputError, match="cannot be loaded as an AutoencoderKL"):
        load_image_vae(str(tmp_path), settings.model)


def test_a_second_phase_begins_from_another_odvae_as_it_was_trained_unless_the_settings_say_otherwise(tmp_path, vae):
    released = {"norm": "clip", "temporal_upsample": "trilinear"}
    sizes = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    ODVAE(**{**sizes, **released}).save_pretrained(tmp_path)
    model = make_run_settings(init_from="x", image_phase=None).model
    loaded = load_video_vae(str(tmp_path), model)
    assert {key: loaded.config[key] for key in released} == released
    causal = load_video_vae(str(tmp_path), model.model_copy(update={"norm": "frame"}))
    assert (causal.config.norm, causal.config.temporal_upsample) == ("frame", "trilinear")
    with pytest.raises(InputError, match=r"variant=1, but the OD-VAE .* has 4"):
        load_video_vae(str(tmp_path), model.model_copy(update={"variant": 1}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init": "random"}, "set to null: image_phase"),
        ({"init_image_vae": "x"}, "exactly one of init_image_vae, init_from, image_phase"),
        ({"image_phase": None}, "found none"),
        ({"init_from": "x", "image_phase": None, "video_phase": None}, "trains only an image VAE"),
        ({"init": "random", "image_phase": None, "video_phase": None}, "nothing to train"),
    ],
)
def test_impossible_initial_weights_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        make_run_settings(**given)


def test_options_of_accelerate_launch_that_the_settings_overrule_are_named(monkeypatch):
    assert unused_launch_options("fp32") == []
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    precision, accumulation = unused_launch_options("fp32")
    assert precision == "accelerate launch: mixed precision bf16 is not used; `precision` is, fp32"
    assert "over 4 steps is not used; the setting `gradient_accumulation_steps` is" in accumulation
    assert unused_launch_options("bf16") == [accumulation]


def test_accumulation_that_only_the_launch_asks_for_does_not_change_gradients(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.nn.Parameter(torch.ones(()))
    make_accelerator("fp32", "none", tmp_path, "x").backward(2 * weight)
    assert weight.grad == 2
