"""Kernels that compute attention: the one that torch chooses, one of torch's by name, or xformers'.

A kernel that cannot be used is an error before the work begins: it is tried out in the shapes of that work.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import attention as torch_attention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ldm.networks.conditioning import example_condition
from ldm.networks.network import without_weights
from ldm.networks.settings import AttentionBackend
from odvae.running.commands import install_extra
from odvae.running.errors import InputError

# torch's kernels. FlashAttention 3 and 4 take the place of torch's own, FlashAttention 2, once they are activated.
KERNELS: dict[AttentionBackend, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "flash3": SDPBackend.FLASH_ATTENTION,
    "flash4": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# FlashAttention takes no mask.
WITHOUT_MASK: tuple[AttentionBackend, ...] = ("flash", "flash3", "flash4")
# torch's names of the implementations that it does not bring itself.
IMPLEMENTATIONS: dict[AttentionBackend, str] = {"flash3": "FA3", "flash4": "FA4"}
# Numbers of samples and shapes (c, t, h, w) of the latents that a network is called with.
Shapes = Sequence[tuple[int, tuple[int, int, int, int]]]
# Names in diffusers' `set_attention_backend`.
DIFFUSERS_NAMES: dict[str, AttentionBackend] = {
    "native": "sdpa",
    "_native_flash": "flash",
    "_native_cudnn": "cudnn",
    "_native_efficient": "efficient",
    "_native_math": "math",
    "_flash_3": "flash3",
    "xformers": "xformers",
}


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, backend: AttentionBackend) -> Tensor:
    """softmax(q k^T / sqrt(d)) v. q (b, heads, n, d), k and v (b, heads, m, d), mask (b, m) bool -> like q.

    With a mask, torch chooses in place of a back end that takes none.
    """
    if backend == "xformers":
        return _attend_xformers(q, k, v, mask)
    if mask is None:
        with attention_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)
    with attention_kernel("sdpa" if backend in WITHOUT_MASK else backend):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])


def attention_kernel(backend: AttentionBackend) -> contextlib.AbstractContextManager:
    """Within it, torch computes attention by this kernel alone; sdpa and xformers: by any."""
    return sdpa_kernel(KERNELS[backend]) if backend in KERNELS else contextlib.nullcontext()


def _attend_xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast, qk-norm returns fp32
    bias = None
    if mask is not None:  # xformers' kernels need the bias in memory padded to a multiple of eight keys
        b, m = mask.shape
        padded = torch.zeros(b, 1, 1, -(-m // 8) * 8, dtype=q.dtype, device=q.device)
        padded[..., :m].masked_fill_(~mask[:, None, None, :], float("-inf"))
        bias = padded.expand(b, q.shape[1], q.shape[2], -1)[..., :m]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (b, n, heads, d)
    return memory_efficient_attention(q, k, v, attn_bias=bias).transpose(1, 2)


class HasAttention:
    """A module that computes attention by `backend`, or within whose `forward` it is so computed."""

    backend: AttentionBackend = "sdpa"


class AttentionBackendMixin:
    """diffusers' switch of the attention's back end, which would have no effect on the modules of these networks."""

    def set_attention_backend(self: Any, backend: str) -> None:
        """`backend` is one of diffusers' names in DIFFUSERS_NAMES, or one of the settings'. Raises InputError for
        others, and for one that cannot be used here: it is tried out on the network's device, in its dtype and its
        training's shape."""
        name: Any = DIFFUSERS_NAMES.get(backend, backend)
        if name not in get_args(AttentionBackend):
            allowed = dict.fromkeys((*DIFFUSERS_NAMES, *get_args(AttentionBackend)))
            raise InputError(f"attention back end {backend!r}: allowed are {', '.join(allowed)}")
        shape = (self.config.latent_channels, *self.config.sample_size)
        trains = any(parameter.requires_grad for parameter in self.parameters())
        check_backend("attention_backend", name, self, [(1, shape)], self.device, self.dtype, trains)
        use_backend(self, name)

    def reset_attention_backend(self) -> None:
        """Back to torch's choice."""
        self.set_attention_backend("native")


def use_backend(network: Any, backend: AttentionBackend) -> None:
    """Let a network compute its attention by this back end, which `check_backend` has accepted.

    Raises InputError for a network from outside this project that has no choice of back ends.
    """
    if not isinstance(network, AttentionBackendMixin):
        if backend == "sdpa":
            return
        raise InputError(f"attention_backend={backend}: {type(network).__name__} has no choice of back ends; use sdpa")
    model: Any = network
    if backend == "xformers":
        model.enable_xformers_memory_efficient_attention()
    else:
        model.disable_xformers_memory_efficient_attention()
    for module in model.modules():
        if isinstance(module, HasAttention):
            module.backend = backend


@dataclass(frozen=True)
class AttentionCall:
    """Shapes of one attention: query (b, heads, n, d), number of keys, whether some are masked."""

    query: tuple[int, ...]
    keys: int
    masked: bool

    def __str__(self) -> str:
        b, heads, n, d = self.query
        return f"{b} x {heads} heads {d} wide, {n} queries, {self.keys} keys{', a mask' if self.masked else ''}"

    def compute(self, backend: AttentionBackend, device: torch.device, dtype: torch.dtype, gradients: bool) -> None:
        """Compute such an attention of zeros and, if asked to, its gradients. Raises whatever the kernel does."""
        b, heads, _, d = self.query
        sizes = (self.query, (b, heads, self.keys, d), (b, heads, self.keys, d))
        q, k, v = (torch.zeros(size, dtype=dtype, device=device, requires_grad=gradients) for size in sizes)
        mask = torch.ones(b, self.keys, dtype=torch.bool, device=device) if self.masked else None
        with torch.set_grad_enabled(gradients):
            y = attend(q, k, v, mask, backend)
            if gradients:
                torch.autograd.grad(y, (q, k, v), torch.zeros_like(y))


class _Calls(TorchFunctionMode):
    """Records the shapes of torch's attention within it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[AttentionCall] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            masked = given.get("attn_mask") is not None
            self.found.add(AttentionCall(tuple(given["query"].shape), given["key"].shape[-2], masked))
        return func(*args, **kwargs)


def attention_calls(network: Any, shapes: Shapes) -> list[AttentionCall]:
    """The attentions that a network computes, the largest first; a copy without weights runs on meta tensors."""
    on_meta: Any = without_weights(network)
    with _Calls() as calls, torch.device("meta"), torch.no_grad():
        for b, shape in shapes:
            on_meta(torch.zeros(b, *shape), torch.zeros(b), example_condition(on_meta, b, shape))
    return sorted(calls.found, key=lambda call: (-math.prod(call.query), str(call)))


def check_backend(
    setting: str,
    backend: AttentionBackend,
    network: Any,
    shapes: Shapes,
    device: torch.device,
    dtype: torch.dtype,
    gradients: bool,
) -> str | None:
    """Activate a back end, and try it out on every attention that the network computes of latents of these shapes.

    Returns a line to print about attention that it does not compute, or None. Raises InputError, with the setting's
    name, what cannot be computed and what is allowed here, where it cannot be used.
    """
    if backend == "sdpa" or not isinstance(network, AttentionBackendMixin):
        return None  # torch's choice always computes; `use_backend` refuses others for such a network
    calls = attention_calls(network, shapes)
    for call in (None, *calls):  # None: whether it is there at all
        reason = _why_not(backend, call, device, dtype, gradients)
        if reason is not None:
            work = "" if call is None else f" for {call}, {str(dtype).removeprefix('torch.')}"
            allowed = [
                name
                for name in get_args(AttentionBackend)
                if name != backend and all(_why_not(name, x, device, dtype, gradients) is None for x in (None, *calls))
            ]
            _activate("flash")  # undoes FlashAttention 3 or 4, which may have been tried for the list
            raise InputError(
                f"{setting}={backend} cannot be used on {_name(device)}{work}: {reason}; allowed here: "
                f"{', '.join(allowed)}"
            )
    if backend in WITHOUT_MASK and any(call.masked for call in calls):
        return f"{setting}={backend}: it takes no mask, so torch chooses the kernel of the attention to text"
    return None


def _why_not(
    backend: AttentionBackend, call: AttentionCall | None, device: torch.device, dtype: torch.dtype, gradients: bool
) -> str | None:
    """Why a back end cannot compute this, or None; without a call, why it is not there at all."""
    with warnings.catch_warnings(record=True) as said:  # torch's reasons
        warnings.simplefilter("always")
        try:
            if call is None:
                if backend in ("xformers", *IMPLEMENTATIONS) and device.type != "cuda":
                    return f"it needs a CUDA device, found {device.type}"
                if backend == "xformers" and importlib.util.find_spec("xformers") is None:
                    return f"xformers is not installed; {install_extra('xformers')}"
                _activate(backend)
            elif backend not in ("sdpa", "math"):  # these compute everything
                call.compute(backend, device, dtype, gradients)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError, ValueError) as error:
            reasons = [str(warning.message).split(" (Triggered")[0] for warning in said] or [str(error)]
            return " ".join(reason.split("\n")[0].rstrip(".") for reason in reasons)
    return None


def _activate(backend: AttentionBackend) -> None:
    """Make FlashAttention 3 or 4 torch's in this process, or its own again. Raises what torch does where it is missing.

    Other back ends are there already.
    """
    if backend not in WITHOUT_MASK:
        return
    wanted = IMPLEMENTATIONS.get(backend)
    if not hasattr(torch_attention, "activate_flash_attention_impl"):
        if wanted is not None:
            raise RuntimeError(f"torch {torch.__version__} cannot exchange its FlashAttention; update torch")
    elif wanted != torch_attention.current_flash_attention_impl():
        if wanted is None:
            torch_attention.restore_flash_attention_impl()
        else:
            torch_attention.activate_flash_attention_impl(wanted)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
