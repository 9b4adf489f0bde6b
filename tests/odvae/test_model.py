"""OD-VAE: causality, streaming, initialization from an image VAE, shapes, errors."""

import gc

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SMALL, relative_error

from odvae import ODVAE
from odvae.architecture.inflation import inflate
from odvae.running.errors import InputError


def test_the_released_size_has_the_released_number_of_parameters():
    with torch.device("meta"):
        model = ODVAE()
    assert sum(parameter.numel() for parameter in model.parameters()) == 239_189_991


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (5, 2), (17, 5)])
def test_4k_plus_1_frames_become_k_plus_1_latents_and_come_back(vae, frames, latent_frames):
    video = torch.randn(2, 3, frames, 16, 24)
    with torch.no_grad():
        latents = vae.encode(video).latent_dist.mean
        assert latents.shape == (2, 4, latent_frames, 2, 3)
        assert vae.decode(latents).sample.shape == video.shape


def test_latent_frame_has_no_gradient_from_later_frames(vae):
    video = torch.randn(1, 3, 9, 32, 32, requires_grad=True)
    latents = vae.encode(video).latent_dist.mean  # (1, c, 3, 4, 4)
    for i in range(3):
        (grad,) = torch.autograd.grad(latents[:, :, i].sum(), video, retain_graph=True)
        assert grad[:, :, 4 * i + 1 :].abs().sum() == 0  # the future
        assert grad[:, :, : 4 * i + 1].abs().sum() > 0  # the test can fail


def test_the_released_mode_depends_on_later_frames(image_vae):
    leaky = ODVAE.from_image_vae(image_vae, norm="clip", temporal_upsample="trilinear")
    video = torch.randn(1, 3, 9, 16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(leaky.encode(video).latent_dist.mean[:, :, 0].sum(), video)
    assert grad[:, :, 1:].abs().sum() > 0


def test_decoded_frame_has_no_gradient_from_later_latents(vae):
    latents = torch.randn(1, 4, 3, 2, 2, requires_grad=True)
    video = vae.decode(latents).sample  # (1, 3, 9, 16, 16)
    for i in range(9):
        (grad,) = torch.autograd.grad(video[:, :, i].sum(), latents, retain_graph=True)
        newest = (i + 3) // 4
        assert grad[:, :, newest + 1 :].abs().sum() == 0
        assert grad[:, :, newest].abs().sum() > 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(latents=st.integers(1, 6), data=st.data())
def test_a_stream_equals_the_whole_for_every_chunking(vae, latents, data):
    frames = 4 * (latents - 1) + 1
    generator = torch.Generator().manual_seed(latents)
    video = torch.randn(1, 3, frames, 16, 16, generator=generator)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, frames - 1)), max_size=6)))
    chunks = list(torch.tensor_split(video, cuts, dim=2))
    with torch.no_grad():
        whole = vae.encode(video).latent_dist.mean
        streamed = torch.cat([part.mean for part in vae.encode_stream(chunks)], dim=2)
        assert relative_error(streamed, whole) < 1e-5
        pieces = torch.tensor_split(whole, [cut for cut in cuts if cut < latents], dim=2)
        assert relative_error(torch.cat(list(vae.decode_stream(pieces)), dim=2), vae.decode(whole).sample) < 1e-5


def test_a_stream_that_does_not_end_on_4k_plus_1_is_an_error(vae):
    with pytest.raises(InputError, match="ended 3 frames after a complete group"):
        list(vae.encode_stream([torch.zeros(1, 3, 8, 16, 16)]))


def test_streaming_refuses_modes_that_need_the_whole_clip(image_vae):
    clip_vae = ODVAE.from_image_vae(image_vae, norm="clip", temporal_upsample="trilinear")
    with pytest.raises(InputError, match="norm=clip"):
        next(clip_vae.encode_stream([torch.zeros(1, 3, 5, 16, 16)]))


@pytest.mark.parametrize("variant", [1, 2, 3, 4])
def test_tail_initialization_is_the_image_vae_on_every_fourth_frame(image_vae, variant):
    video = torch.randn(1, 3, 17, 16, 16, generator=torch.Generator().manual_seed(0))
    vae = ODVAE.from_image_vae(image_vae, variant, "tail").eval()
    with torch.no_grad():
        kept = [0, 4, 8, 12, 16]
        expected = torch.stack([image_vae.encode(video[:, :, i]).latent_dist.mean for i in kept], dim=2)
        latents = vae.encode(video).latent_dist.mean
        assert relative_error(latents, expected) < 1e-5
        held = [image_vae.decode(expected[:, :, (i + 3) // 4]).sample for i in range(17)]
        assert relative_error(vae.decode(expected).sample, torch.stack(held, dim=2)) < 1e-5


@pytest.mark.parametrize("init", ["tail", "average"])
def test_both_initializations_encode_images_as_the_image_vae_but_only_tail_videos(image_vae, init):
    video = torch.randn(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0))
    vae = ODVAE.from_image_vae(image_vae, 4, init).eval()
    with torch.no_grad():
        image = vae.encode(video[:, :, :1]).latent_dist.mean[:, :, 0]
        assert relative_error(image, image_vae.encode(video[:, :, 0]).latent_dist.mean) < 1e-5
        last = vae.encode(video).latent_dist.mean[:, :, 2]
        same = relative_error(last, image_vae.encode(video[:, :, 8]).latent_dist.mean) < 1e-5
    assert same == (init == "tail")


def test_inflated_kernels_have_the_image_kernel_last_or_spread():
    kernel = torch.randn(2, 3, 3, 3)
    tail, average = inflate(kernel, 3, "tail"), inflate(kernel, 3, "average")
    assert torch.equal(tail[:, :, 2], kernel)
    assert tail[:, :, :2].abs().sum() == 0
    assert torch.allclose(average.sum(dim=2), kernel)


def test_modes_share_tensor_names_and_shapes():
    states = [
        {name: tensor.shape for name, tensor in ODVAE(**SMALL, norm=norm, temporal_upsample=up).state_dict().items()}
        for norm, up in (("frame", "nearest"), ("clip", "trilinear"))
    ]
    assert states[0] == states[1]


def test_saved_and_loaded_vae_is_the_same(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    again = ODVAE.from_pretrained(tmp_path)
    assert again.config.variant == 4
    assert all(torch.equal(a, b) for a, b in zip(vae.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 16, 16), "4k\\+1, .*found 16, nearest: 13 or 17"),
        ((1, 3, 5, 20, 16), "height must be a multiple of 8, .*found 20"),
        ((1, 4, 5, 16, 16), "a video must be"),
        ((3, 5, 16, 16), "a video must be"),
    ],
)
def test_a_video_of_another_shape_is_an_error_that_says_what_is_allowed(vae, shape, message):
    with pytest.raises(InputError, match=message):
        vae.encode(torch.zeros(shape))


def test_impossible_sizes_are_errors():
    with pytest.raises(InputError, match="norm_num_groups"):
        ODVAE(block_out_channels=(8, 10, 16, 16), norm_num_groups=4)
    with pytest.raises(InputError, match="allowed are 1, 2, 3, 4"):
        ODVAE(**SMALL, variant=5)


@pytest.mark.parametrize("init", ["tail", "average"])
def test_an_image_vae_without_quant_convolutions_is_inflated_too(init):
    """As SD3's and FLUX's: 16 channels, no quant convolutions."""
    torch.manual_seed(0)
    sizes = {**SMALL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    image_vae = AutoencoderKL(**levels, **sizes).eval()
    vae = ODVAE.from_image_vae(image_vae, init=init).eval()
    image = torch.randn(2, 3, 1, 32, 32).clamp(-1, 1)
    with torch.no_grad():
        moments = vae.encode(image).latent_dist.parameters[:, :, 0]
        assert relative_error(moments, image_vae.encode(image[:, :, 0]).latent_dist.parameters) < 1e-5
        latents = torch.randn(2, 16, 1, 4, 4)
        assert relative_error(vae.decode(latents).sample[:, :, 0], image_vae.decode(latents[:, :, 0]).sample) < 1e-5


def test_an_image_vae_without_attention_in_the_middle_is_refused():
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with pytest.raises(InputError, match="no attention in its middle block"):
        ODVAE.from_image_vae(AutoencoderKL(**levels, mid_block_add_attention=False, **SMALL))


def held_bytes() -> int:
    """Bytes of all tensors that are alive, each memory counted once."""
    # By exact type: other tests leave fake tensors behind, which have no memory.
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    memories = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided
    }
    return sum(memories.values())


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_a_stream_holds_no_more_memory_after_513_frames_than_after_33(vae, half):
    """Between two pieces; what a piece needs while it is computed depends on its own size alone."""
    frames, latents = torch.zeros(1, 3, 4, 16, 16), torch.zeros(1, 4, 1, 2, 2)
    if half == "encode":
        parts = vae.encode_stream(frames[:, :, : 4 if i else 1] for i in range(129))
    else:
        parts = vae.decode_stream(latents for _ in range(129))
    held = [held_bytes() for i, _ in enumerate(parts) if i in (8, 128)]
    assert len(held) == 2
    assert held[1] <= held[0] * 1.001
