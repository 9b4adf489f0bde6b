"""Muon and AdaMuon optimizers: the update of a weight matrix is its orthogonalized momentum.

Sources: Muon, Jordan et al. 2024 (kellerjordan.github.io/posts/muon); AdaMuon, Si et al. 2025 (arXiv 2507.11005); the
size of the update, for which AdamW's learning rates can be kept, Liu et al. 2025 (arXiv 2502.16982). The updates are
those of timm's optimizers with the same names, but are computed in a precision that the device supports natively, and
for all matrices of the same shape at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

# The odd polynomial a x + b x^3 + c x^5 of each row moves singular values towards 1 (github.com/KellerJordan/
# modded-nanogpt, train_gpt_medium.py). After all five, those that were at least .002 of the norm are between .85 and
# 1.15.
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
SMALLEST_NORM = 1e-7  # lower bound of the norm by which matrices are divided


class Muon(torch.optim.Optimizer):
    """Muon for weight matrices, AdamW for all other parameters.

    Args:
        momentum: decay of the momentum of matrices.
        betas: decays of AdamW's two moments; the second is also that of AdaMuon's second moment.
        nesterov: Nesterov momentum, with NAdamW in place of AdamW.
        adaptive: AdaMuon, which divides the orthogonalized update by the root of its second moment.

    Kernels of convolutions are matrices (out, in * t * h * w); see `is_matrix` for exceptions. Under FSDP2 each rank
    gathers the full matrix to orthogonalize it, and keeps its shard of the result.
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
        self._stacks: dict[tuple[int, str], tuple[Tensor, Sequence[Tensor]]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices, others = defaultdict(list), defaultdict(list)  # by shape: one operation for many parameters
            for parameter in group["params"]:
                if parameter.grad is not None and is_matrix(parameter):
                    matrices[parameter.shape, parameter.dtype, parameter.device].append(parameter)
                elif parameter.grad is not None:
                    step = self._count_step(parameter)
                    others[parameter.shape, parameter.dtype, parameter.device, step].append(parameter)
            for alike in matrices.values():
                self._step_matrices(alike, group)
            for (*_, step), alike in others.items():
                self._step_others(alike, step, group)
        return loss

    def _step_matrices(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Muon or AdaMuon update of matrices of the same shape."""
        gradients = torch.stack([_gradient(parameter) for parameter in parameters])  # (k, out, ...)
        momenta = self._moments(parameters, "momentum_buffer")
        momenta.lerp_(gradients, 1 - group["momentum"])
        ahead = gradients.lerp_(momenta, group["momentum"]) if group["nesterov"] else momenta
        updates = orthogonalize_kernels(ahead)
        out, size = parameters[0].shape[0], parameters[0].numel()
        length = 0.2 * math.sqrt(max(out, size // out))
        if group["adaptive"]:
            squares, beta = self._moments(parameters, "exp_avg_sq"), group["betas"][1]
            squares.mul_(beta).addcmul_(updates, updates, value=1 - beta)
            updates = updates / squares.sqrt().add_(group["eps"])
            norms = torch.linalg.vector_norm(updates, dim=tuple(range(1, updates.ndim)), keepdim=True)
            updates, length = updates / (norms + group["eps"]), 0.2 * math.sqrt(size)
        self._move(parameters, updates, length, group)

    def _step_others(self, parameters: list[nn.Parameter], step: int, group: dict[str, Any]) -> None:
        """AdamW update, or NAdamW (Dozat 2016, without the momentum schedule), of parameters of the same shape.

        `step` is the number of this step (counted from 1), the same for all of them.
        """
        gradients = torch.stack([_gradient(parameter) for parameter in parameters])  # (k, ...)
        averages, squares = self._moments(parameters, "exp_avg"), self._moments(parameters, "exp_avg_sq")
        beta1, beta2 = group["betas"]
        averages.lerp_(gradients, 1 - beta1)
        squares.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        roots = squares.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        ahead = gradients.lerp_(averages, beta1) if group["nesterov"] else averages
        self._move(parameters, ahead / roots, 1 / (1 - beta1**step), group)

    def _moments(self, parameters: Sequence[Tensor], name: str) -> Tensor:
        """The named moment of parameters of the same shape, stacked (k, ...); initially zero.

        The state of each parameter is a view of the stack. If it is not, because a checkpoint was loaded or other
        parameters had gradients, the stack is created again from the state.
        """
        key, states = (id(parameters[0]), name), [self.state[parameter] for parameter in parameters]
        stack, views = self._stacks.get(key, (None, ()))
        if stack is None or [id(view) for view in views] != [id(state.get(name)) for state in states]:
            moments = [
                state[name] if name in state else torch.zeros_like(parameter)
                for state, parameter in zip(states, parameters, strict=True)
            ]
            stack = torch.stack(moments)
            views = stack.unbind()
            self._stacks[key] = stack, views
            for state, view in zip(states, views, strict=True):
                state[name] = view
        return stack

    def _count_step(self, parameter: Tensor) -> int:
        """The number of this step for the parameter (counted from 1)."""
        state = self.state[parameter]
        state["step"] = state.get("step", torch.zeros(())) + 1  # on the CPU, so that reading it does not synchronize
        return int(state["step"])

    @staticmethod
    def _move(parameters: list[nn.Parameter], updates: Tensor, length: float, group: dict[str, Any]) -> None:
        """Apply weight decay, then add -lr * length * updates (k, ...) to the parameters."""
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"] * length)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon updates a parameter: a matrix with at least 4 rows and columns, neither number more than 128 times
    the other, that is not a position embedding or depthwise kernel, (1, n, d) or (c, 1, h, w).
    """
    shape = parameter.shape
    if parameter.ndim < 2 or 1 in shape[:2]:
        return False
    short, long = sorted((shape[0], shape[1:].numel()))
    return short >= 4 and long <= 128 * short


def inner_dtype(device: torch.device) -> torch.dtype:
    """bf16 on GPUs and CPUs with native bf16, where it is several times faster than fp32; otherwise fp32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if native else torch.float32


def orthogonalize_kernels(kernels: Tensor) -> Tensor:
    """`orthogonalize` for kernels (k, out, ...), each taken as a matrix (out, in * t * h * w)."""
    matrices = _whole(kernels).flatten(2)  # (k, out, in)
    result = orthogonalize(matrices.to(inner_dtype(matrices.device))).to(kernels.dtype)
    return _sharded_like(kernels, result.view(kernels.shape))


def orthogonalize(x: Tensor) -> Tensor:
    """Orthogonalize matrices (k, m, n) by Newton-Schulz steps: same singular vectors, singular values near 1."""
    tall = x.shape[1] > x.shape[2]
    if x.dtype == torch.float32 and max(x.shape[1:]) > 1.5 * min(x.shape[1:]):
        return _orthogonalize_by_gram(x, tall)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for a, b, c in COEFFICIENTS:
        gram = x.mT @ x if tall else x @ x.mT  # on the shorter side
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, p, beta=a) if tall else torch.baddbmm(x, p, x, beta=a)
    return x


def _orthogonalize_by_gram(x: Tensor, tall: bool) -> Tensor:
    """`orthogonalize` for matrices that are far from square, with half the computation: each step multiplies by a
    polynomial p of the Gram matrix, x <- p x and gram <- p gram p. In bf16 the rounding errors would be too large.
    """
    gram, product = x.mT @ x if tall else x @ x.mT, None  # on the shorter side
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1).sqrt().clamp(min=SMALLEST_NORM)
    gram = gram / norm.square()
    for step, (a, b, c) in enumerate(COEFFICIENTS, start=1):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else p @ product
        if step < len(COEFFICIENTS):
            gram = p @ gram @ p
    assert product is not None
    return x @ (product / norm) if tall else (product / norm) @ x


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _sharded_like(tensor: Tensor, whole: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return whole
    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
