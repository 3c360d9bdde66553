"""The rows at one site on their way through the transforms, and the weights that come from the Gramian of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._dtypes import wide_dtype, widen
from .._ranks import Ranks
from .._scratch import Scratch
from .._transform import GramianTransform, Losses, RowTransform, Site
from .products import (
    SMALL,
    Rows,
    excess,
    gramian,
    lost,
    nearly_dependent,
    scaled,
    side_by_side,
    stacked_if_small,
    weighted_sum,
)
from .returned import check_rows, check_weights, stream_of


@dataclass(frozen=True)
class Weights:
    """Of rows: one for each of some losses, or a matrix that mixes them; 0 for other losses.

    Attributes:
        values: Shape `(T,)` or `(T, T)`, float64, on the CPU.
        indices: The indices of the T losses.
        exact: Whether rows cancel each other so far that they must be added up in float64.
    """

    values: Tensor
    indices: list[int]
    exact: bool = False

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


Metric = Callable[[int, Tensor], Tensor]
"""From the number of a site and its rows, shape `(T, *S)`, to rows whose inner products are taken instead."""


class Block:
    """The rows at one site on their way through the transforms, each with its loss's index.

    Args:
        number: Of the site, or of the first of several.
        traced: Whether to keep what was done to them, for `shares`.
    """

    def __init__(self, rows: Rows, losses: Losses, site: Site, number: int = 0, *, traced: bool = False) -> None:
        self.rows = stacked_if_small(rows)
        self.indices = list(losses.indices)
        self.site = site
        self.number = number
        self.traced = traced
        self.done: list[tuple[list[int], Weights | Tensor]] = []  # with the indices of the rows before

    def measured(self, metric: Metric) -> Block:
        """The rows as a metric has them."""
        measured = metric(self.number, widen(side_by_side(self.rows)))
        return Block(measured, self.site.losses.only(self.indices), self.site)

    def rows_of(self, index: int) -> list[Tensor]:
        """The row of a loss, if it has one here."""
        return [row for row, i in zip(self.rows, self.indices, strict=True) if i == index]

    def weigh(self, weights: Weights | None) -> None:
        """Scale or mix the rows."""
        if weights is None:
            return
        self.done.append((self.indices, weights))
        dtype = self.rows[0].dtype
        if not weights.mixing:
            numbers = weights.of(self.indices)
            powers = excess(numbers)
            triples = zip(scaled(self.rows, powers), numbers, powers, strict=True)
            self.rows = [(widen(row) * (number / 2.0**power)).to(dtype) for row, number, power in triples]
        else:  # a mixed row may exist for a loss that has none of its own here
            mixed = list(self.site.losses.indices)
            matrix = weights.matrix(mixed, self.indices)
            powers = excess(matrix.abs().amax(0).tolist())
            rows = widen(side_by_side(scaled(self.rows, powers)))
            matrix = (matrix / matrix.new_tensor([2.0**power for power in powers])).to(rows)
            self.rows, self.indices = torch.tensordot(matrix, rows, 1).to(dtype), mixed

    def transformed(self, transform: RowTransform) -> Tensor:
        rows = side_by_side(self.rows)
        losses = self.site.losses.only(self.indices)
        scale = None if transform.scale_equivariant else losses.scale
        # Unscaled in float32: what a GradScaler keeps from underflow would be lost in half.
        given = rows if scale is None else widen(rows) / scale
        site = replace(self.site, losses=losses)
        if self.traced:
            shares = transform.shares(given, site)
            self.done.append((self.indices, shares))
            made = (given * shares).to(given.dtype)
        else:
            made = transform.transform(given, site)
        new = check_rows(transform, made, given)
        return new if scale is None else (new * scale).to(rows.dtype)

    def masses(self) -> dict[int, float]:
        """The sum of absolute values of each row, by its loss's index."""
        return dict(zip(self.indices, map(mass, self.rows), strict=True))

    def sum(self, weights: Weights) -> Tensor:
        """The sum of the rows, scaled or mixed: without a (T, *S) temporary."""
        self.done.append((self.indices, weights))
        return weighted_sum(self.rows, weights.of(self.indices), exact=weights.exact)

    def sum_transformed(self, transform: RowTransform) -> Tensor:
        """The sum of the transformed rows: without a (T, *S) temporary where the transform takes them one by one."""
        losses = self.site.losses.only(self.indices)
        one_by_one = len(self.rows) > 1 and (transform.scale_equivariant or losses.scale is None)
        one_by_one = one_by_one and not self.traced
        stream = stream_of(transform, replace(self.site, losses=losses)) if one_by_one else None
        if stream is None:
            rows = self.transformed(transform)
            return rows.sum(0, dtype=wide_dtype(rows.dtype)).to(rows.dtype)
        for position, row in enumerate(self.rows):
            stream.add(position, row)
        return stream.result()

    def shares(self) -> dict[int, float | Tensor]:
        """How much of each loss's row there is in the sum of the rows, by the loss's index: from the last to the first
        of what was done to them."""
        kept: dict[int, float | Tensor] = {}
        for step, (indices, done) in enumerate(reversed(self.done)):
            if isinstance(done, Tensor):
                kept = {i: share * kept.get(i, 0.0 if step else 1.0) for i, share in zip(indices, done, strict=True)}
            elif step == 0:
                kept = dict(zip(indices, done.of(indices), strict=True))
            else:
                new = list(kept)
                matrix = done.matrix(new, indices).tolist() if done.mixing else None
                if matrix is None:
                    kept = {i: weight * kept.get(i, 0.0) for i, weight in zip(indices, done.of(indices), strict=True)}
                else:
                    kept = {
                        i: sum(row[k] * kept[j] for j, row in zip(new, matrix, strict=True))
                        for k, i in enumerate(indices)
                    }
        return kept


def mass(row: Tensor) -> float:
    """The sum of absolute values."""
    return float(widen(row).abs().sum())  # several times as fast as vector_norm


def gramian_weights(
    transform: GramianTransform, blocks: Collection[Block], metric: Metric | None = None
) -> Weights | None:
    """What a transform makes of the Gramian of all blocks; `None` if there are none."""
    if not blocks:
        return None
    measured = blocks if metric is None else [block.measured(metric) for block in blocks]
    products, indices = _products(measured)
    if len(indices) == 1:
        return Weights(torch.ones(1, dtype=torch.float64), indices)
    losses = next(iter(blocks)).site.losses.only(indices)
    if losses.scale is not None and not transform.scale_equivariant:
        products = products / losses.scale**2
    if not _finite(products, losses, transform):  # an overflow stays visible, and leaves no trace in the state
        return Weights(torch.full((len(indices),), torch.nan, dtype=torch.float64), indices)
    if transform.reads_sizes:
        losses = replace(losses, sizes=_sizes(blocks)[indices])
    exact = _many(blocks) and nearly_dependent(products)
    weights = check_weights(transform, transform.weights(products, losses), len(indices))
    return Weights(weights.to("cpu", torch.float64), indices, exact)


def _products(blocks: Collection[Block]) -> tuple[Tensor, list[int]]:
    """The Gramian over all blocks and ranks, float64 on the CPU, and the indices of the losses of its rows."""
    if all(block.site.ranks.size == 1 for block in blocks):
        here = _losses_of(blocks)
        return _sum_of_products(blocks, here)[1], here
    n = next(iter(blocks)).site.losses.n_losses
    total = torch.zeros(n + 1, n, dtype=torch.float64)  # and how often each loss is present
    for (ranks, examples), together in _by_ranks(blocks).items():
        products, _ = _sum_of_products(together, range(n))
        present = products.new_zeros(1, n)
        for index in _losses_of(together):
            present[0, index].fill_(1)
        # The ranks' losses are averaged: an example's row in the gradient of the mean is 1/size of the one seen here.
        products = products / (ranks.size**2 if examples else 1)
        total += ranks.sum(torch.cat([products, present])).to("cpu", torch.float64)
    anywhere = total[n].nonzero().flatten().tolist()
    return total[anywhere][:, anywhere], anywhere


def _by_ranks(blocks: Collection[Block]) -> dict[tuple[Ranks, bool], list[Block]]:
    """The blocks whose numbers the same ranks hold, and whether these have other examples, rather than shards."""
    found: dict[tuple[Ranks, bool], list[Block]] = {}
    for block in blocks:
        found.setdefault((block.site.ranks, block.site.part is None), []).append(block)
    return found


def _sizes(blocks: Collection[Block]) -> Tensor:
    """The largest and the mean absolute value of each loss's row, over all blocks and ranks, shape `(n_losses, 2)`."""
    n = next(iter(blocks)).site.losses.n_losses
    largest = torch.zeros(n, dtype=torch.float64)
    sums = torch.zeros(n, 2, dtype=torch.float64)  # of absolute values, and how many they are
    for (ranks, examples), together in _by_ranks(blocks).items():
        device = together[0].rows[0].device
        here, added = torch.zeros(n, dtype=torch.float64), torch.zeros(n, 2, dtype=torch.float64)
        for block in together:
            for index, row in zip(block.indices, block.rows, strict=True):
                sizes = widen(row).abs()
                if sizes.numel() > 0:  # a shard may be empty
                    here[index] = max(float(here[index]), float(sizes.max()))
                    total = float(sizes.sum(dtype=torch.float64))
                    added[index] += torch.tensor([total, sizes.numel()], dtype=torch.float64)
        mean = 1 / ranks.size if examples else 1  # of the ranks' losses: a row in the gradient of the mean is shorter
        largest = torch.maximum(largest, mean * ranks.largest(here.to(device)).cpu())
        sums += ranks.sum(added.to(device)).cpu() * torch.tensor([mean, 1.0])
    return torch.stack([largest, sums[:, 0] / sums[:, 1].clamp_min(1)], 1)


def _losses_of(blocks: Collection[Block]) -> list[int]:
    return sorted({index for block in blocks for index in block.indices})


def _sum_of_products(blocks: Collection[Block], indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The sum of the blocks' Gramians, with a row for each of the losses: on their device, and on the CPU."""
    total = _sum_of_gramians(blocks, indices, exact=False)

    def rows_of(position: int) -> Iterator[Tensor]:
        return (row for block in blocks for row in block.rows_of(indices[position]))

    size = sum(block.rows[0].numel() for block in blocks)
    here = total.to("cpu", torch.float64)  # a device is waited for, once for all blocks
    if lost(here.diagonal().tolist(), size, rows_of) or (_many(blocks) and nearly_dependent(here)):
        total = _sum_of_gramians(blocks, indices, exact=True)
        here = total.to("cpu", torch.float64)
    return (total + total.T) / 2, (here + here.T) / 2  # BLAS may round the two halves differently


def _many(blocks: Collection[Block]) -> bool:
    """Whether float32 is used at all: few numbers are multiplied and added up in float64."""
    return any(len(block.rows) * block.rows[0].numel() > SMALL for block in blocks)


def _sum_of_gramians(blocks: Collection[Block], indices: Sequence[int], *, exact: bool) -> Tensor:
    total: Tensor | None = None
    scratch = Scratch()
    for block in blocks:
        products = gramian(block.rows, scratch, exact=exact)
        if block.indices != list(indices):
            products = _spread(products, [indices.index(i) for i in block.indices], len(indices))
        total = products if total is None else total + products.to(total.device)
    assert total is not None
    return total


def _spread(products: Tensor, places: Sequence[int], n: int) -> Tensor:
    """The products at some places of a larger Gramian, 0 elsewhere: no list of places is copied to a device."""
    rows = products.new_zeros(len(places), n)
    for i, place in enumerate(places):
        rows[:, place] = products[:, i]
    whole = products.new_zeros(n, n)
    for i, place in enumerate(places):
        whole[place] = rows[i]
    return whole


def _finite(products: Tensor, losses: Losses, transform: GramianTransform) -> bool:
    numbers = products.sum()
    if transform.uses_values and losses.scalars is not None:
        numbers = numbers + losses.values.sum().to(numbers)
    return math.isfinite(float(numbers))
