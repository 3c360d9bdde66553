"""Pictures that are the same file each time they are drawn, and the ticks of logarithmic axes. No data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@contextmanager
def svg(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is saved in the end; its size is in inches."""
    with matplotlib.rc_context({"svg.hashsalt": path.name, "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})


def log_ticks(axes: Axes, xs: Sequence[float]) -> None:
    """Of two logarithmic axes, at all x."""
    axes.set_xticks(xs, [f"{x:g}" if x < 1e4 else _short(x) for x in xs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _short(x: float) -> str:
    """As 100k or 30M."""
    return f"{x / 1e6:.0f}M" if x > 9e5 else f"{x / 1e3:.0f}k"
