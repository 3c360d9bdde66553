"""What each method costs, as bars beside the plain sum's. No measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..names import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FILLS = ("0.35", ""), ("0.85", "//")


def draw_costs(axes: Axes, costs: Mapping[str, Mapping[str, float]], reference: str) -> None:
    """A group of bars for each method, a bar for each kind of cost, each as a multiple of the reference's.

    Args:
        axes: Where to draw.
        costs: By kind, such as "time per step", then by method; two kinds at most.
        reference: The method that costs 1.
    """
    methods = list(dict.fromkeys(m for by_method in costs.values() for m in by_method))
    height = 0.8 / len(costs)
    for i, ((kind, by_method), (color, hatch)) in enumerate(zip(costs.items(), _FILLS, strict=False)):
        places = [methods.index(method) - 0.4 + (i + 0.5) * height for method in by_method]
        bars = axes.barh(
            places, list(by_method.values()), height, color=color, hatch=hatch, edgecolor="black", label=kind
        )
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1, color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(methods)), [shortened(method, 24) for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.set(title="Cost of a step", xlabel=f"multiple of that of the {reference} (×)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
