"""A figure with room for a legend, and how methods are told apart in it. No numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = "#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"  # Okabe and Ito's
_LINES = "-", "--", ":", "-."
_MARKERS = "o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "h"


@dataclass(frozen=True)
class Style:
    """How one of several things looks: told apart by the colour-blind, and in grey."""

    color: str
    line: str
    marker: str


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name; no two are alike below 88."""
    return {
        name: Style(_COLORS[i % len(_COLORS)], _LINES[i % len(_LINES)], _MARKERS[i % len(_MARKERS)])
        for i, name in enumerate(names)
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        ImportError: If matplotlib is not installed; says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('`plot` needs matplotlib. Install it with: pip install "mtopt[plot]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def saved(figure: Figure, path: str | PathLike[str] | None) -> Figure:
    """The figure, written to `path` if there is one; its suffix chooses the format."""
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
