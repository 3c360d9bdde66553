"""Cosines of the losses' gradients as a square of greys. No numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..names import clipped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUMBERED = 6  # losses up to which each cosine is written into its field


def draw_cosines(axes: Axes, losses: Sequence[str], cosines: Sequence[Sequence[float]], title: str) -> None:
    """One field for each two losses: black at -1, white at 1.

    Args:
        axes: Where to draw.
        losses: Their names.
        cosines: `(T, T)`.
        title: What they are the cosines of.
    """
    names = clipped(losses, 14)
    image = axes.imshow(cosines, cmap="gray", vmin=-1, vmax=1)
    if len(names) <= NUMBERED:
        for i, row in enumerate(cosines):
            for j, cosine in enumerate(row):
                color = "black" if cosine > -0.2 else "white"
                axes.text(j, i, f"{cosine:+.2f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(title=title, xlabel="loss", ylabel="loss")
    axes.figure.colorbar(image, ax=axes, label="cosine of their gradients", fraction=0.05, pad=0.03)
