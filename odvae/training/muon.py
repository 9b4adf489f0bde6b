"""Muon and AdaMuon: the direction of a weight matrix's step is its averaged gradient, orthogonalized.

Sources: Muon, Jordan et al. 2024 (kellerjordan.github.io/posts/muon); AdaMuon, Si et al. 2025 (arXiv 2507.11005); the
step's size, which lets learning rates of AdamW be kept, Liu et al. 2025 (arXiv 2502.16982). The steps are those of
timm's optimizers of the same names, taken in a precision that the device has, and for all matrices of a shape at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

# Each row's odd polynomial a x + b x^3 + c x^5 brings singular values nearer to 1 (github.com/KellerJordan/
# modded-nanogpt, train_gpt_medium.py). After all five they are between .85 and 1.15, from .002 of the norm on.
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
SMALLEST_NORM = 1e-7  # matrices below are not brought to norm 1, but multiplied by as much as one of this norm


class Muon(torch.optim.Optimizer):
    """Muon for weight matrices, AdamW for all other parameters.

    Args:
        momentum: decay of the averaged gradient of matrices.
        betas: decays of AdamW's two moments; the second is also that of AdaMuon's.
        nesterov: look one step ahead, with NAdamW in place of AdamW.
        adaptive: AdaMuon, which divides the orthogonalized direction by its own second moment.

    The kernels of convolutions are matrices (out, in * t * h * w). `is_matrix` says what is none. Under FSDP2 each rank
    gathers a matrix whole to orthogonalize it, and keeps its shard of the result.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-7,
        nesterov: bool = False,
        adaptive: bool = False,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "nesterov": nesterov, "adaptive": adaptive})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step along the gradients; parameters without one stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            others, matrices = [], defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None and is_matrix(parameter):
                    matrices[parameter.shape, parameter.dtype, parameter.device].append(parameter)
                elif parameter.grad is not None:
                    others.append(parameter)
            for alike in matrices.values():
                self._step_matrices(alike, group)
            if others:
                self._step_others(others, group)
        return loss

    def _step_matrices(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Parameters of one shape."""
        gradients = [parameter.grad for parameter in parameters]
        momenta, eps = self._moments(parameters, "momentum_buffer"), group["eps"]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        updates = orthogonalize_all(ahead)
        out, size = parameters[0].shape[0], parameters[0].numel()
        if group["adaptive"]:
            squares, beta = self._moments(parameters, "exp_avg_sq"), group["betas"][1]
            torch._foreach_mul_(squares, beta)
            torch._foreach_addcmul_(squares, updates, updates, 1 - beta)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, eps)
            torch._foreach_div_(updates, roots)
            shares = [(_whole(length) + eps).reciprocal() for length in torch._foreach_norm(updates)]
            self._decay(parameters, group)
            for parameter, update, share in zip(parameters, updates, shares, strict=True):
                parameter.addcmul_(update, share, value=-group["lr"] * 0.2 * math.sqrt(size))
        else:
            self._decay(parameters, group)
            torch._foreach_add_(parameters, updates, alpha=-group["lr"] * 0.2 * math.sqrt(max(out, size // out)))

    def _step_others(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """AdamW, or NAdamW as Dozat 2016 has it, without its schedule of momenta."""
        gradients = [parameter.grad for parameter in parameters]
        averages, squares = self._moments(parameters, "exp_avg"), self._moments(parameters, "exp_avg_sq")
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        steps = self._count(parameters)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [math.sqrt(1 - beta2**step) for step in steps])
        torch._foreach_add_(roots, group["eps"])
        ahead = torch._foreach_lerp(averages, gradients, 1 - beta1) if group["nesterov"] else averages
        self._decay(parameters, group)
        torch._foreach_addcdiv_(parameters, ahead, roots, [-group["lr"] / (1 - beta1**step) for step in steps])

    def _moments(self, parameters: Sequence[Tensor], name: str) -> list[Tensor]:
        """The named average of each parameter, from zero."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]

    def _count(self, parameters: Sequence[Tensor]) -> list[int]:
        """Count a step of each, and return how many it has made."""
        for parameter in parameters:
            state = self.state[parameter]
            state["step"] = state.get("step", torch.zeros(())) + 1  # on the CPU: nothing waits for it
        return [int(self.state[parameter]["step"]) for parameter in parameters]

    @staticmethod
    def _decay(parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon moves it: at least 4 rows and columns, one at most 128 times as many as the other, and no embedding
    or depthwise kernel (1, n, d), (c, 1, h, w).
    """
    shape = parameter.shape
    if parameter.ndim < 2 or 1 in shape[:2]:
        return False
    short, long = sorted((shape[0], shape[1:].numel()))
    return short >= 4 and long <= 128 * short


def inner_dtype(device: torch.device) -> torch.dtype:
    """bf16 on GPUs that compute in it; fp32 elsewhere: a CPU may only emulate bf16."""
    gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if gpu else torch.float32


def orthogonalize_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonalize` for each of some tensors of one shape, (out, ...), as a matrix."""
    stack = torch.stack([_whole(tensor).flatten(1) for tensor in tensors])  # (k, out, in)
    whole = orthogonalize(stack.to(inner_dtype(stack.device))).to(stack.dtype)
    return [_sharded_like(tensor, new.reshape(tensor.shape)) for tensor, new in zip(tensors, whole, strict=True)]


def orthogonalize(x: Tensor) -> Tensor:
    """Matrices (k, m, n) -> those with the same singular vectors and singular values near 1, by Newton-Schulz steps."""
    if x.shape[1] > x.shape[2]:
        return orthogonalize(x.mT).mT
    if x.dtype == torch.float32 and x.shape[2] > 1.5 * x.shape[1]:
        return _orthogonalize_by_gram(x)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT  # (k, m, m)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _orthogonalize_by_gram(x: Tensor) -> Tensor:
    """The same for wide matrices with half the work, for each step is a product with a polynomial p of the Gram matrix:
    x <- p x, gram <- p gram p. Rounding in bf16 would spoil it.
    """
    gram, product = x @ x.mT, None  # (k, m, m)
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1).sqrt().clamp(min=SMALLEST_NORM)
    gram = gram / norm.square()
    for step, (a, b, c) in enumerate(COEFFICIENTS, start=1):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else p @ product
        if step < len(COEFFICIENTS):
            gram = p @ gram @ p
    assert product is not None
    return (product / norm) @ x


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_like(tensor: Tensor, whole: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return whole
    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
