"""Numbers that say how the rows at some sites agree or conflict. No transforms, no optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .products import gramian, side_by_side, wide

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
        self.gramian[index[:, None], index] += gramian(rows).to(self.gramian)
        stack = wide(side_by_side(rows))
        positive, negative = stack.clamp_min(0).sum(0), -stack.clamp_max(0).sum(0)
        here = positive + negative > 0
        purity = (positive / (positive + negative))[here]
        self.histogram += torch.histc(purity.float(), BINS, 0.0, 1.0).to(self.histogram)
        self.coordinates += purity.numel()
        self.conflicting += int(((positive > 0) & (negative > 0)).sum())
        self._purities += float(purity.sum(dtype=torch.float64 if purity.device.type != "mps" else torch.float32))

    @property
    def norms(self) -> Tensor:
        """Length of each loss's gradient, shape `(T,)`."""
        return self.gramian.diagonal().sqrt()

    @property
    def cosines(self) -> Tensor:
        """Cosine of each two losses' gradients, shape `(T, T)`; 0 for a loss without one."""
        return torch.nan_to_num(self.gramian / self.norms / self.norms[:, None])

    @property
    def purity(self) -> float:
        """The mean purity; 0.5 where there is no gradient."""
        return self._purities / self.coordinates if self.coordinates else 0.5

    @property
    def share(self) -> float:
        """Share of the coordinates that have gradients of both signs."""
        return self.conflicting / self.coordinates if self.coordinates else 0.0
