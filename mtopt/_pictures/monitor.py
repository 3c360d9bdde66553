"""What a Monitor has seen, as a picture: curves, purity and cosines over the training. No numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from os import PathLike
from typing import TYPE_CHECKING

import torch

from .cosines import draw_cosines, known, room
from .curves import Curve, draw_curves
from .figure import add_legend, picture, styles, tick
from .purity import draw_purity

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from .._record import Record

SHOWN = 10  # losses whose curves can be told apart
LEFT = 5.2  # inches


def draw(records: Sequence[Record], site: str, path: str | PathLike[str] | None) -> Figure:
    """Draw the records, of which one or more have seen `site`, and save if there is a path."""
    seen = [record for record in records if site in record.purity]
    losses, cosines = _mean_cosines(seen, site)
    right, below = room(len(losses))
    heights = 3.6 + 0.04 * min(len(losses), SHOWN), below
    with picture(path, LEFT + right, sum(heights)) as figure:
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
        _draw_by_loss(upper, records, site, LEFT + right)
        at_left, at_right = lower.subplots(1, 2, width_ratios=(LEFT, right))
        histograms = [record.purity[site] for record in seen]
        draw_purity(at_left, [record.step for record in seen], histograms, f"Purity at {site}")
        what = "one record" if len(seen) == 1 else f"mean of {len(seen)} records"
        draw_cosines(at_right, losses, cosines, f"Cosines at {site}, {what}")
    return figure


def _draw_by_loss(figure: SubFigure, records: Sequence[Record], site: str, width: float) -> None:
    """The losses and what the steps change of them, where they are known, and the lengths of their gradients."""
    kinds = {
        "loss/": ("Losses", "loss"),
        f"{site}/norm/": (f"Gradients at {site}", "length of a loss's gradient"),
        "change/": ("First-order change by the step", "share of the loss; above 0 it rises"),
    }
    drawn = {prefix: curves for prefix in kinds if (curves := _curves(records, prefix))}
    if "change/" in drawn:
        drawn["change/"] = _relative(records, drawn["change/"])
    names = list(dict.fromkeys(name for curves in drawn.values() for name in curves))
    looks = styles(names[:SHOWN])
    some = f" ({SHOWN} of {len(names)})" if len(names) > SHOWN else ""
    for axes, (prefix, curves) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
        title, label = kinds[prefix]
        draw_curves(axes, {name: curve for name, curve in curves.items() if name in looks}, looks, "step")
        tick(axes.xaxis, whole=True, most=4)
        axes.set(title=f"{title}{some}", ylabel=label)
    add_legend(figure, looks, width)


def _curves(records: Sequence[Record], prefix: str) -> dict[str, Curve]:
    names = dict.fromkeys(name for record in records for name in record.numbers if name.startswith(prefix))
    curves = {}
    for name in names:
        there = [record for record in records if name in record.numbers]
        steps, values = [record.step for record in there], [record.numbers[name] for record in there]
        curves[name.removeprefix(prefix)] = Curve(steps, values)
    return curves


def _relative(records: Sequence[Record], changes: dict[str, Curve]) -> dict[str, Curve]:
    """Changes of losses as shares of these, where they are known."""
    losses = {record.step: record.numbers for record in records}
    found = {}
    for name, curve in changes.items():
        sizes = [abs(losses[int(step)].get(f"loss/{name}", 1.0)) or 1.0 for step in curve.x]
        found[name] = Curve(curve.x, [mean / size for mean, size in zip(curve.means, sizes, strict=True)])
    return found


def _mean_cosines(records: Sequence[Record], site: str) -> tuple[list[str], list[list[float]]]:
    """Over the records in which both losses have a gradient; NaN for two that never have."""
    losses = list(dict.fromkeys(name for record in records for name in record.losses))
    seen = torch.full((len(records), len(losses), len(losses)), nan, dtype=torch.float64)
    for into, record in zip(seen, records, strict=True):
        at = torch.tensor([losses.index(name) for name in record.losses])
        into[at[:, None], at] = known(torch.tensor(record.cosines[site], dtype=torch.float64))
    return losses, seen.nanmean(0).tolist()
