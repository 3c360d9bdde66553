"""Numbers that say how the rows at some sites agree or conflict. No transforms, no optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from .._dtypes import solid_dtype, widen
from .products import gramian, lost

BINS = 20


class Conflict:
    """How the losses' gradients agree, over the sites that were added.

    Attributes:
        losses: What each loss is called.
        gramian: Inner products of the losses' gradients, shape `(T, T)`, float64.
        histogram: How many coordinates have a purity in each of 20 equal parts of [0, 1]: of those with a gradient.
        coordinates: How many have a gradient at all.
        conflicting: How many have gradients of both signs.
    """

    def __init__(self, losses: Sequence[str]) -> None:
        self.losses = tuple(losses)
        n = len(self.losses)
        self.gramian = torch.zeros(n, n, dtype=torch.float64)
        self.histogram = torch.zeros(BINS, dtype=torch.float64)
        self.coordinates = 0
        self.conflicting = 0
        self._purities = 0.0  # their sum

    def add(self, rows: Sequence[Tensor], positions: Sequence[int]) -> None:
        """Take in the rows at one site, of the losses at these positions."""
        index = torch.tensor(positions)
        products = gramian(rows)
        if lost(products.diagonal().tolist(), rows[0].numel(), lambda i: [rows[i]]):
            products = gramian(rows, exact=True)
        self.gramian[index[:, None], index] += products.to(self.gramian)
        total, positive = _sums(rows)
        negative = total - positive  # exactly 0 where no gradient is negative: both sums take the rows in one order
        purity = positive / (positive - negative)  # NaN where there is no gradient
        counts = torch.histc(purity.float(), BINS, 0.0, 1.0).to(self.histogram)  # passes over NaN
        self.histogram += counts
        self.coordinates += int(counts.sum())
        self.conflicting += int(((positive > 0) & (negative < 0)).sum())
        self._purities += float(purity.nansum(dtype=solid_dtype(purity.device)))

    def include(self, other: Conflict) -> None:
        """Take in what another one has seen, of the same losses at other sites."""
        self.gramian += other.gramian
        self.histogram += other.histogram
        self.coordinates += other.coordinates
        self.conflicting += other.conflicting
        self._purities += other._purities

    @property
    def norms(self) -> Tensor:
        """Length of each loss's gradient, shape `(T,)`."""
        return self.gramian.diagonal().sqrt()

    @property
    def cosines(self) -> Tensor:
        """Cosine of each two losses' gradients, shape `(T, T)`; 0 for a loss without one."""
        return torch.nan_to_num(self.gramian / self.norms / self.norms[:, None])

    @property
    def alignment(self) -> float:
        """How far the directions agree: 1 where all are the same, -1 where they cancel; of losses with a gradient."""
        there = self.gramian.diagonal() > 0
        n = int(there.sum())
        return 2 * float(self.cosines[there][:, there].sum()) / n**2 - 1 if n else 0.0

    @property
    def purity(self) -> float:
        """The mean purity; 0.5 where there is no gradient."""
        return self._purities / self.coordinates if self.coordinates else 0.5

    @property
    def share(self) -> float:
        """Share of the coordinates that have gradients of both signs."""
        return self.conflicting / self.coordinates if self.coordinates else 0.0

    @property
    def lowest(self) -> tuple[int, int] | None:
        """The two losses, by position, whose gradients have the lowest cosine; `None` where fewer have a gradient."""
        cosines, there = self.cosines.tolist(), (self.gramian.diagonal() > 0).tolist()
        pairs = [(i, j) for i, j in combinations(range(len(there)), 2) if there[i] and there[j]]
        return min(pairs, key=lambda pair: cosines[pair[0]][pair[1]], default=None)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain Python values; `None` for what is not finite."""
        return {
            "purity": _finite(self.purity),
            "conflict": _finite(self.share),
            "coordinates": self.coordinates,
            "norms": {name: _finite(norm) for name, norm in zip(self.losses, self.norms.tolist(), strict=True)},
            "cosines": [[_finite(cosine) for cosine in row] for row in self.cosines.tolist()],
            "histogram": [int(count) for count in self.histogram.tolist()],
        }


def _sums(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Of all numbers, and of those above 0, coordinate by coordinate."""
    first, *others = rows
    total = widen(first).clone()
    positive = total.clamp_min(0)
    for row in others:
        total += row
        positive += row.clamp_min(0)
    return total, positive


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
