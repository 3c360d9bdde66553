"""The picture: learning curves and a histogram of purity. No numbers of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .data import N_TRAIN_DIGITS
from .intervals import mean_band
from .training import METHODS, N_BINS, PLAIN, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".pdf", ".svg")

# Told apart in grey, too; the colours are Okabe and Ito's, safe for the colour-blind.
_STYLES = dict(
    zip(
        METHODS,
        [("#000000", "-", "o"), ("#D55E00", "--", "s"), ("#0072B2", ":", "^"), ("#009E73", "-.", "D")],
        strict=True,
    )
)


def save_picture(path: Path, results: Mapping[str, Sequence[Run]]) -> None:
    """Draw and write; the suffix of `path` chooses the format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _learning_curves(left, results)
    _purity_histogram(right, results)
    figure.savefig(path, dpi=150)


def _learning_curves(axes: Axes, results: Mapping[str, Sequence[Run]]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    n_seeds = len(results[PLAIN])
    for method, runs in results.items():
        color, line, marker = _STYLES[method]
        mean, half = mean_band(torch.stack([100 - 100 * run.accuracy.mean(1) for run in runs]))
        epochs = range(1, len(mean) + 1)
        axes.plot(epochs, mean, color=color, linestyle=line, marker=marker, markersize=5, label=method)
        low, high = (mean - half).clamp(0.1, 100), (mean + half).clamp(0.1, 100)
        axes.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set(
        title="Learning curves" + (f": mean of {n_seeds} seeds, 95 % bands" if n_seeds > 1 else ": one seed"),
        xlabel=f"epoch ({N_TRAIN_DIGITS} pictures each)",
        ylabel="test error, mean of both tasks (%), log scale",
        yscale="log",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")


def _purity_histogram(axes: Axes, results: Mapping[str, Sequence[Run]]) -> None:
    edges = torch.linspace(0, 1, N_BINS + 1)
    shares = {method: torch.stack([100 * run.purity for run in runs]).mean(0) for method, runs in results.items()}
    axes.stairs(shares[PLAIN][0], edges, fill=True, color="0.8", label="start (the same for all)")
    for method, (_, end) in shares.items():
        color, line, _ = _STYLES[method]
        axes.stairs(end, edges, color=color, linestyle=line, linewidth=1.6, label=f"end, {method}")
    axes.set(
        title="Coordinates in conflict at the shared activation",
        xlabel="purity: positive share of the gradient mass\n(near 0 or 1 one task dominates)",
        ylabel=f"% of all coordinates, per {1 / N_BINS:g} of purity",
        xlim=(0, 1),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center")
