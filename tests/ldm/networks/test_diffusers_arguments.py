"""Networks are called as diffusers' models are, and their offloading and casting leave the results as they are."""

import inspect

import accelerate
import pytest
import torch
from small import relative_error
from small_networks import CLASSES, awake, make_dit, make_unet

from ldm.networks.conditioning import Condition
from ldm.networks.network import predict
from odvae.running.errors import InputError

CPU = torch.device("cpu")
MAKE = {"DiT": make_dit, "UNet": make_unet}


def arguments(seed: int = 0) -> dict[str, torch.Tensor]:
    """Latents, times and text in diffusers' names, but for the first two."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    text = torch.randn(2, 6, 8, generator=generator)
    return {"encoder_hidden_states": text, "encoder_attention_mask": mask}


def latents_and_time() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([0.2, 0.7])


@pytest.fixture(params=[*MAKE])
def network(request):
    return awake(MAKE[request.param]()).requires_grad_(False)


@pytest.mark.parametrize(("name", "first"), [("DiT", ["hidden_states", "timestep"]), ("UNet", ["sample", "timestep"])])
def test_the_first_arguments_have_the_names_of_diffusers_transformers_and_unets(name, first):
    names = list(inspect.signature(MAKE[name]().forward).parameters)
    assert names[:2] == first
    assert {"encoder_hidden_states", "encoder_attention_mask", "class_labels", "return_dict"} < set(names)


def test_the_output_is_an_object_or_a_tuple(network):
    (as_tuple,) = network(*latents_and_time(), **arguments(), return_dict=False)
    assert torch.equal(network(*latents_and_time(), **arguments()).sample, as_tuple)
    assert as_tuple.shape == (2, 4, 3, 4, 4)


def test_diffusers_arguments_mean_the_same_as_a_condition(network):
    given = arguments()
    condition = Condition(given["encoder_hidden_states"], given["encoder_attention_mask"].bool())
    expected = predict(network, *latents_and_time(), condition)
    assert torch.equal(network(*latents_and_time(), **given).sample, expected)
    without_mask = network(*latents_and_time(), encoder_hidden_states=given["encoder_hidden_states"]).sample
    whole = Condition(condition.text, torch.ones_like(condition.text_mask))
    assert torch.equal(without_mask, predict(network, *latents_and_time(), whole))
    assert not torch.equal(without_mask, expected)


@pytest.mark.parametrize("name", MAKE)
def test_class_labels_mean_the_same_as_a_condition(name):
    network = awake(MAKE[name](text_width=None, class_names=CLASSES)).requires_grad_(False)
    labels = torch.tensor([0, 2])
    output = network(*latents_and_time(), class_labels=labels).sample
    assert torch.equal(output, predict(network, *latents_and_time(), Condition(label=labels)))


def test_a_condition_and_its_parts_are_refused_together(network):
    with pytest.raises(InputError, match="give either condition, or encoder_hidden_states"):
        network(*latents_and_time(), Condition(), **arguments())


def check_equal(network, expected):
    for _ in range(2):  # also when the weights have been taken away again
        assert torch.equal(network(*latents_and_time(), **arguments()).sample, expected)


def test_offloaded_to_the_cpu_by_accelerate(network):
    expected = network(*latents_and_time(), **arguments()).sample
    accelerate.cpu_offload(network, CPU)
    assert all(parameter.is_meta for parameter in network.parameters())
    check_equal(network, expected)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_offloaded_to_disk_in_groups_by_diffusers(network, kind, tmp_path):
    expected = network(*latents_and_time(), **arguments()).sample
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    network.enable_group_offload(CPU, offload_type=kind, offload_to_disk_path=str(tmp_path), **blocks)
    assert list(tmp_path.glob("*.safetensors"))
    check_equal(network, expected)


def test_weights_stored_in_another_type_are_cast_layer_by_layer(network):
    expected = network(*latents_and_time(), **arguments()).sample
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert network.dtype == torch.float32
    assert 0 < relative_error(network(*latents_and_time(), **arguments()).sample, expected) < 0.3


def test_hooks_move_a_condition_with_the_other_arguments():
    condition = Condition(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    moved = accelerate.utils.send_to_device(condition, torch.device("meta"))
    assert moved.text.is_meta
    assert moved.text_mask.is_meta
    assert moved.label is None


def test_a_device_map_leaves_blocks_on_the_disk_and_none_is_split(network, tmp_path):
    expected = network(*latents_and_time(), **arguments()).sample
    network.save_pretrained(tmp_path / "network")
    size = sum(parameter.nbytes for parameter in network.parameters())
    options = {"max_memory": {"cpu": int(0.7 * size)}, "offload_folder": str(tmp_path / "offloaded")}
    loaded = type(network).from_pretrained(tmp_path / "network", device_map="auto", **options)
    assert {*loaded.hf_device_map.values()} == {"cpu", "disk"}
    check_equal(loaded.eval().requires_grad_(False), expected)


@pytest.mark.parametrize("name", MAKE)
def test_an_attention_back_end_is_used_or_refused(name):
    network = MAKE[name]()
    latents, times = torch.zeros(2, 4, 3, 4, 4), torch.full((2,), 0.5)
    before = network(latents, times, **arguments()).sample
    network.set_attention_backend("native")
    network.reset_attention_backend()
    assert torch.equal(network(latents, times, **arguments()).sample, before)
    for name in ("_native_math", "_native_flash", "math"):
        network.set_attention_backend(name)
        assert torch.allclose(network(latents, times, **arguments()).sample, before, atol=1e-5)
    with pytest.raises(InputError, match="attention back end 'sage': allowed are native, _native_flash, "):
        network.set_attention_backend("sage")
    with pytest.raises(InputError, match="needs a CUDA device"):
        network.set_attention_backend("xformers")
