"""What a comparison found, as a picture: losses over the training, the trade-off, the costs. No statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from .costs import Ratios, draw_costs
from .curves import BANDED, Curve, draw_curves
from .figure import Style, add_legend, labels, picture, styles
from .tradeoff import Scale, draw_trade_off

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

SHOWN = 6  # losses
WIDTH = 11.0  # inches
STACKED = 6  # methods up to which the costs are one below the other


def draw(
    curves: Mapping[str, Mapping[str, Curve]],
    pair: Sequence[Scale],
    costs: Sequence[Ratios],
    notes: Mapping[str, str],
    n_seeds: int,
    reference: str,
    path: str | PathLike[str] | None,
) -> Figure:
    """Draw, and save if there is a path.

    Args:
        curves: By loss, then by method: over the percentage of the run that is done.
        pair: Two quantities against each other, or none.
        costs: A panel for each.
        notes: For each method what is said behind its name.
        n_seeds: Over how many the curves are means.
        reference: The method that the bands compare with.
        path: Where to.
    """
    looks = styles(notes)
    stacked = len(looks) <= STACKED
    heights = [0.5 + 2.9 * -(-min(len(curves), SHOWN) // 3)]
    if pair or costs:
        heights.append(4.2 if stacked else 1.2 + 0.24 * len(looks))
    with picture(path, WIDTH, sum(heights) + 0.3 + 0.08 * len(looks)) as figure:
        parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        _draw_losses(parts[0], curves, looks, n_seeds, reference)
        if pair or costs:
            _draw_below(parts[1], pair, costs, looks, stacked=stacked)
        add_legend(figure, looks, WIDTH, notes)
    return figure


def _draw_below(
    figure: SubFigure, pair: Sequence[Scale], costs: Sequence[Ratios], looks: Mapping[str, Style], *, stacked: bool
) -> None:
    """The trade-off at the left; the costs beside it, those of few methods one below the other."""
    n_rows, n_columns = (max(1, len(costs)), 1) if stacked else (1, max(1, len(costs)))
    grid = figure.add_gridspec(n_rows, bool(pair) + (n_columns if costs else 0))
    if pair:
        draw_trade_off(figure.add_subplot(grid[:, 0]), pair, looks)
    cells = [(i, bool(pair)) if stacked else (0, bool(pair) + i) for i in range(len(costs))]
    draw_costs([figure.add_subplot(grid[cell]) for cell in cells], costs, stacked=stacked)


def _draw_losses(
    figure: SubFigure,
    curves: Mapping[str, Mapping[str, Curve]],
    looks: Mapping[str, Style],
    n_seeds: int,
    reference: str,
) -> None:
    shown = list(curves)[:SHOWN]
    n_columns = min(3, len(shown))
    panels = list(figure.subplots(-(-len(shown) // n_columns), n_columns, squeeze=False).flat)
    for axes, loss, name in zip(panels, shown, labels(shown, 24), strict=False):
        draw_curves(axes, curves[loss], looks, "done of the training (%)")
        axes.set(title=f"loss {name}", ylabel="training loss", xlim=(0, 100))
    for axes in panels[len(shown) :]:
        axes.remove()
    words = ["one seed" if n_seeds == 1 else f"means over {n_seeds} seeds"]
    banded = [sum(curve.halves is not None for curve in curves[loss].values()) for loss in shown]
    if any(0 < n <= BANDED for n in banded):
        words.append(f"bands: 95 % of the difference to the {reference}")
    if len(shown) < len(curves):
        words.append(f"{len(shown)} of {len(curves)} losses")
    figure.suptitle(f"Losses while training: {', '.join(words)}", fontsize=11)
