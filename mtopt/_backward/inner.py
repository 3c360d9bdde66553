"""What is asked of the inner optimizer: its metric, its momentum, how long its memory is. Takes no rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._checks import kind_of, needs_closure
from .._combine.pipeline import Pipeline
from .._sharded import local

MetricAt = Callable[[Tensor, Tensor], Tensor]
"""From a parameter and its rows, shape `(T, *S)`, to rows whose inner products are those of the metric."""

Given = str | Callable[[Optimizer, Tensor, Tensor], Tensor] | None


def _adam(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    square = local(state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"])
    return square.div(1 - group["betas"][1] ** float(state["step"])).sqrt_().add_(group["eps"])


def _adamax(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    return local(state["exp_inf"])


def _adagrad(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    return local(state["sum"]).sqrt().add_(group["eps"])


def _rmsprop(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    square = local(state["square_avg"])
    if group["centered"]:
        square = square - local(state["grad_avg"]).square()
    return square.clamp_min(0).sqrt_().add_(group["eps"])


def _adadelta(state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    eps = group["eps"]
    return local(state["square_avg"]).add(eps).div_(local(state["acc_delta"]).add(eps)).sqrt_()


# What each divides a gradient by, number by number, with the second moment as of before a step.
DIVISORS: dict[type[Optimizer], Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor] | None] = {
    torch.optim.SGD: None,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.NAdam: _adam,
    torch.optim.RAdam: _adam,
    torch.optim.Adamax: _adamax,
    torch.optim.Adagrad: _adagrad,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adadelta: _adadelta,
}


def metric_of(inner: Optimizer, given: Given) -> MetricAt | None:
    """The metric that was asked for; `None` is that of the plain inner product.

    Raises:
        TypeError: If it is neither "inner" nor a function, or the optimizer's is not known.
    """
    if given is None:
        return None
    if callable(given):
        return partial(_given, inner, given)
    if given != "inner":
        raise TypeError(f'`metric` must be None, "inner" or a function, but it is {given!r}.')
    kind = next((known for known in DIVISORS if type(inner) is known), None)
    if kind is None:
        names = ", ".join(known.__name__ for known in DIVISORS)
        raise TypeError(
            f'`metric="inner"` knows {names}, but the inner optimizer is {kind_of(inner)}. Give a function of the '
            f"optimizer, a parameter and its rows, which returns rows whose inner products are those of its metric."
        )
    return partial(_of_torch, inner, DIVISORS[kind])


def _of_torch(
    inner: Optimizer,
    divisor: Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor] | None,
    parameter: Tensor,
    rows: Tensor,
) -> Tensor:
    groups = inner.param_groups
    group = groups[0]
    if len(groups) > 1:
        group = next(g for g in groups if any(p is parameter for p in g["params"]))
    rate = float(group["lr"]) / float(groups[0]["lr"]) if float(groups[0]["lr"]) > 0 else 1.0
    state = inner.state.get(parameter, {})
    if divisor is None or not state:  # before the first step there is no second moment
        return rows if rate == 1 else rows * rate**0.5
    return rows * (rate / divisor(state, group).to(rows)).sqrt()


def _given(
    inner: Optimizer, function: Callable[[Optimizer, Tensor, Tensor], Tensor], parameter: Tensor, rows: Tensor
) -> Tensor:
    made = function(inner, parameter, rows)
    if not isinstance(made, Tensor) or len(made) != len(rows) or not made.is_floating_point():
        found = f"of shape {tuple(made.shape)}" if isinstance(made, Tensor) else kind_of(made)
        raise TypeError(
            f"`metric` must return one row of numbers for each of {len(rows)} rows, but what it returned is {found}."
        )
    return made


def momentum_of(inner: Optimizer) -> str:
    """The setting by which an optimizer averages gradients itself; "" where it does not."""
    for group in inner.param_groups:
        if group.get("momentum"):
            return f"momentum={group['momentum']}"
        betas = group.get("betas")
        if betas and betas[0]:
            return f"betas={tuple(betas)}"
    return ""


def memory_of(inner: Optimizer) -> float | None:
    """Over how many steps an optimizer averages squares, in the group where these are most; `None`: it does not."""
    shares = [group["betas"][1] if "betas" in group else group.get("alpha") for group in inner.param_groups]
    longest = max((float(share) for share in shares if share is not None and 0 <= share < 1), default=None)
    return None if longest is None else 1 / (1 - longest)


# What differentiates the gradient again, from pytorch_optimizer and torch_optimizer: `.grad` here has no graph.
SECOND_ORDER = ("AdaHessian", "Adahessian", "SophiaH")


def refuse_second_order(inner: Optimizer) -> None:
    """Refuse an optimizer that needs `backward(create_graph=True)`.

    Raises:
        TypeError: If it is one.
    """
    kind = next((cls.__name__ for cls in type(inner).__mro__ if cls.__name__ in SECOND_ORDER), None)
    if kind is not None:
        raise TypeError(
            f"`inner` is {kind}, which differentiates gradients again (create_graph=True), but those that are combined "
            f"here have no graph. Take an optimizer of first order, such as AdamW or SOAP."
        )


def refuse_momentum(pipeline: Pipeline, inner: Optimizer) -> None:
    """Raise if momenta per loss would be averaged again: looked at in each step, as a scheduler may change it."""
    if pipeline.order.momentum is not None and (setting := momentum_of(inner)):
        raise ValueError(
            f"Momentum averages each loss's gradient, but the inner optimizer averages what is combined again: it has "
            f"{setting}. Set momentum=0, or betas=(0.0, ...)."
        )


def check_histories(pipeline: Pipeline, inner: Optimizer, metric: Given, *, at_parameters: bool, some: bool) -> None:
    """Refuse settings that go with rows at parameters alone, where there are none, or at some parameters only.

    Raises:
        ValueError: If the site, or the inner optimizer, does not fit.
    """
    name = pipeline.order.at_parameters_alone or ("`metric`" if metric is not None else "")
    if name and not at_parameters:
        raise ValueError(
            f'{name} is about each parameter, but at="activations" or at a module no loss has a gradient of one. Take '
            f'at="parameters", or at="all parameters".'
        )
    if pipeline.order.every is not None and some:
        raise ValueError(
            "Every weights whole losses in steps that see no single gradients, which some parameters alone cannot "
            'have. Take at="parameters", or the method without Every.'
        )
    if pipeline.order.histories and needs_closure(type(inner).step):
        raise ValueError(
            f"{name} counts steps, but {type(inner).__name__} evaluates the losses several times in one. Leave it out, "
            f"or take another inner optimizer."
        )
    refuse_momentum(pipeline, inner)
