"""A conflict report as a picture: conflict per module, cosines of the losses. Needs matplotlib, when it draws."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from .._pictures.bars import draw_bars
from .._pictures.cosines import draw_cosines, known, room
from .._pictures.figure import SMALL, picture, plain
from .._pictures.names import abbreviated
from .findings import Findings
from .table import most_in_conflict, shown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SHOWN = 24  # modules
LEFT = 5.8  # inches


def draw(report: Findings, path: str | PathLike[str] | None) -> Figure:
    """Draw, and save if there is a path."""
    right, height = room(len(report.losses))
    bars = min(len(report.modules), SHOWN)
    with picture(path, LEFT + right, 0.4 + max(height, 1.4 + 0.21 * bars)) as figure:
        at_left, at_right = figure.subplots(1, 2, width_ratios=(LEFT, right))
        _conflict_bars(at_left, report)
        cosines = known(report.total.cosines).tolist()
        draw_cosines(at_right, report.losses, cosines, "Cosines over all shared parameters")
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=SMALL)
    return figure


def _conflict_bars(axes: Axes, report: Findings) -> None:
    shown = most_in_conflict(report.modules, SHOWN)
    names = [f"{plain(abbreviated(shown_name(module), 32))} ({module.size:,})" for module in shown]
    n = len(report.losses)
    chance = 100 * (1 - 2.0 ** (1 - n))
    axes.axvline(100 * report.total.share, color="black", linestyle="--", label="all shared parameters")
    axes.axvline(chance, color="black", linestyle=":", label=f"if the {n} losses were unrelated")
    draw_bars(axes, names, [100 * module.conflict.share for module in shown], ".0f")
    some = f" ({len(shown)} of {len(report.modules)})" if len(shown) < len(report.modules) else ""
    axes.set(
        title=f"Conflict per module{some}",
        xlabel="shared parameters with\ngradients of both signs (%)",
        ylabel="module, in forward order\n(its shared parameters)",
        xlim=(0, 110),
        xticks=range(0, 101, 20),
    )
