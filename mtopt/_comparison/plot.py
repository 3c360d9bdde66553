"""The numbers of a comparison as a picture needs them. No statistics of its own, and no drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan, nan
from os import PathLike
from typing import TYPE_CHECKING

from .._checks import near_names
from .._pictures.comparison import draw
from .._pictures.costs import Ratios
from .._pictures.curves import Curve
from .._pictures.tradeoff import Scale
from .arguments import PLAIN
from .runs import RunRecord
from .statistics import LEAST_SEEDS, Cost, Estimate, Quantity, Summary, estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    runs: Sequence[RunRecord], summary: Summary, trade_off: Sequence[str] | None, path: str | PathLike[str] | None
) -> Figure:
    """The curves of the losses, two quantities against each other, and the costs."""
    used = [run for run in runs if not run["diverged"] and run["seed"] not in summary.copies]
    if not used:
        raise ValueError("There is nothing to draw: no run is finished without having diverged.")
    curves = {loss: {m: _curve(used, m, loss) for m in summary.costs} for loss in used[0]["losses"]}
    known = {loss: {m: curve for m, curve in of.items() if curve is not None} for loss, of in curves.items()}
    drawn = {loss: of for loss, of in known.items() if of}
    notes = {method: _note(cost) for method, cost in summary.costs.items()}
    n_seeds = len({run["seed"] for run in used})
    scales = [_scale(quantity) for quantity in _pair(summary.quantities, trade_off)]
    return draw(drawn, scales, list(_costs(summary)), notes, n_seeds, PLAIN, path)


def _curve(runs: Sequence[RunRecord], method: str, loss: str) -> Curve | None:
    """Means over the seeds, and intervals of the difference to the plain sum; `None` where no run has the loss."""
    own, plain = ({run["seed"]: run["curves"][loss] for run in runs if run["method"] == m} for m in (method, PLAIN))
    # Parts: fewer than ever where a run has few steps.
    n = min(map(len, [*own.values(), *(plain[seed] for seed in own if seed in plain)]), default=0)
    x, means, halves = [], [], []
    for i in range(n):
        at = {seed: curve[int((i + 0.5) * len(curve) / n)] for seed, curve in own.items()}
        at_plain = {seed: curve[int((i + 0.5) * len(curve) / n)] for seed, curve in plain.items() if seed in own}
        there = estimate([value for value in at.values() if value is not None])
        if there is not None:
            both = [seed for seed in at if at[seed] is not None and at_plain.get(seed) is not None]
            half = _half(estimate([at[seed] - at_plain[seed] for seed in both]))
            x.append(100 * (i + 0.5) / n)
            means.append(there.mean)
            halves.append(nan if half is None else half)
    if not x:
        return None
    return Curve(x, means, None if method == PLAIN or all(map(isnan, halves)) else halves)


def _half(difference: Estimate | None) -> float | None:
    """Of its interval, where there are seeds enough for a test."""
    return None if difference is None or difference.n < LEAST_SEEDS else difference.half


def _note(cost: Cost) -> str:
    if not cost.runs:
        return " (no run yet)"
    return f" ({cost.diverged} of {cost.runs} diverged)" if cost.diverged else ""


def _pair(quantities: Sequence[Quantity], names: Sequence[str] | None) -> list[Quantity]:
    """The two that are named, or the first two metrics, or losses; none where there are not two."""
    if names is None:
        known = [q for q in quantities if any(result.estimate for result in q.results.values())]
        of_kind = [[q for q in known if q.kind == kind] for kind in ("metric", "loss")]
        return next((several[:2] for several in of_kind if len(several) > 1), [])
    by_name = {quantity.name: quantity for quantity in quantities}  # metrics come last, and win
    if isinstance(names, str) or len(set(names)) != 2 or len(names) != 2:
        raise ValueError(f"`trade_off` must be two names of losses or metrics, but it is {names!r}.")
    for name in names:
        if name not in by_name:
            near = near_names(name, list(by_name)) or f" There are {', '.join(by_name)}."
            raise ValueError(f"`trade_off` has {name!r}, which is no loss and no metric.{near}")
    return [by_name[name] for name in names]


def _scale(quantity: Quantity) -> Scale:
    """Means, and intervals of the difference to the plain sum, which has none."""
    means = {
        m: None if r.estimate is None else (r.estimate.mean, _half(r.difference)) for m, r in quantity.results.items()
    }
    return Scale(quantity.kind, quantity.name, quantity.larger_is_better, means)


def _costs(summary: Summary) -> Iterator[Ratios]:
    """Time and memory as multiples of the plain sum's, where that is known."""
    for title, key, factor, unit in (
        ("Time of a step", "seconds_per_step", 1e3, f"ms, {summary.clock}"),
        ("Peak memory of a step", "memory", 1e-6, "MB"),
    ):
        numbers = {method: getattr(cost, key) for method, cost in summary.costs.items()}
        plain = numbers[PLAIN]
        if plain:
            of = f"times the {PLAIN}'s\n{plain * factor:.3g} {unit}"
            yield Ratios(title, of, {m: None if number is None else number / plain for m, number in numbers.items()})
