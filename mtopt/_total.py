"""A scalar that knows its losses: for programs that call `loss.backward()` themselves. No maths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._checks import type_of
from ._graph.losses import read_losses
from ._optimizer import MultiLossOptimizer
from ._torch import keeps_graph, not_compiled
from ._transform import LossesLike


@not_compiled
def total(optimizer: Optimizer, losses: LossesLike) -> Tensor:
    """The sum of the losses, as one scalar whose `.backward()` is `optimizer.backward(losses)`.

    A program that calls `loss.backward()` and `optimizer.step()` itself, such as a trainer, is given this scalar in
    place of the sum. What it multiplies the scalar by (a GradScaler's scale, 1/k of k batches) multiplies the combined
    gradient; the transforms see the losses as they are. What is added to it gets its gradient as usual.

    Args:
        optimizer: The `MultiLossOptimizer`, or what a trainer has wrapped it in, with the attribute `optimizer`.
        losses: As for `MultiLossOptimizer.backward`.

    Returns:
        The sum of the losses, shape `()`; a plain number where no gradients are computed (`torch.no_grad`).
        `.backward(retain_graph=True)` keeps the graph of the losses, too.

    Raises:
        TypeError: If there is no `MultiLossOptimizer`, or the losses are not those that `backward` takes.
        ValueError: If there is no loss, or one is not a scalar or needs no gradient.
        RuntimeError: From the scalar's `.backward()`, also where it runs twice, or with `create_graph=True`.

    Example:
        >>> import torch
        >>> x = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = MultiLossOptimizer(torch.optim.SGD([x], lr=0.1), at="parameters")
        >>> loss = total(optimizer, {"a": x.sum(), "b": x.square().sum()})
        >>> loss.item()
        4.0
        >>> loss.backward()
        >>> optimizer.step()
    """
    wrapper = _wrapper_in(optimizer)
    if not torch.is_grad_enabled():  # as a trainer evaluates a model
        return _sum(losses)
    read_losses(losses)
    value = _sum(losses)
    anchor = torch.zeros((), dtype=value.dtype, device=value.device, requires_grad=True)
    result: Tensor = _Total.apply(anchor, value, _Handed(wrapper, losses))  # type: ignore[no-untyped-call]
    return result


def _sum(losses: LossesLike) -> Tensor:
    if isinstance(losses, Tensor):
        return losses.detach().sum()
    given = losses.values() if isinstance(losses, Mapping) else losses
    values = [loss.detach().reshape(()) for loss in given if loss is not None]
    return torch.stack([value.to(values[0]) for value in values]).sum()


def _wrapper_in(optimizer: object) -> MultiLossOptimizer:
    found = optimizer
    while not isinstance(found, MultiLossOptimizer):
        found = getattr(found, "optimizer", None)
        if found is None:
            raise TypeError(
                f"`optimizer` must be a MultiLossOptimizer, or what a trainer has wrapped it in, but it is "
                f"{type_of(optimizer)}. Make one first: mtopt.MultiLossOptimizer(torch.optim.AdamW(...))."
            )
    return found


class _Handed:
    """The losses until their backward, and the optimizer that takes them."""

    def __init__(self, optimizer: MultiLossOptimizer, losses: LossesLike) -> None:
        self.optimizer = optimizer
        self.losses: LossesLike | None = losses

    def backward(self, scale: Tensor) -> None:
        """That of the losses, each multiplied by the gradient that has come in."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "The backward pass of `mtopt.total` cannot be differentiated. Leave out create_graph=True; a penalty "
                "on gradients is a loss of its own, made by torch.autograd.grad before the losses are handed over."
            )
        if self.losses is None:
            raise RuntimeError(
                "The backward pass of `mtopt.total` ran before. Compute the losses anew, or give retain_graph=True "
                "to the first backward pass."
            )
        keeps = keeps_graph()
        with torch.enable_grad():
            self.optimizer.backward(_times(self.losses, scale), retain_graph=keeps)
        if not keeps:
            self.losses = None


class _Total(torch.autograd.Function):
    """Of a number that nobody reads, so that its backward pass is called."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, handed: _Handed) -> Tensor:
        ctx.handed = handed
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[None, None, None]:
        ctx.handed.backward(scale)
        return None, None, None


def _times(losses: LossesLike, scale: Tensor) -> LossesLike:
    """The losses by the number, as a GradScaler multiplies them: the transforms do not see it."""
    if scale.device.type == "cpu" and scale == 1:  # elsewhere a look at it would wait for the device
        return losses
    if isinstance(losses, Tensor):
        return _scaled(losses, scale)
    if isinstance(losses, Mapping):
        return {name: None if loss is None else _scaled(loss, scale) for name, loss in losses.items()}
    return [None if loss is None else _scaled(loss, scale) for loss in losses]


def _scaled(loss: Tensor, scale: Tensor) -> Tensor:
    """By one float32 number, which is how a GradScaler's scale is known, and by what that lacks of a double one."""
    seen = scale.to(torch.float32)
    exact = loss if scale.dtype != torch.float64 else loss * (scale / seen).to(loss.device)
    return exact * seen.to(loss.device)
