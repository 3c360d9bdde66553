"""A conflict report as a picture: conflict per module, cosines of the losses. Needs matplotlib, when it draws."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from ..names import shortened
from ..pictures.cosines import draw_cosines
from ..pictures.figure import new_figure, saved
from .table import most_in_conflict, shown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .report import ConflictReport

SHOWN = 24


def draw(report: ConflictReport, path: str | PathLike[str] | None) -> Figure:
    """Draw, and save if there is a path."""
    bars = min(len(report.modules), SHOWN)
    figure = new_figure(11, max(4.4, 2 + 0.21 * bars))
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _conflict_bars(left, report)
    draw_cosines(right, report.losses, report.total.cosines.tolist(), "Cosines over all shared parameters")
    figure.legend(loc="outside lower left", ncols=2, frameon=False)
    return saved(figure, path)


def _conflict_bars(axes: Axes, report: ConflictReport) -> None:
    shown = most_in_conflict(report.modules, SHOWN)
    names = [shortened(shown_name(module), 28) for module in shown]
    shares = [100 * module.conflict.share for module in shown]
    places = range(len(shown))
    axes.barh(places, shares, color="0.7")
    for place, share, module in zip(places, shares, shown, strict=True):
        told = f"{share:.0f} % of {module.size:,}"
        axes.text(share + 1.5, place, told, va="center", fontsize=8, bbox={"color": "white", "pad": 0.5})
    chance = 100 * (1 - 2.0 ** (1 - len(report.losses)))
    axes.axvline(100 * report.total.share, color="black", linestyle="--", label="all shared parameters")
    axes.axvline(chance, color="black", linestyle=":", label=f"if the {len(report.losses)} losses were unrelated")
    axes.set_yticks(places, names)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    some = f" ({len(shown)} of {len(report.modules)})" if len(shown) < len(report.modules) else ""
    axes.set(
        title=f"Conflict per module, in forward order{some}",
        xlabel="shared parameters with gradients of both signs (%)",
        ylabel="module",
        xlim=(0, 125),
        xticks=range(0, 101, 20),
    )
