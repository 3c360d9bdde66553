"""Takes the rows at sites, and gives the combined gradient of each: row by row, or when all are there. No autograd."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from .._transform import GramianTransform, Losses, RowTransform, Site, Stream
from .block import Block, Metric, gramian_weights
from .products import end_to_end

TOGETHER = 2**17  # numbers in the rows of small sites that go through the transforms as one


Shares = Mapping[int, float | Tensor]
"""How much of each loss's row there is in a combined gradient, by the loss's index: of all of it, or by number."""


class Combination(Protocol):
    """Takes the rows at some sites, in any order, and gives the combined gradient of each site."""

    def add(self, site: int, position: int, row: Tensor) -> None: ...

    def result(self) -> list[Tensor | None]: ...


class Traced(Combination, Protocol):
    """One that knows afterwards what it did."""

    def shares(self, site: int) -> Shares:
        """What `result` made of the rows at a site, where that is traced."""


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

    def shares(self, site: int) -> Shares:
        raise RuntimeError("rows that are handed on one by one are not traced")


class Held:
    """Keeps the rows of every site until all are there.

    Args:
        traced: Whether `shares` is asked for.
        metric: What inner products are taken of; `None`: of the rows themselves.
    """

    def __init__(
        self,
        transforms: Sequence[GramianTransform | RowTransform],
        losses: Losses,
        sites: Sequence[Site],
        *,
        traced: bool = False,
        metric: Metric | None = None,
    ) -> None:
        self.transforms = transforms
        self.traced = traced
        self.metric = metric
        self.kept: dict[int, Shares] = {}
        self.losses = losses
        self.sites = sites
        # A row that is alone stays as it is. But other ranks may have more rows at an activation, and sum over all.
        sums = any(transform.sums_over_ranks for transform in transforms)
        self.together = [site.counts_alone or (sums and site.ranks.size > 1 and site.part is None) for site in sites]
        self.rows: list[list[Tensor]] = [[] for _ in sites]
        self.positions: list[list[int]] = [[] for _ in sites]

    def add(self, site: int, position: int, row: Tensor) -> None:
        self.rows[site].append(row)
        self.positions[site].append(position)

    def result(self) -> list[Tensor | None]:
        device = next((rows[0].device for rows in self.rows if rows), torch.device("cpu"))
        with without_autocast(device.type):
            return self._result()

    def _result(self) -> list[Tensor | None]:
        results: list[Tensor | None] = [None] * len(self.sites)
        shapes = [rows[0].shape if rows else torch.Size() for rows in self.rows]
        blocks: dict[tuple[int, ...], Block] = {}
        for group in list(self._groups()):
            held = [self.rows[i] for i in group]
            for i in group:
                self.rows[i] = []  # so that they can be freed
            first = group[0]
            losses = self.losses.at(self.positions[first])
            if len(held[0]) == 1 and not self.together[first]:
                results[first] = held[0][0]
                self.kept[first] = {losses.indices[0]: 1.0}
            else:
                rows = held[0] if len(group) == 1 else end_to_end(held)
                blocks[group] = Block(rows, losses, self.sites[first], first, traced=self.traced)
        *before, last = self.transforms
        for transform in before:
            _pass(transform, blocks.values(), self.metric)
        weights = None
        if isinstance(last, GramianTransform):
            weights = gramian_weights(last, blocks.values(), self.metric)
        for group in list(blocks):
            block = blocks.pop(group)  # so that its rows can be freed
            if isinstance(last, RowTransform):
                results[group[0]] = block.sum_transformed(last)
            elif weights is not None:
                combined = block.sum(weights).view(-1)
                sizes = [shapes[i].numel() for i in group]
                for i, part in zip(group, torch.split(combined, sizes), strict=True):
                    results[i] = part.view(shapes[i])
            if self.traced:
                self.kept |= dict.fromkeys(group, block.shares())
        return results

    def shares(self, site: int) -> Shares:
        return self.kept.get(site, {})

    def _groups(self) -> Iterator[tuple[int, ...]]:
        """Which sites go through the transforms as one. Apart, many small ones would take long."""
        rows_change = any(isinstance(transform, RowTransform) for transform in self.transforms)  # by draws at each site
        apart = rows_change or self.metric is not None
        groups: dict[object, list[int]] = {}
        sizes: dict[object, int] = {}
        for i, rows in enumerate(self.rows):
            size = sum(row.numel() for row in rows)
            if rows and (apart or len(rows) == 1 or size > TOGETHER):
                yield (i,)
            elif rows:
                site = self.sites[i]
                alike = (*self.positions[i], rows[0].dtype, rows[0].device, site.ranks, site.part is None)
                key = (alike, site.losses.indices)
                if sizes.get(key, 0) + size > TOGETHER:
                    yield tuple(groups.pop(key))
                    sizes[key] = 0
                groups.setdefault(key, []).append(i)
                sizes[key] = sizes.get(key, 0) + size
        yield from map(tuple, groups.values())


def masses_after(
    transforms: Sequence[GramianTransform | RowTransform],
    sites: Iterable[tuple[list[Tensor], Losses, Site, int]],
    metric: Metric | None = None,
) -> list[dict[int, float]]:
    """At each site the sum of absolute values of each row behind all transforms, by its loss's index."""
    blocks = [Block(*site) for site in sites]
    for transform in transforms:
        _pass(transform, blocks, metric)
    return [block.masses() for block in blocks]


def _pass(transform: GramianTransform | RowTransform, blocks: Collection[Block], metric: Metric | None) -> None:
    """Take all blocks through a transform."""
    if isinstance(transform, GramianTransform):
        weights = gramian_weights(transform, blocks, metric)
        for block in blocks:
            block.weigh(weights)
    else:
        for block in blocks:
            block.rows = block.transformed(transform)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """A backward pass may be called inside an autocast, which would take the products of rows in half."""
    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if active else nullcontext()
