"""DiT and UNet: identity at initialization, conditioning, relative positions, sizes, options, errors."""

import pytest
import torch
from small_networks import CLASSES, awake, make_dit, make_unet
from torch import nn

from ldm.experiment import CONFIGS, Experiment
from ldm.networks.attention import apply_rope, rope_angles, rope_cos_sin
from ldm.networks.conditioning import Condition, concat_first_frame
from ldm.networks.dit import DiT
from ldm.networks.factory import load_network
from ldm.networks.network import predict
from ldm.networks.settings import SIZES
from odvae.running.errors import InputError
from odvae.running.settings import load_settings


def inputs(batch=2, shape=(3, 4, 4), text=True, classes=False, first_frame=False):
    generator = torch.Generator().manual_seed(2)
    latents, time = torch.randn(batch, 4, *shape, generator=generator), torch.rand(batch, generator=generator)
    condition = Condition(
        text=torch.randn(batch, 6, 8, generator=generator) if text else None,
        text_mask=torch.tensor([[True] * 4 + [False] * 2] * batch) if text else None,
        label=torch.arange(batch) if classes else None,
        first_frame=torch.randn(batch, 4, 1, *shape[1:], generator=generator) if first_frame else None,
        first_frame_given=torch.tensor([True, False] * batch)[:batch] if first_frame else None,
    )
    return latents, time, condition


WAYS = {
    "text": ({}, {}),
    "class": ({"text_width": None, "class_names": CLASSES}, {"text": False, "classes": True}),
    "none": ({"text_width": None}, {"text": False}),
    "first frame": ({"first_frame": True}, {"first_frame": True}),
}
every_way = pytest.mark.parametrize("way", WAYS)
every_attention = pytest.mark.parametrize("attention", ["full", "factorized"])


@every_way
@every_attention
def test_an_untrained_network_predicts_zero_and_every_block_is_the_identity(way, attention):
    settings, given = WAYS[way]
    assert predict(make_dit(attention=attention, **settings), *inputs(**given)).abs().max() == 0


@every_way
@every_attention
def test_every_parameter_learns_once_the_gates_have_moved(way, attention):
    settings, given = WAYS[way]
    model = awake(make_dit(attention=attention, **settings))
    predict(model, *inputs(**given)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


@every_way
def test_the_unet_takes_every_condition_behind_the_same_call_and_learns_with_all_parameters(way):
    settings, given = WAYS[way]
    model = awake(make_unet(**settings))
    latents, time, condition = inputs(**given)
    if condition.label is not None:  # every class and none
        latents, time, condition = inputs(batch=4, **given)
        condition = Condition(label=torch.tensor([0, 1, 2, -1]))
    out = predict(model, latents, time, condition)
    assert out.shape == latents.shape
    out.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("make", [make_dit, make_unet])
def test_padding_tokens_change_nothing_and_real_ones_do(make):
    model = awake(make())
    latents, time, condition = inputs()
    out = predict(model, latents, time, condition)
    padded, real = condition.text.clone(), condition.text.clone()
    padded[:, 5] += 1
    real[:, 1] += 1
    assert torch.equal(predict(model, latents, time, Condition(padded, condition.text_mask)), out)
    assert not torch.allclose(predict(model, latents, time, Condition(real, condition.text_mask)), out)


@pytest.mark.parametrize("make", [make_dit, make_unet])
def test_different_classes_and_no_class_give_different_predictions(make):
    model = awake(make(text_width=None, class_names=CLASSES))
    latents, time, _ = inputs(batch=1, text=False)
    outs = [predict(model, latents, time, Condition(label=torch.tensor([label]))) for label in (-1, 0, 1, 2)]
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(outs[i], outs[j])


@pytest.mark.parametrize("make", [make_dit, make_unet])
def test_a_first_frame_matters_where_given_and_only_there(make):
    model = awake(make(first_frame=True))
    latents, time, condition = inputs(first_frame=True)
    other = Condition(condition.text, condition.text_mask, None, condition.first_frame + 1, condition.first_frame_given)
    before, after = predict(model, latents, time, condition), predict(model, latents, time, other)
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_the_networks_input_contains_the_given_frame_and_its_mask():
    latents, _, condition = inputs(first_frame=True)
    x = concat_first_frame(latents, condition)
    assert torch.equal(x[:, :4], latents)
    assert torch.equal(x[0, 4:8, :1], condition.first_frame[0])
    assert x[0, 8, 0].eq(1).all()
    assert x[:, 4:, 1:].abs().max() == x[1, 4:].abs().max() == 0


def test_dropped_conditions_are_the_empty_caption_and_no_class_and_a_first_frame_stays():
    _, _, condition = inputs(classes=True, first_frame=True)
    empty, mask = torch.ones(6, 8), torch.tensor([True] + [False] * 5)
    dropped = condition.drop(torch.tensor([True, False]), empty, mask)
    assert torch.equal(dropped.text[0], empty)
    assert torch.equal(dropped.text_mask[0], mask)
    assert torch.equal(dropped.text[1], condition.text[1])
    assert dropped.label.tolist() == [-1, 1]
    assert torch.equal(dropped.first_frame, condition.first_frame)


@every_attention
def test_samples_of_a_batch_do_not_influence_each_other(attention):
    model = awake(make_dit(attention=attention))
    latents, time, condition = inputs()
    together = predict(model, latents, time, condition)
    alone = [
        predict(model, latents[i : i + 1], time[i : i + 1], condition.map(lambda x, i=i: x[i : i + 1]))
        for i in range(2)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_factorized_blocks_attend_within_a_frame_then_at_a_position_over_time():
    model = awake(make_dit(attention="factorized", text_width=None, patch_size=(1, 1, 1), depth=1))
    latents, time, condition = inputs(batch=1, text=False)
    latents.requires_grad_()
    for axis in ("space", "time"):
        model.blocks[0].attention.axis = axis
        out = predict(model, latents, time, condition)
        (grad,) = torch.autograd.grad(out[0, :, 0, 0, 0].sum(), latents)  # of the first token
        seen = grad[0].abs().sum(0) > 0  # (3, 4, 4)
        expected = torch.zeros(3, 4, 4, dtype=torch.bool)
        expected[(0, ...) if axis == "space" else (..., 0, 0)] = True
        assert torch.equal(seen, expected), axis


@every_attention
@pytest.mark.parametrize("shape", [(1, 4, 4), (5, 4, 4), (3, 8, 6)])
def test_other_lengths_and_sizes_than_trained_work(shape, attention):
    model = awake(make_dit(attention=attention))
    assert predict(model, *inputs(shape=shape)).shape == (2, 4, *shape)
    assert predict(make_unet(), *inputs(shape=shape)).shape == (2, 4, *shape)


@pytest.mark.parametrize("patch_size", [(1, 1, 1), (1, 2, 2), (3, 2, 2), (1, 4, 2)])
def test_every_patch_size_reads_and_predicts_every_latent_value(patch_size):
    model = awake(make_dit(patch_size=patch_size))
    latents, time, condition = inputs()
    out = predict(model, latents.requires_grad_(), time, condition)
    assert out.shape == latents.shape
    (grad,) = torch.autograd.grad(out.sum(), latents)
    assert grad.abs().gt(0).all()


def test_the_table_of_sizes_has_the_papers_parameter_counts():
    """DiT-XL/2 has 675M with its 1000 classes; ours adds only positions' embedding and norms of q and k."""
    counts = {}
    for size, (depth, width, heads) in SIZES.items():
        with torch.device("meta"):
            sizes = {"depth": depth, "width": width, "heads": heads}
            model = DiT(**sizes, text_width=None, class_names=[str(i) for i in range(1000)])
        counts[size] = sum(p.numel() for p in model.parameters()) / 1e6
    assert counts == pytest.approx({"S": 33, "B": 130, "L": 458, "XL": 675}, rel=0.01)


def test_rotated_products_depend_on_relative_positions_alone():
    angles = rope_angles((4, 6, 6), 32, 100.0, torch.device("cpu")).double().view(4, 6, 6, -1)
    q, k = (torch.randn(1, 1, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))

    def product(a, b):
        return (apply_rope(q, rope_cos_sin(angles[a][None])) * apply_rope(k, rope_cos_sin(angles[b][None]))).sum()

    assert torch.allclose(product((0, 1, 2), (1, 3, 3)), product((2, 3, 4), (3, 5, 5)), atol=1e-5)
    assert not torch.allclose(product((0, 1, 2), (1, 3, 3)), product((0, 1, 2), (2, 3, 3)), atol=1e-3)


@every_attention
def test_gradient_checkpointing_changes_no_gradient(attention):
    plain, checkpointed = awake(make_dit(attention=attention)), awake(make_dit(attention=attention))
    checkpointed.enable_gradient_checkpointing()
    for model in (plain, checkpointed):
        predict(model, *inputs()).square().sum().backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_compiled_blocks_compute_the_same_and_keep_the_weights_names():
    model = awake(make_dit(depth=1))
    expected, names = predict(model, *inputs()), list(model.state_dict())
    model.compile_repeated_blocks(backend="eager", fullgraph=True)  # one graph a block: nothing in it falls back
    assert torch.allclose(predict(model, *inputs()), expected, atol=1e-6)
    assert list(model.state_dict()) == names


@pytest.mark.gpu
@every_attention
def test_xformers_equals_sdpa(attention):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("xformers.ops")
    model = awake(make_dit(attention=attention)).cuda()
    latents, time, condition = inputs()
    batch = (latents.cuda(), time.cuda(), condition.map(lambda part: part.cuda()))
    expected = predict(model, *batch)
    model.enable_xformers_memory_efficient_attention()
    assert torch.allclose(predict(model, *batch), expected, atol=1e-3)


def test_sizes_and_conditions_that_do_not_fit_are_errors():
    with pytest.raises(InputError, match="patch_size"):
        make_dit()(*inputs(shape=(3, 5, 4)))
    with pytest.raises(InputError, match="at least 16"):
        make_dit(width=32, heads=4)
    with pytest.raises(InputError, match="this network needs text conditioning"):
        make_dit()(*inputs(text=False))
    with pytest.raises(InputError, match="this network does not take label conditioning"):
        make_dit()(*inputs(classes=True))
    with pytest.raises(InputError, match="must be multiples of 2"):
        make_unet()(*inputs(shape=(3, 5, 4)))


def test_the_unet_has_no_dropout_whose_noise_would_not_follow_from_the_step():
    assert not [part for part in make_unet().modules() if isinstance(part, nn.Dropout) and part.p > 0]


@every_way
@every_attention
def test_one_modulation_for_all_blocks_starts_as_the_identity_and_every_table_learns(way, attention):
    settings, given = WAYS[way]
    model = make_dit(attention=attention, modulation="single", **settings)
    assert predict(model, *inputs(**given)).abs().max() == 0
    predict(awake(model), *inputs(**given)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_one_modulation_is_that_of_blocks_whose_layers_have_its_weight_and_own_biases():
    single = awake(make_dit(modulation="single", attention="factorized"))
    block = awake(make_dit(attention="factorized"))
    weights = single.state_dict()
    shared, bias = weights.pop("shared_modulation.weight"), weights.pop("shared_modulation.bias")
    rows = torch.arange(9 * 32).reshape(3, 3, 32)  # shift, scale, gate; self-attention, cross-attention, MLP
    for i, kept in enumerate((rows, rows[:, [0, 2]])):  # the second block attends over time, and not to text
        table = weights.pop(f"blocks.{i}.modulation_table")
        weights[f"blocks.{i}.modulation.weight"] = shared[kept.flatten()]
        weights[f"blocks.{i}.modulation.bias"] = bias[kept.flatten()] + table
    block.load_state_dict(weights)
    assert torch.allclose(predict(single, *inputs()), predict(block, *inputs()), atol=1e-5)


def test_a_network_with_one_modulation_is_saved_and_loaded(tmp_path):
    model = awake(make_dit(modulation="single"))
    model.save_pretrained(tmp_path)
    loaded = load_network(tmp_path)
    assert loaded.config.modulation == "single"
    assert torch.equal(predict(loaded, *inputs()), predict(model, *inputs()))


def test_heads_of_shipped_configs_for_gpus_have_widths_that_kernels_are_made_for():
    widths = {}
    for path in (CONFIGS / "t2v_8gpu.yaml", *sorted((CONFIGS / "paper").glob("latte_*.yaml"))):
        sizes = load_settings(Experiment, path).ldm.dit.sizes
        widths[path.stem] = sizes["width"] // sizes["heads"]
    assert widths.pop("t2v_8gpu") in (64, 128)
    assert set(widths.values()) == {72}  # the paper's


def test_one_modulation_makes_a_third_of_the_largest_network_unnecessary():
    count = {}
    for modulation in ("block", "single"):
        depth, width, heads = SIZES["XL"]
        with torch.device("meta"):
            model = DiT(depth=depth, width=width, heads=heads, text_width=2048, modulation=modulation)
        count[modulation] = round(sum(p.numel() for p in model.parameters()) / 1e6)
    assert count == {"block": 938, "single": 615}
