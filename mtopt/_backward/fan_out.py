"""Aliases of one activation, whose backward receives all rows at once; compiled, as one operator. Combines nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .._combine.pipeline import Pipeline
from .._torch import node_type, opaque_operator
from .._transform import Losses


class Layer(Protocol):
    """What a fan-out needs of its layer."""

    losses: Losses
    pipeline: Pipeline

    def combine(
        self, rows: Sequence[Tensor | None], activation: Tensor | None, made_by: int | None = None
    ) -> Tensor | None: ...


COMBINED_ALREADY = (
    "The model has a MultiLossLayer, which combines the gradients itself, so that the optimizer's `transforms` would "
    "find them already combined. Give `transforms=[]` to the optimizer, or take out the layer."
)

_layers: WeakValueDictionary[int, Layer] = WeakValueDictionary()
_keys = count()


def register(layer: Layer) -> int:
    """A number by which the operator finds the layer."""
    key = next(_keys)
    _layers[key] = layer
    return key


_refusing: list[int] = []  # threads whose backward refuses layers


def maker() -> int | None:
    """The thread that runs a forward; None for those of autograd, which recompute checkpoints of all others."""
    return None if isinstance(threading.current_thread(), threading._DummyThread) else threading.get_ident()


@contextmanager
def hidden_layers_refused() -> Iterator[None]:
    """While active, this thread's layers raise: those that a compiled or a checkpointed region hides from the walk."""
    here = threading.get_ident()
    _refusing.append(here)
    try:
        yield
    finally:
        _refusing.remove(here)


def check_not_refused(made_by: int | None) -> None:
    """Raise for a layer that the backward pass of this thread, or of the thread that ran its forward, refuses.

    On the CPU a backward pass runs in the thread that called it; on a device in one that is shared by all, where a
    layer that does not know its maker (a compiled one) is refused rather than combined twice.
    """
    if not _refusing:
        return
    if made_by is None and maker() is None:
        raise RuntimeError(COMBINED_ALREADY)
    if threading.get_ident() in _refusing or made_by in _refusing:
        raise RuntimeError(COMBINED_ALREADY)


def _combine(rows: list[Tensor], activation: Tensor | None, layer: int) -> Tensor:
    # In a compiled graph a loss that does not come back has a row of zeros.
    present = torch.stack([row.any() for row in rows]).tolist()
    combined = _layers[layer].combine(
        [row if here else None for row, here in zip(rows, present, strict=True)], activation
    )
    if combined is None:
        return torch.zeros_like(rows[0])
    return combined.clone() if any(combined is row for row in rows) else combined  # an operator's result is its own


def _fake(rows: list[Tensor], activation: Tensor | None, layer: int) -> Tensor:
    return torch.empty_like(rows[0])


opaque_operator("mtopt::combine", "(Tensor[] rows, Tensor? activation, int layer) -> Tensor", _combine, _fake)


class FanOut(torch.autograd.Function):
    """z to T aliases of it; backward: T rows to their combination."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, layer: Layer) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # a loss that does not come back has no row, rather than a zero one
        ctx.layer = layer
        ctx.made_by = maker()
        if layer.pipeline.marginalized is not None:
            ctx.save_for_backward(activation)
        return tuple(activation.view_as(activation) for _ in range(len(layer.losses)))

    @staticmethod
    def backward(ctx: Any, *rows: Tensor | None) -> tuple[Tensor | None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A backward pass with `create_graph=True` cannot go through a MultiLossLayer: the combination of "
                "gradients has no derivative. Take such gradients before the layer, or in eval()."
            )
        (activation,) = ctx.saved_tensors or (None,)
        return ctx.layer.combine(rows, activation, ctx.made_by), None


FAN_OUT = node_type(FanOut)


def combines_itself(node: Node) -> bool:
    """Whether a node is that of a layer with transforms of its own."""
    layer: Layer | None = node.layer if type(node) is FAN_OUT else None  # type: ignore[attr-defined]  # None once freed
    return layer is not None and bool(layer.pipeline.gradient_transforms)


class CompiledFanOut(torch.autograd.Function):
    """z to T aliases of it; backward: T rows to their combination, by the operator."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, n_losses: int, layer: int, keep_activation: bool) -> tuple[Tensor, ...]:
        ctx.layer = layer
        ctx.keep_activation = keep_activation
        if keep_activation:
            ctx.save_for_backward(activation)
        return tuple(activation.view_as(activation) for _ in range(n_losses))

    @staticmethod
    def backward(ctx: Any, *rows: Tensor) -> tuple[Tensor, None, None, None]:
        activation = ctx.saved_tensors[0] if ctx.keep_activation else None
        combine: Callable[..., Tensor] = torch.ops.mtopt.combine
        return combine(list(rows), activation, ctx.layer), None, None, None
