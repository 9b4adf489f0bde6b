"""Loading of Open-Sora-Plan's published checkpoints: golden values, every container, and what is refused."""

import os

import pytest
import torch
from golden import GOLDEN, published_vae_values
from known_weights import known_vae_tensor, read_keys
from safetensors.torch import save_file
from small import relative_error
from torch import Tensor

from odvae import ODVAE
from odvae.initial_weights import load_video_vae
from odvae.opensora_plan import infer_settings, published_names, rename_tensors
from odvae.running.errors import InputError
from odvae.settings import ModelSettings
from odvae.video_vae import load_pretrained_vae

RESAMPLING = {"v1.2.0": "joint", "v1.1.0": "separate"}


@pytest.fixture(scope="module", params=RESAMPLING)
def original(request) -> ODVAE:
    """A small model with the published function, in which every tensor matters."""
    torch.manual_seed(0)
    vae = ODVAE(
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        norm="clip",
        temporal_upsample="trilinear",
        temporal_resampling=RESAMPLING[request.param],
    )
    for parameter in vae.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return vae.eval()


def as_published(vae: ODVAE) -> dict[str, Tensor]:
    own = vae.state_dict()
    return {
        published: own[name].reshape(shape).contiguous() for name, (published, shape) in published_names(vae).items()
    }


def assert_same(vae: ODVAE, original: ODVAE) -> None:
    assert dict(vae.config)["temporal_resampling"] == original.config.temporal_resampling
    ours, theirs = vae.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(video).latent_dist.mean
        torch.testing.assert_close(latents, original.encode(video).latent_dist.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vae.decode(latents).sample, original.decode(latents).sample, rtol=1e-5, atol=1e-5)


def test_training_from_a_published_file_keeps_its_norm_and_upsampling(original, tmp_path):
    save_file(as_published(original), tmp_path / "published.safetensors")
    model = ModelSettings(block_out_channels=(32, 32, 64, 64), layers_per_block=1)
    if original.config.temporal_resampling == "separate":
        with pytest.raises(InputError, match=r"\(v1\.1\.0\)"):
            load_video_vae(str(tmp_path / "published.safetensors"), model)
    else:
        assert_same(load_video_vae(str(tmp_path / "published.safetensors"), model), original)


# --- golden values of the original implementation


@pytest.mark.parametrize(
    ("keys", "golden", "frames", "group"),
    [
        ("small_v120_keys.txt", "v120_1x1x64x64", 1, None),
        ("small_v120_keys.txt", "v120_1x9x64x64", 9, None),
        ("small_v120_keys.txt", "v120_1x17x64x64_tiled9", 17, 9),
        ("small_v110_keys.txt", "v110_1x9x64x64", 9, None),
    ],
)
def test_the_published_modes_give_the_original_values(tmp_path, keys, golden, frames, group):
    state = {name: known_vae_tensor(name, shape) for name, shape in read_keys(GOLDEN / keys).items()}
    torch.save(state, tmp_path / "checkpoint.pt")
    vae = ODVAE.from_opensora_plan(tmp_path / "checkpoint.pt")
    values = published_vae_values()
    mean, logvar, pixels = (values[f"{golden}.{name}"] for name in ("mean", "logvar", "every_third_pixel"))
    if group is not None:
        vae.enable_tiling(tile_sample_min_num_frames=group)
    with torch.no_grad():
        posterior = vae.encode(values[f"input_{frames}"]).latent_dist
        assert relative_error(posterior.mean, mean) < 1e-4
        assert relative_error(posterior.logvar, logvar) < 1e-4
        assert relative_error(vae.decode(mean).sample[..., ::3, ::3], pixels) < 1e-4


@pytest.mark.parametrize(
    ("keys", "widths", "parameters"),
    [
        ("released_v120_keys.txt", (128, 256, 512, 512), 239_189_991),
        ("released_v110_keys.txt", (128, 256, 512, 512), None),
        ("small_v110_keys.txt", (32, 64, 128, 128), None),
    ],
)
def test_every_tensor_of_a_released_checkpoint_is_loaded(keys, widths, parameters):
    state = {name: torch.empty(shape, device="meta") for name, shape in read_keys(GOLDEN / keys).items()}
    with torch.device("meta"):
        vae = ODVAE(**infer_settings(state, keys))
    assert vae.config.block_out_channels == widths
    vae.load_state_dict(rename_tensors(state, vae, keys), assign=True)
    assert {published for published, _ in published_names(vae).values()} == state.keys()
    count = sum(parameter.numel() for parameter in vae.parameters())
    assert count == sum(tensor.numel() for tensor in state.values())
    assert parameters in (None, count)


# --- names


def test_published_names_of_some_tensors():
    with torch.device("meta"):
        joint, separate = (published_names(ODVAE(temporal_resampling=way)) for way in ("joint", "separate"))
    assert len(joint) == 248
    assert len(separate) == 260
    shared_names = {
        "encoder.conv_in.weight": ("encoder.conv_in.weight", (128, 3, 3, 3)),
        "encoder.down_blocks.0.downsamplers.0.conv.bias": ("encoder.down.0.downsample.conv.bias", (128,)),
        "encoder.down_blocks.2.resnets.0.conv_shortcut.weight": (
            "encoder.down.2.block.0.nin_shortcut.conv.weight", (512, 256, 1, 1, 1)),
        "decoder.mid_block.attentions.0.to_q.weight": ("decoder.mid.attn_1.q.conv.weight", (512, 512, 1, 1, 1)),
        "decoder.up_blocks.2.upsamplers.0.conv.weight": ("decoder.up.1.upsample.conv.conv.weight", (256, 256, 1, 3, 3)),
        "decoder.up_blocks.3.resnets.2.norm2.weight": ("decoder.up.0.block.2.norm2.weight", (128,)),
    }  # fmt: skip
    assert joint.items() >= shared_names.items()
    assert separate.items() >= shared_names.items()
    assert joint["encoder.down_blocks.1.downsamplers.0.conv.weight"] == (
        "encoder.down.1.downsample.conv.conv.weight", (256, 256, 3, 3, 3))  # fmt: skip
    assert separate["encoder.down_blocks.1.downsamplers.1.conv.weight"] == (
        "encoder.down.1.time_downsample.conv.weight", (256, 256, 3, 3, 3))  # fmt: skip
    assert separate["decoder.up_blocks.0.upsamplers.1.mix_factor"] == ("decoder.up.3.time_upsample.mix_factor", (1,))


# --- containers


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


def with_loss(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "loss.discriminator.weight": torch.ones(3)}


CHECKPOINTS = {
    "training, averaged weights first": lambda state: {
        "epoch": 1,
        "optimizer_state": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 1e-5}]},
        "state_dict": {"gen_model": other(state), "dics_model": {"weight": torch.ones(2)}},
        "ema_state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "scaler_state": {},
    },
    "training, no averages": lambda state: {"state_dict": {"gen_model": state, "dics_model": {}}, "ema_state_dict": {}},
    "state_dict alone, loss beside it": lambda state: {"state_dict": with_loss(state)},
    "plain": lambda state: state,
}


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
@pytest.mark.parametrize("container", CHECKPOINTS)
def test_a_pytorch_checkpoint_loads_in_every_container(original, tmp_path, container, suffix):
    torch.save(CHECKPOINTS[container](as_published(original)), tmp_path / f"model{suffix}")
    assert_same(ODVAE.from_opensora_plan(tmp_path / f"model{suffix}"), original)


def test_a_checkpoint_in_the_old_file_format_loads(original, tmp_path):
    torch.save(as_published(original), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    assert_same(ODVAE.from_opensora_plan(str(tmp_path / "model.pt")), original)


@pytest.mark.parametrize("config", [None, '{"_class_name": "CausalVAEModel", "hidden_size": 32}'])
def test_a_folder_with_safetensors_loads_and_loss_tensors_are_left_out(original, tmp_path, config):
    save_file(with_loss(as_published(original)), tmp_path / "diffusion_pytorch_model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert_same(ODVAE.from_opensora_plan(tmp_path), original)
    assert_same(ODVAE.from_opensora_plan(tmp_path / "diffusion_pytorch_model.safetensors"), original)


def test_half_precision_weights_become_float32(original, tmp_path):
    save_file({name: tensor.bfloat16() for name, tensor in as_published(original).items()}, tmp_path / "a.safetensors")
    vae = ODVAE.from_opensora_plan(tmp_path)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}


def test_a_published_model_saves_and_loads_as_a_diffusers_folder(original, tmp_path):
    torch.save(as_published(original), tmp_path / "model.pt")
    assert_same(load_pretrained_vae(str(tmp_path / "model.pt")), original)  # as vae.pretrained names it
    ODVAE.from_opensora_plan(tmp_path / "model.pt").save_pretrained(tmp_path / "vae")
    again = ODVAE.from_pretrained(tmp_path / "vae")
    assert (again.config.norm, again.config.temporal_upsample) == ("clip", "trilinear")
    assert_same(again, original)


# --- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("encoder.mid.attn_1.q.conv.bias"), "missing tensors encoder.mid.attn_1.q.conv.bias;"),
        (lambda state: state.pop("post_quant_conv.conv.bias"), "post_quant_conv.conv.bias is missing"),
        (lambda state: state.update({"encoder.other": torch.ones(1)}), "not expected encoder.other"),
        (
            lambda state: state.update({"encoder.conv_out.conv.bias": torch.ones(7)}),
            r"encoder.conv_out.conv.bias has shape \(7,\), the model needs \(8,\)",
        ),
        (  # as many numbers, in another shape
            lambda state: state.update({"quant_conv.conv.weight": torch.ones(8, 8)}),
            r"quant_conv.conv.weight has shape \(8, 8\), the model needs \(8, 8, 1, 1, 1\)",
        ),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_named(original, tmp_path, change, message):
    state = as_published(original)
    change(state)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=message):
        ODVAE.from_opensora_plan(tmp_path / "model.pt")


class Malicious:
    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, zipped):
    code = {"ema_state_dict": Malicious(tmp_path / "it ran")}
    torch.save(code, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"model.ckpt contains a Python object \(\w+.mkdir\).*refused"):
        ODVAE.from_opensora_plan(tmp_path / "model.ckpt")
    assert not (tmp_path / "it ran").exists()


def test_files_that_are_not_checkpoints_are_errors(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        ODVAE.from_opensora_plan(tmp_path / "nothing.pt")
    with pytest.raises(InputError, match=r"must contain one \.safetensors, .* or \.pth file, found none"):
        ODVAE.from_opensora_plan(tmp_path)
    for name in ("a.pt", "b.safetensors", "c.txt"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"a\.pt is not a torch\.save file"):
        ODVAE.from_opensora_plan(tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"b\.safetensors is not a safetensors file"):
        ODVAE.from_opensora_plan(tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="a checkpoint file must end in"):
        ODVAE.from_opensora_plan(tmp_path / "c.txt")
    with pytest.raises(InputError, match=r"found a\.pt, b\.safetensors"):
        ODVAE.from_opensora_plan(tmp_path)


def test_a_truncated_checkpoint_is_an_error(tmp_path):
    torch.save({"weight": torch.ones(1000)}, tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"model\.pt is truncated \(it ends after 2000 bytes\)"):
        ODVAE.from_opensora_plan(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{"epoch": 3, "model": "x"}, [torch.ones(1)], {"ema_state_dict": torch.ones(1)}])
def test_a_checkpoint_without_weights_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"must contain weights|contains no weights"):
        ODVAE.from_opensora_plan(tmp_path / "model.pt")


def test_a_diffusers_folder_is_an_error_that_says_how_to_load_it(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"ODVAE\.from_pretrained"):
        ODVAE.from_opensora_plan(tmp_path)
