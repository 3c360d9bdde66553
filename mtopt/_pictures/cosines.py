"""Cosines of the losses' gradients as a square: red below 0, white at 0, blue above. No numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from typing import TYPE_CHECKING

from torch import Tensor

from .figure import HATCHED, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUMBERED = 6  # losses up to which each cosine is written into its field
NAMED = 48  # losses up to which each has its name at the edge
DASHED = -0.1  # cosines below have a dash
DARK = 0.6  # cosines from which a field is dark


def room(n_losses: int) -> tuple[float, float]:
    """Width and height in inches that the square with its names needs."""
    side = max(3.0, 0.14 * min(n_losses, NAMED))
    return side + 2.2, side + 1.8


def known(cosines: Tensor) -> Tensor:
    """NaN instead of the cosines of a gradient that is zero, or not finite: on the diagonal it has 0."""
    there = cosines.diagonal() != 0
    return cosines.where(there & there[:, None], nan)


def draw_cosines(axes: Axes, losses: Sequence[str], cosines: Sequence[Sequence[float]], title: str) -> None:
    """One field for each two losses: red at -1, white at 0, blue at 1, hatched where there is none.

    In grey both ends are dark: what is below 0 has its number, or a dash.

    Args:
        axes: Where to draw.
        losses: Their names.
        cosines: `(T, T)`, NaN where two losses have none.
        title: What they are the cosines of.
    """
    names, n = labels(losses, 14), len(losses)
    image = axes.imshow(cosines, cmap="RdBu", vmin=-1, vmax=1)
    fields = [(i, j, cosine) for i, row in enumerate(cosines) for j, cosine in enumerate(row)]
    missing = [field for field in fields if isnan(field[2])]
    if n <= NUMBERED:
        for i, j, cosine in fields:
            if not isnan(cosine):
                color = "white" if abs(cosine) > DARK else "black"
                axes.text(j, i, f"{cosine:+z.2f}", ha="center", va="center", color=color, fontsize=10 if n <= 4 else 8)
    elif n <= NAMED:
        for color, low, high in (("white", -2.0, -DARK), ("black", -DARK, DASHED)):
            dashed = [(j, i) for i, j, cosine in fields if low <= cosine < high]
            if dashed:
                xs, ys = zip(*dashed, strict=True)
                axes.scatter(xs, ys, marker="_", s=(150 / n) ** 2, color=color)
    if missing:
        axes.patch.set(**HATCHED)
    ticks = range(0, n, -(-n // NAMED))
    size = 10 if n <= 14 else 8
    axes.set_xticks(ticks, names[:: ticks.step], rotation=90, fontsize=size)
    axes.set_yticks(ticks, names[:: ticks.step], fontsize=size)
    axes.set(title=title, xlabel="loss (hatched: no gradients to compare)" if missing else "loss", ylabel="loss")
    label = "cosine of the gradients" + (f" (dash: below {DASHED:g})" if NUMBERED < n <= NAMED else "")
    axes.figure.colorbar(image, ax=axes, label=label, fraction=0.05, pad=0.03)
