"""A conflict report as a picture: conflict per module, lengths, cosines. Needs matplotlib, when it draws."""

from __future__ import annotations

from collections.abc import Sized
from math import isfinite
from os import PathLike
from typing import TYPE_CHECKING

from .._pictures.bars import draw_bars
from .._pictures.cosines import draw_cosines, known, room
from .._pictures.figure import SMALL, labels, picture, plain, tick
from .._pictures.names import abbreviated
from .findings import Findings
from .table import most_in_conflict, shown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SHOWN = 24  # modules, and losses
LEFT = 5.8  # inches
AROUND = 1.3  # inches, of title and labels
BAR = 0.22  # inches at least


def draw(report: Findings, path: str | PathLike[str] | None) -> Figure:
    """Draw, and save if there is a path."""
    right, height = room(len(report.losses))
    above, below = (AROUND + BAR * min(n, SHOWN) for n in (len(report.modules), len(report.losses)))
    with picture(path, LEFT + right, 0.4 + max(height, above + below)) as figure:
        left, at_right = figure.subfigures(1, 2, squeeze=False, width_ratios=(LEFT, right))[0]
        bars, norms = left.subplots(2, 1, height_ratios=(above, below))
        _conflict_bars(bars, report)
        _lengths(norms, report)
        cosines = known(report.total.cosines).tolist()
        draw_cosines(at_right.subplots(), report.losses, cosines, "Cosines over all shared parameters")
        figure.legend(handles=bars.lines, loc="outside lower left", ncols=2, frameon=False, fontsize=SMALL)
    return figure


def _conflict_bars(axes: Axes, report: Findings) -> None:
    shown = most_in_conflict(report.modules, SHOWN)
    names = [f"{plain(abbreviated(shown_name(module), 32))} ({module.size:,})" for module in shown]
    n = len(report.losses)
    chance = 100 * (1 - 2.0 ** (1 - n))
    axes.axvline(100 * report.total.share, color="black", linestyle="--", label="all shared parameters")
    axes.axvline(chance, color="black", linestyle=":", label=f"if the {n} losses were unrelated")
    draw_bars(axes, names, [100 * module.conflict.share for module in shown], ".0f")
    axes.set(
        title=f"Conflict per module{_some(shown, report.modules)}",
        xlabel="shared parameters with gradients of both signs (%)",
        ylabel="module, in forward order\n(its shared parameters)",
        xlim=(0, 110),
        xticks=range(0, 101, 20),
    )


def _lengths(axes: Axes, report: Findings) -> None:
    norms = report.total.norms.tolist()
    shown = norms[:SHOWN]
    draw_bars(axes, labels(report.losses, 14)[:SHOWN], [norm if isfinite(norm) else None for norm in shown], ".3g")
    axes.margins(x=0.15)
    tick(axes.xaxis, most=5)
    axes.set(title=f"Lengths of the gradients{_some(shown, norms)}", xlabel="over all shared parameters", ylabel="loss")


def _some(shown: Sized, there: Sized) -> str:
    return f" ({len(shown)} of {len(there)})" if len(shown) < len(there) else ""
