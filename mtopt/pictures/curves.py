"""Curves with bands, one for each method or loss. No numbers of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .figure import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKED = 30  # points up to which each has a marker


@dataclass(frozen=True)
class Curve:
    """`means` over `x`, and half the width of the band around each, if there is one."""

    x: Sequence[float]
    means: Sequence[float]
    halves: Sequence[float] | None = None


def draw_curves(axes: Axes, curves: Mapping[str, Curve], styles: Mapping[str, Style]) -> None:
    """Each in its own style; a logarithmic scale if the means go over more than a factor of ten."""
    for name, curve in curves.items():
        style = styles[name]
        marker = style.marker if len(curve.x) <= MARKED else ""
        axes.plot(
            curve.x, curve.means, color=style.color, linestyle=style.line, marker=marker, markersize=4, label=name
        )
        if curve.halves is not None:
            bounds = zip(curve.means, curve.halves, strict=True)
            low, high = zip(*((mean - half, mean + half) for mean, half in bounds), strict=True)
            axes.fill_between(curve.x, low, high, color=style.color, alpha=0.12, linewidth=0)
    means = [mean for curve in curves.values() for mean in curve.means if mean == mean]
    if means and min(means) > 0 and max(means) > 10 * min(means):
        axes.set_yscale("log")
        axes.set_ylim(min(means) / 1.5, max(means) * 1.5)  # a band that reaches below 0 has no end
    axes.grid(alpha=0.3)
