"""The rows at one site on their way through the transforms, and the weights that come from the Gramian of several."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._dtypes import wide_dtype, widen
from .._ranks import Ranks
from .._scratch import Scratch
from .._transform import GramianTransform, Losses, RowTransform, Site
from .products import Rows, gramian, side_by_side, stacked_if_small, weighted_sum
from .returned import check_rows, check_weights, stream_of


@dataclass(frozen=True)
class Weights:
    """Of rows: one for each of some losses, or a matrix that mixes them; 0 for other losses.

    Attributes:
        values: Shape `(T,)` or `(T, T)`, float64, on the CPU.
        indices: The indices of the T losses.
    """

    values: Tensor
    indices: list[int]

    @property
    def mixing(self) -> bool:
        return self.values.ndim == 2

    def of(self, indices: list[int]) -> list[float]:
        """How much of the row of each loss there is in the sum of all weighted rows."""
        sums = self.values.sum(0) if self.mixing else self.values
        weight = dict(zip(self.indices, sums.tolist(), strict=True))
        return [weight.get(index, 0.0) for index in indices]

    def matrix(self, new: list[int], old: list[int]) -> Tensor:
        """How much of each old row there is in each new one."""
        n = 1 + max(self.indices + new + old)
        full = self.values.new_zeros(n, n)
        index = torch.tensor(self.indices)
        full[index[:, None], index] = self.values
        return full[new][:, old]


class Block:
    """The rows at one site on their way through the transforms, each with its loss's index."""

    def __init__(self, rows: Rows, losses: Losses, site: Site) -> None:
        self.rows = stacked_if_small(rows)
        self.indices = list(losses.indices)
        self.site = site

    def weigh(self, weights: Weights | None) -> None:
        """Scale or mix the rows."""
        if weights is None:
            return
        if not weights.mixing:
            pairs = zip(self.rows, weights.of(self.indices), strict=True)
            self.rows = [(widen(row) * weight).to(row.dtype) for row, weight in pairs]
        else:  # a mixed row may exist for a loss that has none of its own here
            mixed = list(self.site.losses.indices)
            rows = side_by_side(self.rows)
            matrix = weights.matrix(mixed, self.indices).to(widen(rows))
            self.rows, self.indices = torch.tensordot(matrix, widen(rows), 1).to(rows.dtype), mixed

    def transformed(self, transform: RowTransform) -> Tensor:
        rows = side_by_side(self.rows)
        losses = self.site.losses.only(self.indices)
        scale = None if transform.scale_equivariant else losses.scale
        # Unscaled in float32: what a GradScaler keeps from underflow would be lost in half.
        given = rows if scale is None else widen(rows) / scale
        new = check_rows(transform, transform.transform(given, replace(self.site, losses=losses)), given)
        return new if scale is None else (new * scale).to(rows.dtype)

    def masses(self) -> dict[int, float]:
        """The sum of absolute values of each row, by its loss's index."""
        return dict(zip(self.indices, map(mass, self.rows), strict=True))

    def sum(self, weights: Weights) -> Tensor:
        """The sum of the rows, scaled or mixed: without a (T, *S) temporary."""
        return weighted_sum(self.rows, weights.of(self.indices))

    def sum_transformed(self, transform: RowTransform) -> Tensor:
        """The sum of the transformed rows: without a (T, *S) temporary where the transform takes them one by one."""
        losses = self.site.losses.only(self.indices)
        one_by_one = len(self.rows) > 1 and (transform.scale_equivariant or losses.scale is None)
        stream = stream_of(transform, replace(self.site, losses=losses)) if one_by_one else None
        if stream is None:
            rows = self.transformed(transform)
            return rows.sum(0, dtype=wide_dtype(rows.dtype)).to(rows.dtype)
        for position, row in enumerate(self.rows):
            stream.add(position, row)
        return stream.result()


def mass(row: Tensor) -> float:
    """The sum of absolute values."""
    return float(widen(row).abs().sum())  # several times as fast as vector_norm


def gramian_weights(transform: GramianTransform, blocks: Collection[Block]) -> Weights | None:
    """What a transform makes of the Gramian of all blocks; `None` if there are none."""
    if not blocks:
        return None
    products, indices = _products(blocks)
    if len(indices) == 1:
        return Weights(torch.ones(1, dtype=torch.float64), indices)
    losses = next(iter(blocks)).site.losses.only(indices)
    if losses.scale is not None and not transform.scale_equivariant:
        products = products / losses.scale**2
    if not _finite(products, losses, transform):  # an overflow stays visible, and leaves no trace in the state
        return Weights(torch.full((len(indices),), torch.nan, dtype=torch.float64), indices)
    weights = check_weights(transform, transform.weights(products, losses), len(indices))
    return Weights(weights.to("cpu", torch.float64), indices)


def _products(blocks: Collection[Block]) -> tuple[Tensor, list[int]]:
    """The Gramian over all blocks and ranks, float64 on the CPU, and the indices of the losses of its rows."""
    if all(block.site.ranks.size == 1 for block in blocks):
        here = _losses_of(blocks)
        return _sum_of_products(blocks, here).to("cpu", torch.float64), here
    n = next(iter(blocks)).site.losses.n_losses
    total = torch.zeros(n + 1, n, dtype=torch.float64)  # and how often each loss is present
    by_ranks: dict[tuple[Ranks, bool], list[Block]] = {}
    for block in blocks:
        by_ranks.setdefault((block.site.ranks, block.site.part is None), []).append(block)
    for (ranks, examples), together in by_ranks.items():
        products = _sum_of_products(together, range(n))
        present = products.new_zeros(1, n)
        present[0, _losses_of(together)] = 1
        # The ranks' losses are averaged: an example's row in the gradient of the mean is 1/size of the one seen here.
        products = products / (ranks.size**2 if examples else 1)
        total += ranks.sum(torch.cat([products, present])).to("cpu", torch.float64)
    anywhere = total[n].nonzero().flatten().tolist()
    return total[anywhere][:, anywhere], anywhere


def _losses_of(blocks: Collection[Block]) -> list[int]:
    return sorted({index for block in blocks for index in block.indices})


def _sum_of_products(blocks: Collection[Block], indices: Sequence[int]) -> Tensor:
    """The sum of the blocks' Gramians, with a row for each of the losses."""
    total: Tensor | None = None
    scratch = Scratch()
    for block in blocks:
        products = gramian(block.rows, scratch)
        if block.indices != list(indices):
            index = torch.tensor([indices.index(i) for i in block.indices], device=products.device)
            whole = products.new_zeros(len(indices), len(indices))
            whole[index[:, None], index] = products
            products = whole
        total = products if total is None else total + products.to(total.device)
    assert total is not None
    return total


def _finite(products: Tensor, losses: Losses, transform: GramianTransform) -> bool:
    numbers = products.sum()
    if transform.uses_values and losses.scalars is not None:
        numbers = numbers + losses.values.sum().to(numbers)
    return math.isfinite(float(numbers))
