"""Histograms of purity over the training, as greys. No numbers of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_purity(axes: Axes, steps: Sequence[int], histograms: Sequence[Sequence[float]]) -> None:
    """One column for each record: the darker, the more coordinates have that purity.

    Args:
        axes: Where to draw.
        steps: The number of the step of each record, rising.
        histograms: For each record how many coordinates have a purity in each of `n` equal parts of [0, 1].
    """
    shares = [[100 * count / (sum(histogram) or 1) for count in histogram] for histogram in histograms]
    columns = [list(part) for part in zip(*shares, strict=True)]  # (n, records)
    n = len(columns)
    edges = [i / n for i in range(n + 1)]
    mesh = axes.pcolormesh(_borders(steps), edges, columns, cmap="gray_r", vmin=0)
    axes.axhline(0.5, color="0.5", linestyle=":", linewidth=1)
    axes.set(
        title="Purity over the training",
        xlabel="step",
        ylabel="purity: positive share of the gradient\n(0 or 1: the losses agree)",
        ylim=(0, 1),
    )
    axes.figure.colorbar(mesh, ax=axes, label=f"% of the coordinates, per {1 / n:g} of purity", fraction=0.05, pad=0.03)


def _borders(steps: Sequence[int]) -> list[float]:
    """Borders of the columns: half-way between two steps."""
    if len(steps) == 1:
        return [steps[0] - 0.5, steps[0] + 0.5]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(steps)]
    return [2 * steps[0] - middles[0], *middles, 2 * steps[-1] - middles[-1]]
