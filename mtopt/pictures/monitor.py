"""What a Monitor has seen, as a picture: losses, purity and cosines over the training. No numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

from .cosines import draw_cosines
from .curves import Curve, draw_curves
from .figure import new_figure, saved, styles
from .purity import draw_purity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..monitor import Record

SHOWN = 10  # losses whose curves can be told apart


def draw(records: Sequence[Record], site: str, path: str | PathLike[str] | None) -> Figure:
    """Draw the records that have seen `site`, and save if there is a path."""
    figure = new_figure(14, 4.4)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.1, 1))
    _draw_by_loss(left, records, site)
    draw_purity(middle, [record.step for record in records], [record.purity[site] for record in records])
    losses, cosines = _mean_cosines(records, site)
    what = "one record" if len(records) == 1 else f"mean of {len(records)} records"
    draw_cosines(right, losses, cosines, f"Cosines at {site}, {what}")
    return saved(figure, path)


def _draw_by_loss(axes: Axes, records: Sequence[Record], site: str) -> None:
    """The losses where they are known, else the lengths of their gradients."""
    known = any(name.startswith("loss/") for record in records for name in record.numbers)
    prefix = "loss/" if known else f"{site}/norm/"
    names = list(dict.fromkeys(n.removeprefix(prefix) for r in records for n in r.numbers if n.startswith(prefix)))
    curves = {}
    for name in names[:SHOWN]:
        seen = [(float(r.step), r.numbers[prefix + name]) for r in records if prefix + name in r.numbers]
        curves[name] = Curve([step for step, _ in seen], [value for _, value in seen])
    draw_curves(axes, curves, styles(curves))
    some = f" ({SHOWN} of {len(names)})" if len(names) > SHOWN else ""
    what = "Losses" if known else f"Gradients at {site}"
    axes.set(title=f"{what}{some}", xlabel="step", ylabel="loss" if known else "length of a loss's gradient")
    axes.legend()


def _mean_cosines(records: Sequence[Record], site: str) -> tuple[list[str], list[list[float]]]:
    """Over the records that have both losses; 1 on the diagonal."""
    losses = list(dict.fromkeys(name for record in records for name in record.losses))
    seen: dict[tuple[str, str], list[float]] = {}
    for record in records:
        for one, row in zip(record.losses, record.cosines[site], strict=True):
            for other, cosine in zip(record.losses, row, strict=True):
                seen.setdefault((one, other), []).append(cosine)
    means = {pair: sum(cosines) / len(cosines) for pair, cosines in seen.items()}
    return losses, [[means.get((one, other), 0.0) for other in losses] for one in losses]
