"""Backward passes in Python: torch's engine, in C++, refuses gradients of CUDA tensors on a machine without CUDA.

Each node of the graph computes its gradients with torch's own formulas; only their order, the sums of gradients and the
release of saved tensors are decided here, as the engine decides them.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge, saved_tensors_hooks

# Called with each parameter's gradient after it was set or added to.
GradientSeen = Callable[[Tensor], None]


class _Saved:
    """A tensor that a node saved for its backward pass; the node cannot be asked to forget it, but this can."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor


class PythonBackward:
    """Replaces the engine within `installed()`."""

    def __init__(self, gradient_seen: GradientSeen = lambda _: None) -> None:
        self.gradient_seen = gradient_seen
        self._unpacked: list[_Saved] = []  # by the node that runs
        self._passes = itertools.count(1)
        self._current_pass = -1

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        with (
            mock.patch.object(torch.autograd, "_engine_run_backward", self.run),
            mock.patch.object(torch._C, "_current_graph_task_id", self._number_of_pass),
            saved_tensors_hooks(_Saved, self._unpack),
        ):
            yield

    def _number_of_pass(self) -> int:
        """Activation checkpointing recomputes once for each number."""
        return self._current_pass

    def _unpack(self, saved: _Saved) -> Tensor:
        assert saved.tensor is not None, "a graph was used twice without retain_graph"
        self._unpacked.append(saved)
        return saved.tensor

    def run(
        self,
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        retain_graph: bool,
        create_graph: bool,
        inputs: Sequence[Tensor],
        allow_unreachable: bool = True,
        accumulate_grad: bool = False,
    ) -> tuple[Tensor | None, ...]:
        """`torch.autograd.graph._engine_run_backward`, without second derivatives."""
        assert not create_graph, "second derivatives are not needed in any training step"
        wanted = {get_gradient_edge(tensor)[:2]: i for i, tensor in enumerate(inputs)}
        captured: list[Tensor | None] = [None] * len(inputs)
        roots = [get_gradient_edge(tensor)[:2] for tensor in outputs]
        before, self._current_pass = self._current_pass, next(self._passes)
        try:
            with torch.no_grad():
                self._walk(roots, gradients, wanted, captured, retain_graph)
        finally:
            self._current_pass = before
        if accumulate_grad:
            for tensor, gradient in zip(inputs, captured, strict=True):
                self._accumulate(tensor, gradient)
            return ()
        return tuple(captured)

    def _walk(
        self,
        roots: Sequence[tuple[Node, int]],
        gradients: Sequence[Tensor | None],
        wanted: dict[tuple[Node, int], int],
        captured: list[Tensor | None],
        retain_graph: bool,
    ) -> None:
        needed, uses = _needed_nodes([node for node, _ in roots], {node for node, _ in wanted})
        buffers: dict[Node, list[Tensor | None]] = {}
        for (node, index), gradient in zip(roots, gradients, strict=True):
            _add(buffers, node, index, gradient)
        ready = [(-_order(node), i, node) for i, node in enumerate({node for node, _ in roots}) if not uses.get(node)]
        heapq.heapify(ready)
        ties = itertools.count(len(ready))
        while ready:
            _, _, node = heapq.heappop(ready)
            incoming = buffers.pop(node, [])
            for index, gradient in enumerate(incoming):
                if (node, index) in wanted:
                    captured[wanted[node, index]] = gradient
            outgoing = self._apply(node, incoming, wanted, retain_graph)
            del incoming
            for (following, index), gradient in itertools.zip_longest(node.next_functions, outgoing):
                if following not in needed:
                    continue
                _add(buffers, following, index, gradient)
                uses[following] -= 1
                if not uses[following]:
                    heapq.heappush(ready, (-_order(following), next(ties), following))
            del outgoing

    def _apply(
        self, node: Node, incoming: list[Tensor | None], wanted: dict[tuple[Node, int], int], retain_graph: bool
    ) -> Sequence[Tensor | None]:
        """The node's gradients with respect to its inputs; those of a leaf are added to its `grad`."""
        if hasattr(node, "variable"):
            if (node, 0) not in wanted and not wanted:
                self._accumulate(node.variable, incoming[0])
            return ()
        if all(gradient is None for gradient in incoming):
            return [None] * len(node.next_functions)
        self._unpacked = []
        outgoing = node.apply(*incoming) if isinstance(node, BackwardCFunction) else node(*_padded(node, incoming))
        if not retain_graph:
            for saved in self._unpacked:
                saved.tensor = None
        self._unpacked = []
        return outgoing if isinstance(outgoing, tuple) else (outgoing,)

    def _accumulate(self, leaf: Tensor, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        if leaf.grad is None:
            leaf.grad = gradient.detach()
        else:
            leaf.grad.add_(gradient)
        self.gradient_seen(leaf)


def _needed_nodes(roots: Sequence[Node], targets: set[Node]) -> tuple[set[Node], dict[Node, int]]:
    """Nodes on the way to the targets (without any: all), and how often each receives a gradient."""
    order, seen, stack = [], set(), [(node, False) for node in roots]
    while stack:  # depth first, each node after those that it passes gradients to
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    needed: set[Node] = set()
    for node in order:
        if not targets or node in targets or any(following in needed for following, _ in node.next_functions):
            needed.add(node)
    uses: dict[Node, int] = {}
    for node in needed:
        for following, _ in node.next_functions:
            if following in needed:
                uses[following] = uses.get(following, 0) + 1
    return needed, uses


def _order(node: Node) -> int:
    """Nodes made later go first, and gradients are added to leaves at once, as in the engine."""
    return node._sequence_nr()


def _padded(node: Node, incoming: list[Tensor | None]) -> list[Tensor | None]:
    return incoming + [None] * (len(node._input_metadata) - len(incoming))


def _add(buffers: dict[Node, list[Tensor | None]], node: Node, index: int, gradient: Tensor | None) -> None:
    """Add a gradient to those that a node has received, in the node's dtype and shape."""
    received = buffers.setdefault(node, [])
    received += [None] * (index + 1 - len(received))
    if gradient is None:
        return
    expected = node._input_metadata[index]
    if gradient.dtype != expected.dtype:
        gradient = gradient.to(expected.dtype)
    if gradient.shape != expected.shape:
        gradient = gradient.sum_to_size(expected.shape)
    present = received[index]
    received[index] = gradient if present is None else present + gradient
