"""Two quantities against each other, method by method, and the Pareto front. No statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .figure import Style, plain, tick
from .names import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Scale:
    """What one axis shows: of each method the mean and half of an interval, each `None` where it is not known."""

    kind: str
    name: str
    larger_is_better: bool
    means: Mapping[str, tuple[float, float | None] | None]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other one beats, by rising first coordinate; less is better, and one stands for its equals.

    Example:
        >>> pareto_front([(1.0, 3.0), (2.0, 2.0), (2.0, 4.0), (3.0, 1.0)])
        [0, 1, 3]
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def draw_trade_off(axes: Axes, pair: Sequence[Scale], looks: Mapping[str, Style]) -> None:
    """A marker for each method with its intervals, and the front: no mean is beyond that line.

    The intervals are those of the difference to the method that has none.

    Args:
        axes: Where to draw.
        pair: To the right, and upwards.
        looks: The style of each method.
    """
    one, other = pair
    means, uncertain = [], False
    for method, look in looks.items():
        to_right, upwards = one.means[method], other.means[method]
        if to_right is not None and upwards is not None:
            (x, x_half), (y, y_half) = to_right, upwards
            axes.errorbar(x, y, xerr=x_half, yerr=y_half, elinewidth=0.8, **look.markers(8))
            means.append((x, y))
            uncertain = uncertain or x_half is not None
    signs = [-1 if scale.larger_is_better else 1 for scale in (one, other)]
    front = [means[i] for i in pareto_front([(signs[0] * x, signs[1] * y) for x, y in means])]
    axes.plot([x for x, _ in front], [y for _, y in front], color="0.6", drawstyle="steps-post", zorder=0)
    title = "Trade-off, differences ± 95 %" if uncertain else "Trade-off"
    what = "line: Pareto front of the means" if means else "no method has both"
    axes.set(title=f"{title}\n{what}", xlabel=_label(one), ylabel=_label(other))
    tick(axes.xaxis, most=3)
    tick(axes.yaxis)
    axes.grid(alpha=0.3)


def _label(scale: Scale) -> str:
    better = "more" if scale.larger_is_better else "less"
    return f"{scale.kind} {plain(shortened(scale.name, 24))}\n({better} is better)"
