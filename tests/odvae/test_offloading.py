"""Offloaded, with weights stored in another type, or on disk, a VAE gives the same results."""

import accelerate
import pytest
import torch
from small import SMALL, relative_error

from odvae import ODVAE
from odvae.architecture import streaming
from odvae.per_frame import PerFrameVAE

CPU = torch.device("cpu")
KINDS = {
    "default": {},
    "variant 3": {"variant": 3},
    "released": {"norm": "clip", "temporal_upsample": "trilinear"},
    "v1.1.0": {"temporal_resampling": "separate"},
}


def make_vae(kind: str):
    torch.manual_seed(0)
    if kind == "per frame":
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        return PerFrameVAE(**SMALL, **blocks).eval()
    return ODVAE(**SMALL, **KINDS[kind]).eval()


@torch.no_grad()
def round_trip(vae) -> list[torch.Tensor]:
    """Latents and pixels, of the whole clip and where possible of its stream."""
    torch.manual_seed(1)
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    latents = vae.encode(video).latent_dist.mean
    results = [latents, vae.decode(latents).sample]
    if vae.streamable:
        results.append(torch.cat([part.mean for part in vae.encode_stream(video.split(3, dim=2))], dim=2))
        results.append(torch.cat(list(vae.decode_stream(latents.split(2, dim=2))), dim=2))
    return results


def check_equal(vae, expected, from_disk=False):
    """The results are those, bit for bit; of weights from the disk, but for the rounding of sums in another order.

    They lie where the file has them, and matrix multiplications on some CPUs add in an order that depends on the
    memory's alignment.
    """
    for _ in range(2):  # also when the weights have been taken away again
        for result, value in zip(round_trip(vae), expected, strict=True):
            assert relative_error(result, value) < 1e-5 if from_disk else torch.equal(result, value)


@pytest.fixture(params=["per frame", *KINDS])
def kind(request, monkeypatch):
    """A VAE's kind; videos go through its layers in many pieces."""
    monkeypatch.setattr(streaming, "PIECE_VALUES", {"cpu": 2**15})
    return request.param


def test_offloaded_to_the_cpu_by_accelerate(kind):
    expected, vae = round_trip(make_vae(kind)), make_vae(kind)
    accelerate.cpu_offload(vae, CPU)
    assert all(parameter.is_meta for parameter in vae.parameters())
    check_equal(vae, expected)


def test_offloaded_as_a_whole_by_accelerate(kind):
    expected, vae = round_trip(make_vae(kind)), make_vae(kind)
    vae, hook = accelerate.cpu_offload_with_hook(vae, CPU)
    called = []
    pre_forward = hook.hook.pre_forward
    hook.hook.pre_forward = lambda *arguments: called.append(1) or pre_forward(*arguments)
    check_equal(vae, expected)
    assert len(called) >= 2 * len(expected)  # by encode, decode and both streams


@pytest.mark.parametrize(
    "options", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
@pytest.mark.parametrize("to_disk", [False, True])
def test_offloaded_in_groups_by_diffusers(kind, options, to_disk, tmp_path):
    expected, vae = round_trip(make_vae(kind)), make_vae(kind)
    vae.enable_group_offload(CPU, **options, offload_to_disk_path=str(tmp_path) if to_disk else None)
    assert list(tmp_path.glob("*.safetensors")) or not to_disk
    check_equal(vae, expected, from_disk=to_disk)


def test_weights_stored_in_another_type_are_cast_layer_by_layer(kind):
    expected, vae = round_trip(make_vae(kind)), make_vae(kind)
    vae.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    for result, value in zip(round_trip(vae), expected, strict=True):
        assert 0 < relative_error(result, value) < 0.01


@pytest.mark.parametrize("kind", ["default", "v1.1.0"])
def test_a_device_map_leaves_blocks_on_the_disk_and_none_is_split(kind, tmp_path):
    whole = make_vae(kind)
    whole.save_pretrained(tmp_path / "vae")
    size = sum(parameter.nbytes for parameter in whole.parameters())
    options = {"max_memory": {"cpu": int(0.7 * size)}, "offload_folder": str(tmp_path / "offloaded")}
    vae = ODVAE.from_pretrained(tmp_path / "vae", device_map="auto", **options)
    assert {*vae.hf_device_map.values()} == {"cpu", "disk"}
    check_equal(vae, round_trip(whole), from_disk=True)
