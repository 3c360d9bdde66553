"""What all pictures have in common: a figure that may be saved, and how things are told apart in it. No numbers."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import log10
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .names import clipped

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito's, so that neighbours are neither alike for the colour-blind nor in grey.
_COLORS = "#000000", "#D55E00", "#56B4E9", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#666666"
_LINES = "-", "--", ":", "-."
_MARKERS = "o", "s", "^", "D", "v", "P", "X", "<", "*", ">"
_FILLS = "full", "none", "left"
SMALL = 9  # points, of text
HATCHED = {"hatch": "///", "edgecolor": "0.6"}  # axes where there is nothing to show


@dataclass(frozen=True)
class Style:
    """How one of several things looks: told apart by the colour-blind, and in grey."""

    color: str
    line: str
    marker: str
    fill: str

    def markers(self, size: float) -> dict[str, Any]:
        """Arguments for matplotlib: how single points look."""
        return {"color": self.color, "marker": self.marker, "fillstyle": self.fill, "markersize": size}

    def curve(self, size: float) -> dict[str, Any]:
        """The same for a line through them."""
        return {"linestyle": self.line, **self.markers(size)}


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name; of 30 no two have the same markers."""
    looks = {}
    for i, name in enumerate(names):
        fill = _FILLS[i // len(_MARKERS) % len(_FILLS)]
        looks[name] = Style(_COLORS[i % len(_COLORS)], _LINES[i % len(_LINES)], _MARKERS[i % len(_MARKERS)], fill)
    return looks


@contextmanager
def picture(path: str | PathLike[str] | None, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches; what is drawn is saved to `path`, if there is one: all of it or nothing.

    It has matplotlib's own style, whatever is set, so that the text has the room that it needs, and an SVG of the same
    numbers is the same file.

    Raises:
        ImportError: If matplotlib is not installed; says how to install it.
        OSError: If `path` cannot be written.
        TypeError: If `path` is no path.
        ValueError: If the suffix of `path` is no format that matplotlib knows.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('`plot` needs matplotlib. Install it with: pip install "mtopt[plot]"') from error
    with style.context(["default", {"svg.hashsalt": "mtopt"}]):
        figure = Figure(figsize=(width, height), layout="constrained")
        if path is None:
            yield figure
            return
        suffix = _suffix(path, figure.canvas.get_supported_filetypes())
        yield figure
        content = BytesIO()
        figure.savefig(content, format=suffix, dpi=150)
        Path(path).write_bytes(content.getvalue())


def _suffix(path: object, known: Iterable[str]) -> str:
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"`path` must be a str or a Path, but it is a {type(path).__name__}.")
    suffix = Path(path).suffix[1:].lower()
    if suffix not in known:
        raise ValueError(
            f"`path` must end in a format that matplotlib writes, such as .png, .svg or .pdf, but it is {str(path)!r}."
        )
    if not Path(path).parent.is_dir():
        message = "`path` is in a folder that does not exist; make it first, or give another"
        raise FileNotFoundError(errno.ENOENT, message, str(Path(path).parent))
    return suffix


def plain(name: str) -> str:
    """A name as matplotlib shows it letter by letter: with a $ it would be maths, with a _ before it no label."""
    return f"{' ' if name.startswith('_') else ''}{' '.join(name.split())}".replace("$", r"\$")


def labels(names: Iterable[str], width: int) -> list[str]:
    """The names as labels of at most so many characters, no two alike."""
    return [plain(name) for name in clipped(list(names), width)]


def tick(axis: Axis, *, whole: bool = False, most: int = 7) -> None:
    """Few ticks, each with its number in full: no factor or offset stands beside the axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def told(x: float, _: int | None) -> str:
        low, high = sorted(axis.get_view_interval())
        decades = log10(max(-low, high) / (high - low))  # from the range to the numbers
        return f"{x + 0.0:.{max(6, 3 + int(decades))}g}".replace("-", "\N{MINUS SIGN}")

    axis.set_major_locator(MaxNLocator(most, integer=whole, min_n_ticks=1 if whole else 2, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(FuncFormatter(told))


def add_legend(
    figure: Figure | SubFigure, looks: Mapping[str, Style], width: float, notes: Mapping[str, str] | None = None
) -> None:
    """What has which style, below all axes, in as many columns as there is room for.

    Args:
        figure: What to put it in.
        looks: The style of each thing by its name.
        width: The figure's, in inches.
        notes: What is said behind a name.
    """
    from matplotlib.lines import Line2D
    from matplotlib.textpath import TextPath

    handles = [Line2D([], [], **look.curve(5)) for look in looks.values()]
    told = [f"{label}{(notes or {}).get(name, '')}" for name, label in zip(looks, labels(looks, 32), strict=True)]
    inches = max(TextPath((0, 0), label, size=SMALL).get_extents().width / 72 for label in told)
    n_columns = min(len(told), max(1, int(width / (inches + 0.8))))
    settings: dict[str, Any] = {"ncols": n_columns, "frameon": False, "fontsize": SMALL, "handlelength": 3}
    figure.legend(handles, told, loc="outside lower center", **settings)
