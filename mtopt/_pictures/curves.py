"""Curves with bands, one for each method or loss. No numbers of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from .figure import Style, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = 10  # on a curve, about
BANDED = 4  # bands at most: more are one grey


@dataclass(frozen=True)
class Curve:
    """`means` over `x`, and half the width of the band around each; NaN where there is none."""

    x: Sequence[float]
    means: Sequence[float]
    halves: Sequence[float] | None = None


def draw_curves(axes: Axes, curves: Mapping[str, Curve], looks: Mapping[str, Style], xlabel: str) -> None:
    """Each in its own style; a logarithmic scale if the means go over more than a factor of ten.

    Where a mean is not finite the curve has a gap, and its marker stands at the upper edge.
    """
    banded = sum(curve.halves is not None for curve in curves.values()) <= BANDED
    lost = {name: [x for x, y in zip(c.x, c.means, strict=True) if not isfinite(y)] for name, c in curves.items()}
    for i, (name, curve) in enumerate(curves.items()):
        look, every = looks[name], max(1, len(curve.x) // MARKERS)
        axes.plot(curve.x, curve.means, markevery=(i % every, every), **look.curve(4))
        if lost[name]:
            at_the_edge = [0.97 - 0.04 * i] * len(lost[name])
            edge = axes.get_xaxis_transform()
            axes.plot(lost[name], at_the_edge, linestyle="", transform=edge, **look.markers(4))
        if curve.halves is not None and banded:
            low = [mean - half for mean, half in zip(curve.means, curve.halves, strict=True)]
            high = [mean + half for mean, half in zip(curve.means, curve.halves, strict=True)]
            axes.fill_between(curve.x, low, high, color=look.color, alpha=0.12, linewidth=0)
    axes.set_xlabel(f"{xlabel} (at the upper edge: not finite)" if any(lost.values()) else xlabel)
    _scale(axes, [mean for curve in curves.values() for mean in curve.means if isfinite(mean)])
    axes.grid(alpha=0.3)


def _scale(axes: Axes, means: Sequence[float]) -> None:
    """The curves fill a third of the axes at least; a wide band ends at the edge."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    tick(axes.yaxis)
    low, high = min(means, default=0.0), max(means, default=0.0)
    if low > 0 and high > 10 * low:
        axes.set_yscale("log")
        margin = (high / low) ** 0.2
        axes.set_ylim(low / margin, high * margin)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif high > low:
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, 2 * low - high), min(top, 2 * high - low))
