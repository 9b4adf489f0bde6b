"""LoRA of the networks and of the pipeline: diffusers' methods, saved files, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_networks import awake, make_dit, make_unet

from ldm.networks.conditioning import Condition
from ldm.networks.lora import LORA_WEIGHTS, add_lora, fused_projections, merge_lora, save_lora
from ldm.networks.network import predict
from ldm.networks.settings import LoRASettings
from odvae.running.errors import InputError

peft = pytest.importorskip("peft")
NETWORKS = {"DiT": make_dit, "UNet": make_unet}
USUAL_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@torch.no_grad()
def answer(network):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 6, 8, generator=generator)
    latents = torch.randn(2, 4, 3, 4, 4, generator=generator)
    condition = Condition(text, torch.ones(2, 6, dtype=torch.bool))
    return predict(network, latents, torch.tensor([0.2, 0.7]), condition)


def randomize(network):
    """An adapter as after some training: all of its matrices have other values than zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", NETWORKS)
def test_only_the_adapter_is_trained_and_it_starts_as_no_change(kind):
    network = awake(NETWORKS[kind]())
    before = answer(network)
    add_lora(network, LoRASettings(rank=2))
    assert torch.allclose(answer(network), before, atol=1e-5)  # the UNet's layers round by where tensors lie in memory
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained}
    assert adapted == ({"qkv", "q", "kv", "out"} if kind == "DiT" else {"to_q", "to_k", "to_v", "0"})


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_saved_adapter_merged_into_a_fresh_base_gives_the_same_network(kind, tmp_path):
    network = awake(NETWORKS[kind]())
    add_lora(network, LoRASettings(rank=2, alpha=3.0))
    randomize(network)
    save_lora(network, dict(network.named_parameters()), tmp_path)
    names = load_file(tmp_path / LORA_WEIGHTS)
    assert all(
        name.startswith("transformer.") and name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names
    )
    merged = awake(NETWORKS[kind]())
    base = answer(merged)
    merge_lora(merged, tmp_path / LORA_WEIGHTS)
    assert not any("lora" in name for name in merged.state_dict())
    assert not torch.allclose(answer(network), base, atol=1e-2)
    assert torch.allclose(answer(merged), answer(network), atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_diffusers_own_methods_take_the_usual_targets_and_load_what_they_saved(kind, tmp_path):
    network = awake(NETWORKS[kind]())
    base = answer(network)
    network.add_adapter(peft.LoraConfig(r=4, target_modules=USUAL_TARGETS, init_lora_weights=False))
    with pytest.raises(ValueError, match="already exists"):
        network.add_adapter(peft.LoraConfig(r=4, target_modules=USUAL_TARGETS))
    network.save_lora_adapter(tmp_path)
    other = awake(NETWORKS[kind]())
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert torch.allclose(answer(other), answer(network), atol=1e-5)
    adapted = answer(network)
    assert not torch.allclose(adapted, base, atol=1e-2)
    network.disable_lora()
    assert torch.allclose(answer(network), base, atol=1e-5)
    network.enable_lora()
    assert torch.allclose(answer(network), adapted, atol=1e-5)
    network.unload_lora()
    assert torch.allclose(answer(network), base, atol=1e-5)


def test_projections_of_one_matrix_are_adapted_together_or_not_at_all():
    assert fused_projections(USUAL_TARGETS) == {"qkv", "q", "kv", "out"}
    assert fused_projections(["qkv", "fc1"]) == {"qkv", "fc1"}
    with pytest.raises(InputError, match=r"LoRA targets to_q, to_v: .* name all of to_q, to_k and to_v"):
        make_dit().add_adapter(peft.LoraConfig(target_modules=["to_q", "to_v"]))


@pytest.mark.parametrize("kind", NETWORKS)
def test_targets_that_no_layer_has_are_refused_with_those_there_are(kind):
    layer = "mlp.fc1" if kind == "DiT" else "attn1.to_k"
    with pytest.raises(
        InputError, match=rf"ldm\.lora\.targets: 'to_x' is the end of no layer's name in {kind}.*{layer}"
    ):
        add_lora(NETWORKS[kind](), LoRASettings(targets=(*NETWORKS[kind]().lora_targets, "to_x")))


def test_networks_without_text_have_fewer_default_targets():
    network = make_dit(text_width=None, class_names=["run", "jump"])
    add_lora(network, LoRASettings())
    assert network.peft_config["default"].target_modules == {"qkv", "out"}
    network = make_dit(text_width=None, class_names=["run", "jump"])
    add_lora(network, LoRASettings(targets=USUAL_TARGETS))
    assert network.peft_config["default"].target_modules == {"qkv", "out"}


def test_the_adapter_of_another_network_and_a_damaged_file_are_refused(tmp_path):
    network = awake(make_dit(depth=3))
    add_lora(network, LoRASettings(rank=2))
    save_lora(network, dict(network.named_parameters()), tmp_path)
    file = tmp_path / LORA_WEIGHTS
    with pytest.raises(InputError, match=r"LoRA of another network: DiT has no layer blocks\.2\.attention\.out"):
        merge_lora(make_dit(), file)
    with pytest.raises(InputError, match=r"attention\.out takes 64 channels, in the LoRA 32"):
        merge_lora(make_dit(depth=3, width=64), file)
    save_file({"unet.to_q.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        InputError, match=r"other\.safetensors .*no LoRA of a transformer: its tensors are named unet\.to_q"
    ):
        merge_lora(make_dit(), tmp_path / "other.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="is truncated"):
        merge_lora(awake(make_dit(depth=3)), file)
