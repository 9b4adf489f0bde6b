"""A VAE is called as diffusers' autoencoders are: `forward`, `decode`, slicing."""

import inspect

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from small import SMALL, relative_error
from small_adapters import ADAPTED, make_adapted

from odvae import ODVAE
from odvae.per_frame import PerFrameVAE

OWN = ("ODVAE", "PerFrameVAE")


def make_vae(name: str):
    torch.manual_seed(0)
    if name == "ODVAE":
        return ODVAE(**SMALL).eval()
    if name == "PerFrameVAE":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        return PerFrameVAE(**SMALL, **blocks).eval()
    return make_adapted(name)


def clip(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(params=[*OWN, *ADAPTED])
def any_vae(request):
    return make_vae(request.param).requires_grad_(False)


def test_the_arguments_are_those_of_diffusers_autoencoder(any_vae):
    theirs = inspect.signature(diffusers.AutoencoderKL.forward).parameters
    assert list(inspect.signature(any_vae.forward).parameters) == [name for name in theirs if name != "self"]


def test_forward_reconstructs_the_posteriors_mean(any_vae):
    output = any_vae(sample=clip())
    assert isinstance(output, DecoderOutput)
    assert torch.equal(output.sample, any_vae.decode(any_vae.encode(clip()).latent_dist.mode()).sample)
    (as_tuple,) = any_vae(clip(), return_dict=False)
    assert torch.equal(as_tuple, output.sample)


def test_forward_samples_the_posterior_with_the_generator(any_vae):
    first, again, other = (
        any_vae(clip(), sample_posterior=True, generator=torch.Generator().manual_seed(seed)).sample
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_decode_takes_a_generator_as_pipelines_pass_one(any_vae):
    latents = any_vae.encode(clip()).latent_dist.mean
    (video,) = any_vae.decode(latents, return_dict=False, generator=torch.Generator())
    assert torch.equal(video, any_vae.decode(latents).sample)


def test_slicing_computes_the_videos_of_a_batch_one_by_one(any_vae):
    latents = any_vae.encode(clip()).latent_dist.mean
    video = any_vae.decode(latents).sample
    any_vae.enable_slicing()
    assert relative_error(any_vae.encode(clip()).latent_dist.mean, latents) < 1e-5
    assert relative_error(any_vae.decode(latents).sample, video) < 1e-5
    any_vae.disable_slicing()
    assert torch.equal(any_vae.decode(latents).sample, video)


@torch.no_grad()
def test_a_sliced_batch_goes_through_the_network_a_video_at_a_time(monkeypatch):
    vae, batches = make_vae("ODVAE"), []
    vae.enable_slicing()
    vae.encoder.register_forward_pre_hook(lambda _, arguments: batches.append(len(arguments[0])))
    vae(clip(batch=3))
    assert batches == [1, 1, 1]


@pytest.mark.parametrize("name", OWN)
def test_slices_have_gradients(name):
    vae, video = make_vae(name), clip()
    gradients = []
    for slicing in (False, True):
        vae.use_slicing = slicing
        vae.zero_grad()
        vae(video).sample.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters() if p.grad is not None]))
    assert relative_error(*gradients) < 1e-4
