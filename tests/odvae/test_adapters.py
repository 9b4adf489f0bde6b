"""Adapters of diffusers' video VAEs: the same results, the same folders, special cases."""

from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from small_adapters import ADAPTED, make_adapted

from odvae.per_frame import PerFrameVAE
from odvae.running.errors import InputError
from odvae.video_vae import VideoVAE, compression_of, load_pretrained_vae, load_vae

RATIOS = {
    "AutoencoderKLWan": (4, 8),
    "AutoencoderKLCogVideoX": (4, 8),
    "AutoencoderKLHunyuanVideo": (4, 8),
    "AutoencoderKLLTXVideo": (8, 32),
}


@pytest.fixture(scope="module", params=ADAPTED)
def adapted(request):
    return make_adapted(request.param)


def original_of(adapted):
    """diffusers' own class with the same weights."""
    original = getattr(diffusers, type(adapted).__name__).from_config(adapted.config)
    original.load_state_dict(adapted.state_dict())
    return original.eval()


def clip_for(vae, k, seed=0, batch=1):
    r, s = compression_of(vae)
    shape = (batch, 3, r * k + 1, s, 2 * s)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_every_vae_has_the_protocol(adapted, vae, image_vae):
    frames = PerFrameVAE.from_config(image_vae.config)
    assert all(isinstance(one, VideoVAE) for one in (adapted, vae, frames))
    assert not isinstance(image_vae, VideoVAE)
    assert compression_of(adapted) == RATIOS[type(adapted).__name__]
    assert adapted.config.latent_channels == 4
    assert vae.streamable
    assert not adapted.streamable


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 6])
@torch.no_grad()
def test_it_encodes_and_decodes_as_diffusers_class_alone_does(adapted, k):
    original, video = original_of(adapted), clip_for(adapted, k)
    latents = adapted.encode(video).latent_dist
    assert latents.mean.shape == (1, 4, k + 1, 1, 2)
    assert torch.equal(latents.parameters, original.encode(video).latent_dist.parameters)
    decoded = adapted.decode(latents.mean).sample
    assert decoded.shape == video.shape
    expected = original.decode(latents.mean).sample
    if expected.shape == video.shape:
        assert torch.equal(decoded, expected)
    else:  # CogVideoX alone makes frames that were never there of an even number of latents
        assert type(adapted).__name__ == "AutoencoderKLCogVideoX"
        assert k % 2 == 1
    reconstruction, mean, _ = adapted.reconstruct(video)
    assert torch.equal(reconstruction, decoded)
    assert torch.equal(mean, latents.mean)


@torch.no_grad()
def test_an_even_number_of_cogvideox_latents_is_padded_with_the_last_one():
    vae = make_adapted("AutoencoderKLCogVideoX")
    latents = torch.randn(1, 4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    longer = vae.decode(torch.cat([latents, latents[:, :, -1:]], dim=2)).sample
    assert torch.equal(vae.decode(latents).sample, longer[:, :, :13])


@torch.no_grad()
def test_several_threads_encode_with_the_result_of_one(adapted):
    clips = [clip_for(adapted, 2, seed) for seed in range(6)]
    alone = [adapted.encode(clip).latent_dist.mean for clip in clips]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda clip: adapted.encode(clip).latent_dist.mean, clips))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@torch.no_grad()
def test_an_ltx_decoder_with_timestep_and_noise_injection_is_deterministic():
    vae = make_adapted("AutoencoderKLLTXVideo", timestep_conditioning=True, decoder_inject_noise=(True,) * 5)
    for name, parameter in vae.named_parameters():
        if "per_channel_scale" in name:  # how much noise; a new network adds none
            parameter.data.fill_(0.5)
    latents = torch.randn(2, 4, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    first = vae.decode(latents).sample
    follows = torch.rand(1)
    assert torch.equal(vae.decode(latents).sample, first)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), follows)  # no one else's random numbers are used up
    torch.manual_seed(4)
    assert not torch.equal(original_of(vae).decode(latents, torch.zeros(2)).sample, first)


def test_a_wan_2_2_vae_works_on_patches():
    sizes = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "is_residual": True}
    vae = make_adapted("AutoencoderKLWan", **sizes)
    assert compression_of(vae) == (4, 16)
    with torch.no_grad():
        reconstruction, mean, _ = vae.reconstruct(clip_for(vae, 1))
    assert mean.shape == (1, 4, 2, 1, 2)
    assert reconstruction.shape == (1, 3, 5, 16, 32)


def test_its_folder_can_be_loaded_with_the_adapter_and_with_diffusers(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "pipeline/vae")
    name = type(adapted).__name__
    theirs = getattr(diffusers, name).from_pretrained(tmp_path / "pipeline/vae")
    theirs.save_pretrained(tmp_path / "theirs")
    for vae in (
        load_vae(tmp_path / "theirs"),
        load_pretrained_vae(str(tmp_path / "theirs")),
        load_pretrained_vae(str(tmp_path / "pipeline")),
    ):
        assert type(vae) is type(adapted)
        assert not vae.training
        state = adapted.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in vae.state_dict().items())
    ours, original = ({key for key in one.config if not key.startswith("_")} for one in (adapted, theirs))
    assert ours - original == ({"latent_channels"} if "Wan" in name else set())
    assert original <= ours


def test_a_pretrained_image_vae_works_frame_by_frame(image_vae, tmp_path):
    image_vae.save_pretrained(tmp_path)
    vae = load_pretrained_vae(str(tmp_path))
    assert isinstance(vae, PerFrameVAE)
    assert compression_of(vae) == (1, 8)


@torch.no_grad()
def test_unsupported_inputs_are_errors(adapted):
    r, s = compression_of(adapted)
    with pytest.raises(InputError, match=rf"frames must be {r}k\+1, as the VAE compresses time by {r}; found {r}"):
        adapted.encode(torch.zeros(1, 3, r, s, s))
    with pytest.raises(InputError, match=rf"width must be a multiple of {s}, .*found {s + 4}"):
        adapted.encode(torch.zeros(1, 3, 1, s, s + 4))
    with pytest.raises(InputError, match=r"in \[-1, 1\]"):
        adapted.encode(torch.full((1, 3, 1, s, s), 255.0))
    with pytest.raises(InputError, match="latents must be"):
        adapted.decode(torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(InputError, match="needs the whole clip and cannot be streamed; use encode"):
        adapted.encode_stream([])
    with pytest.raises(InputError, match="needs the whole clip and cannot be streamed; use decode"):
        adapted.decode_stream([])


@pytest.mark.parametrize("given", ["nowhere", "other"])
def test_a_name_without_a_vae_is_an_error(tmp_path, monkeypatch, given):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(InputError, match=r"no file or folder .*nowhere|_class_name is 'UNet2DModel'; allowed are ODV"):
        load_pretrained_vae(str(tmp_path / given))
