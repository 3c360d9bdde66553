"""Histograms of purity over the training, as greys. No numbers of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import isnan, nan
from typing import TYPE_CHECKING

from .figure import HATCHED, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_purity(axes: Axes, steps: Sequence[int], histograms: Sequence[Sequence[float]], title: str) -> None:
    """One column for each record: the darker, the more coordinates have that purity.

    Args:
        axes: Where to draw.
        steps: The number of the step of each record, rising.
        histograms: For each record how many coordinates have a purity in each of `n` equal parts of [0, 1];
            one of zeros is hatched.
        title: What it is the purity of.
    """
    shares = [[100 * count / (sum(counts) or nan) for count in counts] for counts in histograms]
    columns = [list(part) for part in zip(*shares, strict=True)]  # (n, records)
    n = len(columns)
    edges = [i / n for i in range(n + 1)]
    # One image, even in an SVG, where each of its fields would be a path.
    mesh = axes.pcolormesh(_borders(steps), edges, columns, cmap="gray_r", rasterized=True)
    known = [share for part in columns for share in part if not isnan(share)]
    mesh.set_clim(0, max(known, default=100))
    missing = len(known) < n * len(steps)
    if missing:
        axes.patch.set(**HATCHED)
    axes.axhline(0.5, color="0.5", linestyle=":", linewidth=1)
    axes.set(
        title=title,
        xlabel="step (hatched: no finite gradient)" if missing else "step",
        ylabel="purity: positive share of the gradient\n(0 or 1: the losses agree)",
        ylim=(0, 1),
    )
    tick(axes.xaxis, whole=True, most=4)
    axes.figure.colorbar(mesh, ax=axes, label=f"% of the coordinates, per {1 / n:g} of purity", fraction=0.05, pad=0.03)


def _borders(steps: Sequence[int]) -> list[float]:
    """Borders of the columns: half-way between two steps."""
    if len(steps) == 1:
        return [steps[0] - 0.5, steps[0] + 0.5]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(steps)]
    return [2 * steps[0] - middles[0], *middles, 2 * steps[-1] - middles[-1]]
