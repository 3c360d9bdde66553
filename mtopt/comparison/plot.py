"""The numbers of a comparison as a picture needs them. No statistics of its own, and no drawing."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

from ..pictures.comparison import draw
from ..pictures.curves import Curve
from .arguments import PLAIN, near_names
from .runs import RunRecord
from .statistics import Quantity, Summary, estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    runs: Sequence[RunRecord], summary: Summary, trade_off: Sequence[str] | None, path: str | PathLike[str] | None
) -> Figure:
    """The curves of the losses, two quantities against each other, and the costs."""
    methods = list(summary.costs)
    finished = [run for run in runs if not run["diverged"]]
    if not finished:
        raise ValueError("There is nothing to draw: no run is finished without having diverged.")
    curves = {loss: {m: _curve(finished, m, loss) for m in methods} for loss in finished[0]["losses"]}
    known = {loss: {m: curve for m, curve in of.items() if curve is not None} for loss, of in curves.items()}
    return draw(known, _two(summary.quantities, trade_off), _costs(summary), PLAIN, path)


def _curve(runs: Sequence[RunRecord], method: str, loss: str) -> Curve | None:
    """Over the seeds; `None` where no part of any run has the loss."""
    own = [run["curves"][loss] for run in runs if run["method"] == method]
    parts = list(zip(*own, strict=False))
    estimates = [estimate([value for value in part if value is not None]) for part in parts]
    there = [(100 * (i + 0.5) / len(parts), e) for i, e in enumerate(estimates) if e is not None]
    if not there:
        return None
    halves = [e.half or 0.0 for _, e in there]
    return Curve([x for x, _ in there], [e.mean for _, e in there], halves if any(halves) else None)


def _two(quantities: Sequence[Quantity], names: Sequence[str] | None) -> list[Quantity]:
    """The two that are named, or the first two metrics, or losses; none where there are not two."""
    if names is None:
        for kind in ("metric", "loss"):
            of_kind = [quantity for quantity in quantities if quantity.kind == kind]
            if len(of_kind) > 1:
                return of_kind[:2]
        return []
    by_name = {quantity.name: quantity for quantity in quantities}  # metrics come last, and win
    if isinstance(names, str) or len(names) != 2:
        raise ValueError(f"`trade_off` must be two names of losses or metrics, but it is {names!r}.")
    for name in names:
        if name not in by_name:
            near = near_names(name, list(by_name)) or f" There are {', '.join(by_name)}."
            raise ValueError(f"`trade_off` has {name!r}, which is no loss and no metric.{near}")
    return [by_name[name] for name in names]


def _costs(summary: Summary) -> dict[str, dict[str, float]]:
    """Time and memory as multiples of the plain sum's, where both are known."""
    costs = {}
    for kind, key in (("time per step", "seconds_per_step"), ("peak memory of a step", "memory")):
        numbers = {method: getattr(cost, key) for method, cost in summary.costs.items()}
        plain = numbers.get(PLAIN)
        if plain:
            costs[kind] = {method: number / plain for method, number in numbers.items() if number is not None}
    return costs
