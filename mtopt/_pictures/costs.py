"""What each method costs, as bars beside the plain sum's. No measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .bars import draw_bars
from .figure import labels, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Ratios:
    """What the methods cost.

    Attributes:
        title: What it is.
        unit: What they are multiples of.
        numbers: By method; `None` where not known.
    """

    title: str
    unit: str
    numbers: Mapping[str, float | None]


def draw_costs(panels: Sequence[Axes], costs: Sequence[Ratios], *, stacked: bool) -> None:
    """A bar for each method, and a line at 1; beside the panel before, or below it with the methods' names again."""
    for axes, ratios in zip(panels, costs, strict=True):
        named = stacked or axes is panels[0]
        axes.axvline(1, color="black", linestyle=":", linewidth=1)
        names = labels(ratios.numbers, 24) if named else [""] * len(ratios.numbers)
        draw_bars(axes, names, list(ratios.numbers.values()), ".2f")
        axes.margins(x=0.2)
        tick(axes.xaxis)
        axes.set(title=ratios.title, xlabel=ratios.unit, ylabel="method" if named else "")
