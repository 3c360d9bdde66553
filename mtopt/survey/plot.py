"""A conflict report as a picture: conflict per module, cosines of the losses. Needs matplotlib, when it draws."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from .table import clipped, most_in_conflict, shortened, shown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .report import ConflictReport

SHOWN = 24
NUMBERED = 6  # losses up to which each cosine is written into its field


def draw(report: ConflictReport, path: str | PathLike[str] | None) -> Figure:
    """Draw, and save if there is a path."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('`plot` needs matplotlib: pip install "mtopt[plot]"') from error
    bars = min(len(report.modules), SHOWN)
    figure = Figure(figsize=(11, max(4.4, 2 + 0.21 * bars)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _conflict_bars(left, report)
    _cosine_fields(right, report)
    figure.legend(loc="outside lower left", ncols=2, frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _conflict_bars(axes: Axes, report: ConflictReport) -> None:
    shown = most_in_conflict(report.modules, SHOWN)
    names = [shortened(shown_name(module), 28) for module in shown]
    shares = [100 * module.conflict.share for module in shown]
    places = range(len(shown))
    axes.barh(places, shares, color="0.7")
    for place, share, module in zip(places, shares, shown, strict=True):
        axes.text(103, place, f"{share:.0f} % of {module.size:,}", va="center", fontsize=8)
    chance = 100 * (1 - 2.0 ** (1 - len(report.losses)))
    axes.axvline(100 * report.total.share, color="black", linestyle="--", label="all shared parameters")
    axes.axvline(chance, color="black", linestyle=":", label=f"if the {len(report.losses)} losses were unrelated")
    axes.set_yticks(places, names)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    some = f" ({len(shown)} of {len(report.modules)})" if len(shown) < len(report.modules) else ""
    axes.set(
        title=f"Conflict per module, in forward order{some}",
        xlabel="shared parameters with gradients of both signs (%)",
        ylabel="module",
        xlim=(0, 140),
        xticks=range(0, 101, 20),
    )


def _cosine_fields(axes: Axes, report: ConflictReport) -> None:
    cosines = report.total.cosines.tolist()
    names = clipped(report.losses, 14)
    image = axes.imshow(cosines, cmap="gray", vmin=-1, vmax=1)
    if len(names) <= NUMBERED:
        for i, row in enumerate(cosines):
            for j, cosine in enumerate(row):
                color = "black" if cosine > -0.2 else "white"
                axes.text(j, i, f"{cosine:+.2f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(title="Cosines over all shared parameters", xlabel="loss", ylabel="loss")
    axes.figure.colorbar(image, ax=axes, label="cosine", fraction=0.05, pad=0.03)
