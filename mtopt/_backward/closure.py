"""A closure that returns losses, as an optimizer evaluates it within one step: one decision, one value. No step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .._combine.pipeline import Pipeline
from .._graph.losses import with_absent
from .._transform import LossesLike
from .telling import CLOSURE_OF_ITS_OWN, Told


def evaluation(
    closure: Callable[[], Any],
    backward: Callable[[LossesLike], None],
    pipeline: Pipeline,
    inner: Optimizer,
    told: Told,
    tell_unless_handed: Callable[[str], None],
    declared: tuple[str, ...] | None,
) -> Callable[[], Any]:
    """What the inner optimizer calls: the closure, the backward pass of the losses that it returns, and their value.

    All evaluations start from the same state of the transforms, and weight the losses as the first one does, also
    where the closure does its own backward pass. The value is the sum of the weighted losses, whose gradient `.grad` is
    if no transform combines gradients.
    """
    frozen = pipeline.copied_state()
    weights: dict[int, Tensor] = {}

    def evaluate() -> Any:
        pipeline.load_state(copy.deepcopy(frozen))
        with pipeline.weighting_as(weights):
            value = closure()
            own = value is None or isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0)
            if not own:
                value = with_absent(value, declared)
                backward(value)
        if own:
            tell_unless_handed(CLOSURE_OF_ITS_OWN)
        if told.handed:
            _tell_line_search(pipeline, inner, told)
        return value if own else sum(weights[i].to(x) * x if i in weights else x for i, x in _present(value))

    return evaluate


def _present(losses: Any) -> Iterator[tuple[int, Tensor]]:
    entries = losses.values() if hasattr(losses, "values") and not isinstance(losses, Tensor) else losses
    return ((i, loss.detach()) for i, loss in enumerate(entries) if loss is not None)


def _tell_line_search(pipeline: Pipeline, inner: Optimizer, told: Told) -> None:
    """Tell that a line search compares losses, where what is combined of their gradients belongs to none."""
    if not pipeline.gradient_transforms:
        return
    searches = [group["line_search_fn"] for group in inner.param_groups if group.get("line_search_fn")]
    if searches:
        told.once(
            f"{type(inner).__name__} has line_search_fn={searches[0]!r}, which compares losses, but what "
            f"{type(pipeline.gradient_transforms[0]).__name__} makes of their gradients is not the gradient of any "
            f"loss, so that the search may stop too early. Take line_search_fn=None, or weight the losses instead, "
            f"as ConstantWeights does."
        )
