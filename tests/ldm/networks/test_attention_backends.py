"""Back ends of attention: the kernel that is named computes the same, or is refused with what is allowed here."""

import contextlib
from collections import Counter

import pytest
import torch
from small_networks import awake, make_dit, make_unet
from torch.nn import attention
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.networks import attention_backends
from ldm.networks.attention_backends import AttentionCall, attention_calls, check_backend, use_backend
from ldm.networks.conditioning import example_condition
from ldm.networks.network import predict
from ldm.networks.settings import AttentionBackend
from odvae.running.errors import InputError
from odvae.training.recomputation import enable_checkpointing

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = (4, 3, 4, 4)
MAKE = {
    "DiT": lambda: awake(make_dit()),
    "factorized DiT": lambda: awake(make_dit(attention="factorized")),
    "UNet": make_unet,
}
every_network = pytest.mark.parametrize("name", MAKE)
KERNEL_OF = {"flash": "_scaled_dot_product_flash_attention_for_cpu", "math": "_safe_softmax"}  # of torch, on a CPU


class Operations(TorchDispatchMode):
    """Counts the operations within it."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


def prediction(network, device=CPU):
    generator = torch.Generator().manual_seed(3)
    latents, time = torch.randn(2, *SHAPE, generator=generator), torch.rand(2, generator=generator)
    condition = example_condition(network, 2, SHAPE).map(lambda part: part.to(device))
    return predict(network, latents.to(device), time.to(device), condition)


def check(backend, network, device=CPU, dtype=torch.float32):
    return check_backend("ldm.attention_backend", backend, network, [(2, SHAPE)], device, dtype, gradients=True)


@every_network
@pytest.mark.parametrize("backend", KERNEL_OF)
def test_the_kernel_that_is_named_computes_the_same_and_no_other_does(name, backend):
    network = MAKE[name]()
    expected = prediction(network)
    check(backend, network)
    use_backend(network, backend)
    with Operations() as operations:
        found = prediction(network)
    assert torch.allclose(found, expected, atol=1e-5)
    other = next(kernel for key, kernel in KERNEL_OF.items() if key != backend)
    assert operations.counts[KERNEL_OF[backend]] > 0
    # FlashAttention takes no mask, so torch chooses the kernel of a DiT's attention to text: here FlashAttention too.
    assert operations.counts[other] == 0
    use_backend(network, "sdpa")
    assert torch.equal(prediction(network), expected)


def test_recomputed_blocks_use_the_same_kernel_in_the_backward_pass():
    network = MAKE["DiT"]()
    use_backend(network, "math")
    enable_checkpointing(network, True)
    loss = prediction(network.train()).square().sum()
    with Operations() as operations:
        loss.backward()
    assert operations.counts["_safe_softmax"] == 2 * network.config.depth  # self-attention and attention to text
    assert operations.counts[KERNEL_OF["flash"]] == 0


def test_a_compiled_block_with_a_kernel_of_its_own_has_one_graph():
    network = MAKE["DiT"]()
    expected = prediction(network)
    use_backend(network, "flash")
    network.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert torch.allclose(prediction(network), expected, atol=1e-6)


def test_the_attentions_of_a_network_are_known_before_it_computes_any():
    factorized = make_dit(attention="factorized")  # two heads, 16 wide
    tokens = {"queries": (2, 2, 12, 16), "space": (6, 2, 4, 16), "time": (8, 2, 3, 16)}
    text = factorized.config.text_tokens
    assert set(attention_calls(factorized, [(2, SHAPE)])) == {
        AttentionCall(tokens["queries"], text, masked=True),
        AttentionCall(tokens["space"], 4, masked=False),
        AttentionCall(tokens["time"], 3, masked=False),
    }
    assert not any(call.masked for call in attention_calls(make_unet(), [(2, SHAPE)]))


@every_network
@pytest.mark.parametrize("backend", ["efficient", "cudnn"])
def test_a_kernel_that_cannot_compute_the_shapes_here_is_refused_with_what_is_allowed(name, backend):
    message = (
        rf"^ldm\.attention_backend={backend} cannot be used on cpu for \d+ x \d+ heads \d+ wide, .* float32: "
        r".*; allowed here: sdpa, flash, math$"
    )
    with pytest.raises(InputError, match=message):
        check(backend, MAKE[name]())


@pytest.mark.parametrize("backend", ["flash3", "flash4", "xformers"])
def test_kernels_for_gpus_alone_are_refused_without_one(backend):
    message = f"={backend} cannot be used on cpu: it needs a CUDA device, found cpu; allowed here: sdpa, flash, math"
    with pytest.raises(InputError, match=message):
        check(backend, make_dit())


def test_attention_to_text_that_flash_attention_leaves_to_torch_is_said():
    assert "takes no mask" in check("flash", make_dit())
    assert check("flash", make_dit(text_width=None)) is None
    assert check("math", make_dit()) is None


def test_flash_attention_3_is_activated_for_the_process_and_replaced_by_torchs_own_again(monkeypatch):
    if not hasattr(attention, "activate_flash_attention_impl"):
        pytest.skip("this torch cannot exchange its FlashAttention")
    events = []

    class Handle:
        def remove(self):
            events.append("removed")

    def activate():
        events.append("activated")
        return Handle()

    monkeypatch.setitem(attention._registry._FLASH_ATTENTION_IMPLS, "FA3", activate)
    for backend in ("flash3", "flash3", "cudnn", "flash"):
        attention_backends._activate(backend)
    assert events == ["activated", "removed"]
    assert attention.current_flash_attention_impl() is None


def test_a_flash_attention_that_is_not_installed_is_named():
    if not hasattr(attention, "activate_flash_attention_impl"):
        pytest.skip("this torch cannot exchange its FlashAttention")
    reason = attention_backends._why_not("flash3", None, CUDA, torch.bfloat16, True)
    assert "flash_attn_interface" in reason


def test_a_network_from_outside_has_no_choice():
    use_backend(torch.nn.Linear(2, 2), "sdpa")
    with pytest.raises(InputError, match="attention_backend=flash: Linear has no choice of back ends; use sdpa"):
        use_backend(torch.nn.Linear(2, 2), "flash")


@pytest.mark.gpu
@every_network
def test_every_kernel_of_a_gpu_computes_the_same_or_is_refused(name):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    network = MAKE[name]().to(CUDA)
    expected, used = prediction(network, CUDA), []
    for backend in AttentionBackend.__args__:
        with contextlib.suppress(InputError):
            check(backend, network, CUDA, torch.bfloat16)
            used.append(backend)
        if backend not in used:
            continue
        use_backend(network, backend)
        with torch.autocast("cuda", torch.bfloat16):
            assert torch.allclose(prediction(network, CUDA), expected, atol=0.05)
    assert {"sdpa", "flash", "efficient", "math"} <= {*used}
