"""The string as a picture: the exact field, what was learned, what is left of it, and how. No numbers of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._pictures.figure import SMALL, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LOOKS = ("black", "-"), ("#D55E00", "--"), ("#0072B2", "-")  # colours of Okabe and Ito, and lines


@dataclass(frozen=True)
class Learned:
    """What one way has learned.

    Attributes:
        title: Above its field.
        field: A row for each t.
        curve: Its error after each of the steps that are drawn.
    """

    title: str
    field: Tensor
    curve: Sequence[float]


def draw(
    exact: Tensor,
    ways: Mapping[str, Learned],
    others: Sequence[Sequence[float]],
    steps: Sequence[int],
    about: str,
    path: str | PathLike[str] | None,
) -> Figure:
    """Draw, and save if there is a path.

    Args:
        exact: The exact field.
        ways: By name.
        others: Curves of errors that stay in the background.
        steps: After which an error is known.
        about: The title of all.
        path: Where to.
    """
    looks = dict(zip(ways, LOOKS, strict=True))
    with picture(path, 11, 5.9) as figure:
        above, below = figure.subplots(2, 1 + len(ways))
        figure.suptitle(about, fontsize=11)
        scale = float(exact.abs().max())
        image = _draw_field(above[0], exact, scale, "exact", "black")
        above[0].set(xlabel="t", ylabel="x")
        for axes, (name, way) in zip(above[1:], ways.items(), strict=True):
            _draw_field(axes, way.field, scale, way.title, looks[name][0])
        figure.colorbar(image, ax=list(above), label="u", aspect=16, pad=0.01, shrink=0.85)
        differences = [way.field - exact for way in ways.values()]
        scale = max(float(difference.abs().max()) for difference in differences)
        for axes, name, difference in zip(below[1:], ways, differences, strict=True):
            image = _draw_field(axes, difference, scale, f"{name} \N{MINUS SIGN} exact", looks[name][0])
            axes.set_xlabel("t")
        figure.colorbar(image, ax=list(below), label="difference", aspect=16, pad=0.01, shrink=0.85)
        _draw_errors(below[0], ways, looks, others, steps)
    return figure


def _draw_field(axes: Axes, field: Tensor, scale: float, title: str, color: str) -> Any:
    look: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -scale, "vmax": scale, "interpolation": "bilinear"}
    image = axes.imshow(field.T.numpy(), origin="lower", extent=(0, 1, 0, 1), **look)
    axes.set_title(title, fontsize=10, color=color)
    axes.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axes.tick_params(labelsize=SMALL)
    return image


def _draw_errors(
    axes: Axes,
    ways: Mapping[str, Learned],
    looks: Mapping[str, tuple[str, str]],
    others: Sequence[Sequence[float]],
    steps: Sequence[int],
) -> None:
    """One curve for each way, on a logarithmic scale."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for curve in others:
        axes.plot(steps, curve, color="0.8", linewidth=0.8)
    for name, way in ways.items():
        color, line = looks[name]
        axes.plot(steps, way.curve, color=color, linestyle=line)
    axes.set(yscale="log", xlabel="step", xlim=(0, steps[-1]), box_aspect=1)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("error; grey: other weights", fontsize=10)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.3)
