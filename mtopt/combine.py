"""Takes the rows at sites, and gives the combined gradient of each: row by row, or when all are there. No autograd."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .distributed import Ranks
from .methods.base import GramianTransform, Losses, RowTransform, Site, Stream
from .products import gramian, side_by_side, stacked_if_small, weighted_sum, wide
from .sums import Scratch, wide_dtype


class Combination(Protocol):
    """Takes the rows at some sites, in any order, and gives the combined gradient of each site."""

    def add(self, site: int, position: int, row: Tensor) -> None: ...

    def result(self) -> list[Tensor | None]: ...


class Streamed:
    """Hands each row on to its site's stream. A row that is alone stays as it is."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams
        self.first: list[tuple[int, Tensor] | None] = [None] * len(streams)
        self.count = [0] * len(streams)

    def add(self, site: int, position: int, row: Tensor) -> None:
        self.count[site] += 1
        if self.count[site] == 1:
            self.first[site] = (position, row)
            return
        if (first := self.first[site]) is not None:
            self.streams[site].add(*first)
            self.first[site] = None
        self.streams[site].add(position, row)

    def result(self) -> list[Tensor | None]:
        return [self._combine(site) for site in range(len(self.streams))]

    def _combine(self, site: int) -> Tensor | None:
        if self.count[site] > 1:
            return self.streams[site].result()
        first = self.first[site]
        if first is None or not self.streams[site].needs_lone_rows:
            return None if first is None else first[1]
        self.streams[site].add(*first)
        return self.streams[site].result()


class Held:
    """Keeps the rows of every site until all are there."""

    def __init__(
        self, transforms: Sequence[GramianTransform | RowTransform], losses: Losses, sites: Sequence[Site]
    ) -> None:
        self.transforms = transforms
        self.losses = losses
        self.sites = sites
        # A row that is alone stays as it is. But other ranks may have more rows at an activation, and sum over all.
        sums = any(transform.sums_over_ranks for transform in transforms)
        self.together = [sums and site.ranks.size > 1 and site.part is None for site in sites]
        self.rows: list[list[Tensor]] = [[] for _ in sites]
        self.positions: list[list[int]] = [[] for _ in sites]

    def add(self, site: int, position: int, row: Tensor) -> None:
        self.rows[site].append(row)
        self.positions[site].append(position)

    def result(self) -> list[Tensor | None]:
        device = next((rows[0].device for rows in self.rows if rows), torch.device("cpu"))
        with _without_autocast(device.type):
            return self._result()

    def _result(self) -> list[Tensor | None]:
        results: list[Tensor | None] = [None] * len(self.sites)
        blocks: dict[int, _Block] = {}
        for i, positions in enumerate(self.positions):
            rows, self.rows[i] = self.rows[i], []  # so that they can be freed
            if len(rows) == 1 and not self.together[i]:
                results[i] = rows[0]
            elif rows:
                blocks[i] = _Block(rows, self.losses.at(positions), self.sites[i])
        weights: Weights | None = None
        for transform in self.transforms:
            for block in blocks.values():
                block.weigh(weights)
            weights = None
            if isinstance(transform, GramianTransform):
                weights = gramian_weights(transform, blocks.values())
            elif transform is not self.transforms[-1]:
                for block in blocks.values():
                    block.rows = block.transformed(transform)
        for i in list(blocks):
            block = blocks.pop(i)  # so that its rows can be freed
            if weights is not None:
                results[i] = block.sum(weights)
            elif isinstance(transform, RowTransform):
                results[i] = block.sum_transformed(transform)
        return results


class _Block:
    """The rows at one site on their way through the transforms, each with its loss's place in the user's list."""

    def __init__(self, rows: list[Tensor], losses: Losses, site: Site) -> None:
        self.rows = stacked_if_small(rows)
        self.indices = list(losses.indices)
        self.site = site

    def weigh(self, weights: Weights | None) -> None:
        """Scale or mix the rows."""
        if weights is None:
            return
        if not weights.mixing:
            pairs = zip(self.rows, weights.of(self.indices), strict=True)
            self.rows = [(wide(row) * weight).to(row.dtype) for row, weight in pairs]
        else:  # a mixed row may exist for a loss that has none of its own here
            mixed = list(self.site.losses.indices)
            rows = side_by_side(self.rows)
            matrix = weights.matrix(mixed, self.indices).to(wide(rows))
            self.rows, self.indices = torch.tensordot(matrix, wide(rows), 1).to(rows.dtype), mixed

    def transformed(self, transform: RowTransform) -> Tensor:
        rows = side_by_side(self.rows)
        losses = self.site.losses.only(self.indices)
        scale = None if transform.scale_equivariant else losses.scale
        # Unscaled in float32: what a GradScaler keeps from underflow would be lost in half.
        new = transform.transform(rows if scale is None else wide(rows) / scale, replace(self.site, losses=losses))
        return new if scale is None else (new * scale).to(rows.dtype)

    def sum(self, weights: Weights) -> Tensor:
        """The sum of the rows, scaled or mixed: without a (T, *S) temporary."""
        return weighted_sum(self.rows, weights.of(self.indices))

    def sum_transformed(self, transform: RowTransform) -> Tensor:
        """The sum of the transformed rows: without a (T, *S) temporary where the transform takes them one by one."""
        losses = self.site.losses.only(self.indices)
        one_by_one = len(self.rows) > 1 and (transform.scale_equivariant or losses.scale is None)
        stream = transform.stream(replace(self.site, losses=losses)) if one_by_one else None
        if stream is None:
            rows = self.transformed(transform)
            return rows.sum(0, dtype=wide_dtype(rows.dtype)).to(rows.dtype)
        for position, row in enumerate(self.rows):
            stream.add(position, row)
        return stream.result()


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """A backward may be called inside an autocast, which would take the products of rows in half."""
    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if active else nullcontext()


@dataclass(frozen=True)
class Weights:
    """Of rows: one for each of some losses, or a matrix that mixes them; 0 for other losses.

    Attributes:
        values: Shape `(T,)` or `(T, T)`, float64, on the CPU.
        indices: Places of the T losses in the user's list.
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


def gramian_weights(transform: GramianTransform, blocks: Collection[_Block]) -> Weights | None:
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
    return Weights(transform.weights(products, losses).to("cpu", torch.float64), indices)


def _products(blocks: Collection[_Block]) -> tuple[Tensor, list[int]]:
    """The Gramian over all blocks and ranks, float64 on the CPU, and the losses of its rows, by place in the list."""
    if all(block.site.ranks.size == 1 for block in blocks):
        here = _losses_of(blocks)
        return _sum_of_products(blocks, here).to("cpu", torch.float64), here
    n = next(iter(blocks)).site.losses.n_losses
    total = torch.zeros(n + 1, n, dtype=torch.float64)  # and how often each loss is present
    by_ranks: dict[tuple[Ranks, bool], list[_Block]] = {}
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


def _losses_of(blocks: Collection[_Block]) -> list[int]:
    return sorted({index for block in blocks for index in block.indices})


def _sum_of_products(blocks: Collection[_Block], indices: Sequence[int]) -> Tensor:
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
