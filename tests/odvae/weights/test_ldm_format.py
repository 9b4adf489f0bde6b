"""Image VAEs in single files of latent-diffusion's format load as diffusers converts them, and others are named."""

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from small import relative_error

from odvae import ODVAE
from odvae.architecture.settings import ModelSettings
from odvae.initial_weights import load_image_vae
from odvae.per_frame import PerFrameVAE
from odvae.running.errors import InputError
from odvae.video_vae import load_pretrained_vae
from odvae.weights.ldm_format import ldm_name

SIZES = {"block_out_channels": (32, 32, 64), "layers_per_block": 1, "latent_channels": 16, "norm_num_groups": 32}


def make(quant: bool) -> tuple[AutoencoderKL, dict[str, torch.Tensor]]:
    """An image VAE as of SD (with quant convolutions) or FLUX (without), and its tensors as latent-diffusion's."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(**SIZES, **blocks, use_quant_conv=quant, use_post_quant_conv=quant).eval()
    state = {ldm_name(name, levels=3): tensor for name, tensor in vae.state_dict().items()}
    for name, tensor in state.items():
        if ".attn_1." in name and tensor.ndim == 2:
            state[name] = tensor[:, :, None, None]
    converted = convert_ldm_vae_checkpoint(dict(state), vae.config)  # diffusers' reading of these names
    assert converted.keys() == vae.state_dict().keys()
    assert all(torch.equal(tensor, vae.state_dict()[name]) for name, tensor in converted.items())
    return vae, state


@pytest.mark.parametrize("quant", [True, False])
@pytest.mark.parametrize("layout", ["alone.safetensors", "pipeline.safetensors", "training.ckpt"])
def test_a_single_file_gives_the_same_vae(tmp_path, quant, layout):
    vae, state = make(quant)
    path = tmp_path / layout
    if layout == "training.ckpt":
        extra = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.ones(())}
        torch.save({"state_dict": state | extra, "global_step": 3}, path)
    else:
        prefix = "first_stage_model." if layout.startswith("pipeline") else ""
        other = {"model.diffusion_model.out.weight": torch.zeros(2)} if prefix else {}
        save_file({f"{prefix}{name}": tensor.half() for name, tensor in state.items()} | other, path)
    loaded = load_image_vae(str(path), ModelSettings(**SIZES, spatial_compression_ratio=4))
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, vae.state_dict()[name], atol=1e-3)
    image = torch.randn(1, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    grown = ODVAE.from_image_vae(loaded, spatial_compression_ratio=8)
    assert grown.config.latents_mean is None  # the file does not say how its pipeline scales latents
    with torch.no_grad():
        again = ODVAE.from_image_vae(loaded).encode(image).latent_dist.mean[:, :, 0]
        assert relative_error(again, vae.encode(image[:, :, 0]).latent_dist.mean) < 1e-2
    assert isinstance(load_pretrained_vae(str(path)), PerFrameVAE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {n: t for n, t in state.items() if n != "encoder.conv_out.bias"},
            r"missing tensors encoder.c",
        ),
        (lambda state: state | {"decoder.more": torch.zeros(1)}, "not expected decoder.more"),
        (lambda state: state | {"encoder.conv_in.bias": torch.zeros(7)}, r"encoder.conv_in.bias has shape \(7,\)"),
        (lambda state: {"encoder.down_blocks.0.x": torch.zeros(1)}, "give the folder, with its config.json"),
        (lambda state: {"encoder.mid.block_1.conv1.weight": torch.zeros(1)}, "down.0.block.0.norm2.weight is missing"),
        (lambda state: {n: t for n, t in state.items() if "down.1" not in n}, "down.1.block.0.norm2.weight is missing"),
        (
            lambda state: state | {"decoder.conv_in.weight": torch.zeros(64, 8, 3, 3)},
            "encoder.conv_out.weight has shape",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_file(tmp_path, change, message):
    _, state = make(quant=False)
    save_file({name: tensor.contiguous() for name, tensor in change(state).items()}, tmp_path / "vae.safetensors")
    with pytest.raises(InputError, match=message) as error:
        load_image_vae(str(tmp_path / "vae.safetensors"), ModelSettings(**SIZES, spatial_compression_ratio=4))
    assert "vae.safetensors" in str(error.value)


def test_other_channels_than_the_settings_are_named(tmp_path):
    _, state = make(quant=False)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "vae.safetensors")
    model = ModelSettings(**{**SIZES, "latent_channels": 4}, spatial_compression_ratio=4)
    with pytest.raises(InputError, match=r"vae.model.latent_channels=4, but the image VAE .*vae.safetensors has 16"):
        load_image_vae(str(tmp_path / "vae.safetensors"), model)
