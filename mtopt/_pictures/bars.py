"""Bars to the right, one for each name, with a number behind each. No numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .figure import SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 3  # bars that fill the axes


def draw_bars(axes: Axes, labels: Sequence[str], numbers: Sequence[float | None], form: str) -> None:
    """From top to bottom.

    Args:
        axes: Where to draw.
        labels: What stands before each.
        numbers: Their lengths; `None` where not known.
        form: How a number is written, such as `.2f`.
    """
    places = range(len(labels))
    bars = axes.barh(places, [number or 0 for number in numbers], color="0.75", edgecolor="black")
    told = ["not known" if number is None else format(number, form) for number in numbers]
    behind = {"color": "white", "pad": 0.5}
    axes.bar_label(bars, told, padding=4, fontsize=8, bbox=behind)
    axes.set_yticks(places, labels, fontsize=SMALL)
    space = 0.5 + max(0, FEWEST - len(labels)) / 2
    axes.set_ylim(len(labels) - 1 + space, -space)
