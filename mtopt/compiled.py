"""The layer inside a compiled model: its backward is one operator, into which torch.compile does not look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Combining(Protocol):
    """What a layer does with the rows that come back."""

    def combine(self, rows: Sequence[Tensor | None], activation: Tensor | None) -> Tensor | None: ...


COMBINED_ALREADY = (
    "The model has a MultiLossLayer, which combines the gradients itself, so that the optimizer's `transforms` would "
    "find them already combined. Give `transforms=[]` to the optimizer, or take out the layer."
)

_layers: WeakValueDictionary[int, Combining] = WeakValueDictionary()
_keys = count()


def register(layer: Combining) -> int:
    """A number by which the operator finds the layer."""
    key = next(_keys)
    _layers[key] = layer
    return key


_refused = 0


@contextmanager
def hidden_layers_refused() -> Iterator[None]:
    """While active, layers raise: those that a compiled or a checkpointed region has hidden from the walk."""
    global _refused
    _refused += 1
    try:
        yield
    finally:
        _refused -= 1


def check_not_refused() -> None:
    if _refused:
        raise RuntimeError(COMBINED_ALREADY)


# It draws random numbers on the host, so it is no part of a CUDA graph, which would repeat them (untested: no GPU).
@torch.library.custom_op(
    "mtopt::combine", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe, torch.Tag.nondeterministic_seeded)
)
def combine(rows: list[Tensor], activation: Tensor | None, layer: int) -> Tensor:
    # In a compiled graph a loss that does not come back has a row of zeros.
    combined = _layers[layer].combine([row if row.any() else None for row in rows], activation)
    if combined is None:
        return torch.zeros_like(rows[0])
    return combined.clone() if any(combined is row for row in rows) else combined  # an operator's result is its own


@combine.register_fake
def _(rows: list[Tensor], activation: Tensor | None, layer: int) -> Tensor:
    return torch.empty_like(rows[0])


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
