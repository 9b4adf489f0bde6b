"""What torch.compile gets of a residual block in training: norm, SiLU, padding in parts it can fuse, in one layout.

Only the front end and the differentiation run (AOTAutograd, with inductor's decompositions), so no compiler is needed.
"""

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from ldm.planning.fake_device import layout_of_cudnn
from odvae.architecture import layers

WIDTH, FRAMES, SIZE = 16, 5, 8


class AsTraced(torch.fx.Interpreter):
    """Runs a graph, traced with the convolutions of a GPU, with those of this CPU, whose results may lie otherwise."""

    def call_function(self, target, args, kwargs):
        result = super().call_function(target, args, kwargs)
        return torch.utils._pytree.tree_map(_channels_last, result) if "convolution" in str(target) else result


def _channels_last(x):
    return x.contiguous(memory_format=torch.channels_last_3d) if x is not None and x.ndim == 5 else x


@pytest.fixture(scope="module")
def graphs():
    """Of a block with causal 3D convolutions under bf16 autocast: (the forward graph, the backward graph)."""
    found = []

    def keep(graph, _inputs):
        found.append(graph)
        return make_boxed_func(AsTraced(graph).run)

    def as_cuda_reads(x):
        return x.to(torch.float32, memory_format=torch.contiguous_format)

    torch._dynamo.reset()
    torch.manual_seed(0)
    block = layers.ResnetBlock(WIDTH, WIDTH, 4, (True, True), over_time=False)
    layers.keep_channels_last(block)
    block.compile(
        backend=aot_autograd(
            fw_compiler=keep,
            bw_compiler=keep,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        ),
        dynamic=False,
    )
    x = torch.randn(2, WIDTH, FRAMES, SIZE, SIZE).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(layers, "_as_group_norm_reads", as_cuda_reads)
        patch.setattr(torch._C, "_conv_determine_backend_memory_format", layout_of_cudnn)
        block(x.requires_grad_()).float().sum().backward()
    yield found
    torch._dynamo.reset()


def activations(nodes):
    """The values of nodes that are as large as the block's input or larger."""
    values = [node.meta["val"] for node in nodes if isinstance(node, torch.fx.Node)]
    return [
        value for value in values if isinstance(value, torch.Tensor) and value.numel() >= 2 * WIDTH * FRAMES * SIZE**2
    ]


def is_channels_last(value):
    return value.is_contiguous(memory_format=torch.channels_last_3d if value.ndim == 5 else torch.channels_last)


def test_norm_and_silu_are_parts_that_the_compiler_fuses(graphs):
    forward, backward = ({str(node.target) for node in graph.graph.nodes} for graph in graphs)
    assert "aten.convolution.default" in forward
    assert "aten.convolution_backward.default" in backward
    for operations in (forward, backward):
        assert not [name for name in operations if "group_norm" in name or "silu" in name]


def test_convolutions_get_channels_last_inputs(graphs):
    forward, _ = graphs
    read = [node.args[0] for node in forward.graph.nodes if node.target == torch.ops.aten.convolution.default]
    assert len(activations(read)) == 2
    assert all(is_channels_last(value) for value in activations(read))


def test_what_is_kept_for_the_backward_pass_is_in_16_bits_and_channels_last(graphs):
    """The inputs of both norms, and those of both convolutions: what norm and SiLU return is computed again."""
    forward, backward = graphs
    (output,) = (node for node in forward.graph.nodes if node.op == "output")
    kept = activations(output.args[0][1:])
    assert len(kept) == 4
    assert {value.dtype for value in kept} == {torch.bfloat16}
    assert all(is_channels_last(value) for value in kept), [value.stride() for value in kept]
    received = activations(node for node in backward.graph.nodes if node.op == "placeholder")
    assert len(received) == 5  # and the gradient
    assert all(is_channels_last(value) for value in received)
