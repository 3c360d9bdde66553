"""What a comparison found, as a picture: losses over the training, the trade-off, the costs. No statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from .costs import draw_costs
from .curves import Curve, draw_curves
from .figure import Style, new_figure, saved, styles
from .tradeoff import Point, draw_trade_off

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from ..comparison.statistics import Quantity

SHOWN = 6  # losses


def draw(
    curves: Mapping[str, Mapping[str, Curve]],
    quantities: Sequence[Quantity],
    costs: Mapping[str, Mapping[str, float]],
    reference: str,
    path: str | PathLike[str] | None,
) -> Figure:
    """Draw, and save if there is a path.

    Args:
        curves: By loss, then by method: over the percentage of the run that is done.
        quantities: Two for the trade-off; without two there is none.
        costs: By kind, then by method, as multiples of the reference's.
        reference: The method that the others are compared with.
        path: Where to.
    """
    methods = list(dict.fromkeys(name for by_method in curves.values() for name in by_method))
    look = styles(methods)
    losses = list(curves)[:SHOWN]
    n_rows = -(-len(losses) // 3)
    heights = [3.4 * n_rows, max(4.2, 1.4 + 0.42 * len(methods))]
    figure = new_figure(14, sum(heights) + 0.3 * -(-len(methods) // 5))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    _draw_losses(above, {loss: curves[loss] for loss in losses}, look, len(curves))
    if len(quantities) == 2:
        left, right = below.subplots(1, 2)
        _draw_trade_off(left, quantities, look)
    else:
        right = below.subplots(1, 1)
    draw_costs(right, costs, reference)
    handles, labels = above.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return saved(figure, path)


def _draw_losses(
    figure: SubFigure, curves: Mapping[str, Mapping[str, Curve]], look: Mapping[str, Style], n_losses: int
) -> None:
    n_columns = min(3, len(curves))
    panels = list(figure.subplots(-(-len(curves) // n_columns), n_columns, squeeze=False).flat)
    for axes, (loss, by_method) in zip(panels, curves.items(), strict=False):
        draw_curves(axes, by_method, look)
        axes.set(title=f"loss {loss}", xlabel="done of the training (%)", ylabel="training loss")
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    some = f"; {len(curves)} of {n_losses} losses" if len(curves) < n_losses else ""
    figure.suptitle(f"Means over the seeds, with 95 % bands{some}", fontsize=11)


def _draw_trade_off(axes: Axes, quantities: Sequence[Quantity], look: Mapping[str, Style]) -> None:
    x, y = quantities
    points = {}
    for method in look:
        one, other = x.results[method].estimate, y.results[method].estimate
        if one is not None and other is not None:
            points[method] = Point(one.mean, other.mean, one.half, other.half)
    draw_trade_off(axes, points, look, larger=(x.larger_is_better, y.larger_is_better))
    axes.set(title="Trade-off, mean ± 95 %", xlabel=_label(x), ylabel=_label(y))
    line: Any = axes.get_lines()[-1]
    axes.legend([line], [line.get_label()], loc="best")


def _label(quantity: Quantity) -> str:
    return f"{quantity.kind} {quantity.name} ({'more' if quantity.larger_is_better else 'less'} is better)"
