"""Fake tensors on a device that need not be there: code runs on their shapes, dtypes, layouts and devices; no value
exists.

torch's FakeTensorMode does most of it. What else code for a GPU needs, and a machine without one refuses, is replaced
within `fake_device`: backward passes, autocast, the layout of what convolutions return, attention's choice of a kernel,
generators, the device of accelerate.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from ldm.diffusion.timesteps import _alphas_on
from ldm.planning.host_syncs import RehearsalError
from ldm.planning.python_backward import GradientSeen, PythonBackward
from ldm.sampling.schedulers import schedule_steps
from odvae.lpips import load_lpips

CUDA = torch.device("cuda:0")
ATEN = torch.ops.aten

P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def fake_device(device: torch.device = CUDA, gradient_seen: GradientSeen = lambda _: None) -> Iterator[None]:
    """Within it, tensors are fake ones, and accelerate's device is `device`, a GPU with bf16 by default.

    Modules that are trained must be created within `device`: to move a fake parameter makes a new one. `gradient_seen`
    is called with each parameter when a gradient is added to it.
    """
    random_tensor = {"odvae.running.seeds.torch_generator": lambda *_: None}  # generators hold the device's state
    no_waiting = {"odvae.evaluation.reconstruction.now": lambda _: 0.0}
    schedules = {"ldm.sampling.schedulers.schedule_steps": with_values(schedule_steps)}
    no_weights = {"odvae.lpips._load_backbone": lambda *_: None}
    # Caches of their own, so that no fake tensor stays in the process's.
    networks = functools.cache(load_lpips.__wrapped__)
    caches = {f"odvae.{module}.load_lpips": networks for module in ("losses", "metrics")}
    caches["ldm.diffusion.timesteps._alphas_on"] = functools.cache(_alphas_on.__wrapped__)
    bf16 = {
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.is_bf16_supported": lambda **_: True,
    }
    layouts = {"torch._C._conv_determine_backend_memory_format": layout_of_cudnn}
    replaced = random_tensor | no_waiting | schedules | no_weights | caches | bf16 | layouts
    with contextlib.ExitStack() as stack:
        for name, replacement in replaced.items():
            stack.enter_context(mock.patch(name, replacement))
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _convert))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", fused_attention))
        stack.enter_context(_accelerate_on(device))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))  # constants and schedules, on the CPU
        stack.enter_context(PythonBackward(gradient_seen).installed())
        yield


def with_values(function: Callable[P, T]) -> Callable[P, T]:
    """The function with true tensors, on the CPU: schedules are computed with numpy."""

    @functools.wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> T:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return computed


def layout_of_cudnn(x: Tensor, weight: Tensor, _backend: object = None) -> torch.memory_format:
    """The layout of what a convolution by cuDNN returns: channels-last where its input or its weight is.

    FakeTensorMode asks which library would compute it here, and a CPU without bf16 arithmetic returns it contiguous.
    """
    layouts = {suggest_memory_format(x), suggest_memory_format(weight)} - {torch.contiguous_format}
    return layouts.pop() if layouts else torch.contiguous_format


def _convert(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply`, which cannot exchange the data of fake parameters."""
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():
            if parameter is not None and (changed := change(parameter.detach())) is not parameter:
                same = changed.device == parameter.device and changed.dtype == parameter.dtype
                part._parameters[name] = parameter if same else nn.Parameter(changed, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = change(buffer)
    return module


@contextlib.contextmanager
def _accelerate_on(device: torch.device) -> Iterator[None]:
    """Within it, accelerate's one process computes on `device`, and its precision may be chosen anew."""
    PartialState()
    states: Sequence[Any] = (PartialState._shared_state, AcceleratorState._shared_state)
    before = [dict(state) for state in states]
    PartialState._shared_state["device"] = device
    AcceleratorState._shared_state.clear()
    try:
        yield
    finally:
        for state, values in zip(states, before, strict=True):
            state.clear()
            state.update(values)


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's attention by the kernel that it chooses on a GPU of compute capability 8.0 or more, of those that are
    enabled (`torch.nn.attention.sdpa_kernel`).

    Without a GPU it would choose the one that stores all attention weights. Half precision without a mask, heads of at
    most 256: FlashAttention; else the memory-efficient kernel. Raises RehearsalError where no kernel that is
    enabled computes it.
    """
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    assert query.dtype == key.dtype == value.dtype, "attention needs query, key and value of one dtype"
    half = query.dtype in (torch.bfloat16, torch.float16)
    options = {} if scale is None else {"scale": scale}
    enabled = torch.backends.cuda
    if enabled.flash_sdp_enabled() and half and attn_mask is None and query.shape[-1] <= 256:
        return ATEN._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, **options)[0]
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    bias = None
    if attn_mask is not None:
        shape = (*query.shape[:-1], key.shape[-2])
        bias = torch.zeros_like(attn_mask, dtype=query.dtype) if attn_mask.dtype == torch.bool else attn_mask
        bias = bias.to(query.dtype).expand(shape)
    if enabled.mem_efficient_sdp_enabled():
        return ATEN._scaled_dot_product_efficient_attention(
            query, key, value, bias, needs_gradient, dropout_p, is_causal, **options
        )[0]
    if enabled.cudnn_sdp_enabled() and half:
        return ATEN._scaled_dot_product_cudnn_attention(
            query, key, value, bias, needs_gradient, dropout_p, is_causal, False, **options
        )[0]
    if enabled.math_sdp_enabled():
        return ATEN._scaled_dot_product_attention_math(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]
    raise RehearsalError(
        f"attention_backend: FlashAttention and cuDNN compute attention in half precision, found {query.dtype} (set "
        "precision=bf16), and FlashAttention heads of at most 256, found "
        f"{query.shape[-1]}; allowed here: sdpa, efficient, math"
    )
