"""Trainings of a VAE with regularizers: what is off changes nothing; a resumed run has the same weights."""

import shutil

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from small_vae import WEIGHTS, train, vae_settings

from odvae.running.errors import InputError
from odvae.settings import VAESettings

MASKING = {"fractions": [0.0, 0.5], "probabilities": [0.5, 0.5]}
ALL = {"local_correlation": {"weight": 1.0}, "latent_masking": MASKING}
ALL |= {"equivariance": {"probability": 0.5, "min_scale": 1.0}}  # 32 px are the least that LPIPS takes
GAN = {"width": 8, "start_step": 1, "lecam": 0.01}


@pytest.fixture(scope="module")
def plain(ldm_run, tmp_path_factory):
    """Weights and rows of a training without regularizers, with the GAN."""
    return train(ldm_run / "shards", tmp_path_factory.mktemp("plain") / "vae", vae_settings(loss={"gan": GAN}))


@pytest.fixture(scope="module")
def perceptual(tmp_path_factory):
    """LPIPS with random weights of its smallest backbone, as a setting."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    save_file(torchvision.models.squeezenet1_1(weights=None).state_dict(), file)
    return {"network": "squeeze", "weights": str(file)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_regularizers_that_are_all_off_change_no_bit_and_log_nothing(ldm_run, tmp_path, plain):
    weights, rows = train(ldm_run / "shards", tmp_path / "vae", vae_settings(loss={"gan": GAN}, regularizers={}))
    assert same(weights, plain[0])
    assert rows == plain[1]


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(ldm_run, tmp_path, plain, perceptual):
    """With all regularizers, GAN and LPIPS; the VAE that is saved has the tensors of one trained without them."""
    settings = vae_settings(loss={"gan": GAN, "lpips": perceptual}, regularizers=ALL)
    whole, rows = train(ldm_run / "shards", tmp_path / "vae", settings)
    assert whole.keys() == plain[0].keys()
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"vae/checkpoints/step_{step:08d}")
    (tmp_path / "vae" / WEIGHTS).unlink()
    (tmp_path / "vae/stage.json").unlink()
    again, resumed = train(ldm_run / "shards", tmp_path / "vae", settings)
    assert same(again, whole)
    assert resumed == rows


def test_the_vector_of_masked_latents_is_trained_and_is_in_the_checkpoints_alone(ldm_run, tmp_path):
    weights, _ = train(ldm_run / "shards", tmp_path / "vae", vae_settings(regularizers={"latent_masking": MASKING}))
    saved = load_file(tmp_path / "vae/checkpoints/step_00000004/model.safetensors")
    assert saved["mask_vector"].abs().max() > 0
    assert {name.removeprefix("vae.") for name in saved.keys() - {"mask_vector"}} == weights.keys()


def test_scaled_and_turned_steps_train_with_the_gan(ldm_run, tmp_path):
    """Every step is transformed; local correlation and KL are of the video as it was encoded."""
    regularizers = {"equivariance": {"probability": 1.0}, "latent_masking": MASKING, "local_correlation": {}}
    weights, rows = train(
        ldm_run / "shards", tmp_path / "vae", vae_settings(loss={"gan": GAN}, regularizers=regularizers)
    )
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert [row["skipped_steps"] for row in rows if "skipped_steps" in row] == [0, 0, 0, 0]


def test_clips_that_lpips_could_not_take_once_scaled_are_refused(ldm_run, tmp_path, perceptual):
    settings = vae_settings(loss={"lpips": perceptual}, regularizers={"equivariance": {"min_scale": 0.5}})
    with pytest.raises(InputError, match=r"min_scale=0\.5 scales clips of 32x32 down to 16 pixels"):
        train(ldm_run / "shards", tmp_path / "vae", settings)


def test_compiled_blocks_and_changing_sizes_exclude_each_other():
    with pytest.raises(ValueError, match="equivariance changes the latents' size"):
        vae_settings(regularizers={"equivariance": {}}, compile=True)


def test_one_channel_has_nothing_to_correlate():
    given = {"regularizers": {"local_correlation": {}}, "model": {"latent_channels": 1}}
    with pytest.raises(ValueError, match="local_correlation needs at least two latent_channels"):
        VAESettings(**given)
