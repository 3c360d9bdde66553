"""Two quantities against each other, method by method, and the Pareto front. No statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .figure import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """A method's means of the two quantities, and half the width of each interval, if there is one."""

    x: float
    y: float
    half_x: float | None = None
    half_y: float | None = None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other one beats in both, by rising first coordinate; less is better.

    Example:
        >>> pareto_front([(1.0, 3.0), (2.0, 2.0), (2.0, 4.0), (3.0, 1.0)])
        [0, 1, 3]
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def draw_trade_off(
    axes: Axes, points: Mapping[str, Point], styles: Mapping[str, Style], *, larger: tuple[bool, bool]
) -> None:
    """A marker for each method with its intervals, and a line through the front.

    Args:
        axes: Where to draw.
        points: Of each method.
        styles: Of each method.
        larger: Of each quantity, whether more is better.
    """
    for name, point in points.items():
        style = styles[name]
        axes.errorbar(
            point.x,
            point.y,
            xerr=point.half_x,
            yerr=point.half_y,
            color=style.color,
            marker=style.marker,
            markersize=8,
            elinewidth=0.8,
            label=name,
        )
    signs = [-1 if more else 1 for more in larger]
    listed = list(points.values())
    front = [listed[i] for i in pareto_front([(signs[0] * point.x, signs[1] * point.y) for point in listed])]
    axes.plot(
        [point.x for point in front],
        [point.y for point in front],
        color="0.6",
        zorder=0,
        label="Pareto front of the means",
    )
    axes.grid(alpha=0.3)
