"""Takes the rows at sites, and gives the combined gradient of each: row by row, or when all are there. No autograd."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .distributed import Ranks
from .methods.base import GramianTransform, Losses, RowTransform, Site, Stream
from .products import gramian, weighted_sum
from .sums import solid_dtype, wide_dtype


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
        results: list[Tensor | None] = [rows[0] if len(rows) == 1 else None for rows in self.rows]
        blocks: dict[int, _Block] = {}
        for i, rows in enumerate(self.rows):
            if len(rows) > 1 or (rows and self.together[i]):
                blocks[i] = _Block(rows, self.losses.at(self.positions[i]), self.sites[i])
        self.rows.clear()
        weights = None
        for transform in self.transforms:
            for block in blocks.values():
                block.weigh(weights)
            weights = None
            if isinstance(transform, GramianTransform):
                weights = gramian_weights(transform, blocks.values())
            elif transform is not self.transforms[-1]:
                for block in blocks.values():
                    block.rows = list(block.transformed(transform))
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
        self.rows = rows
        self.indices = list(losses.indices)
        self.site = site

    def weigh(self, weights: Tensor | None) -> None:
        """Scale the rows by `(n_losses,)` weights, or mix them by an `(n_losses, n_losses)` matrix."""
        if weights is None:
            return
        if weights.ndim == 1:
            pairs = zip(self.rows, weights[self.indices].tolist(), strict=True)
            self.rows = [(_wide(row) * weight).to(row.dtype) for row, weight in pairs]
        else:  # a mixed row may exist for a loss that has none of its own here
            mixed = list(self.site.losses.indices)
            rows = _wide(torch.stack(self.rows))
            rows = torch.tensordot(weights[mixed][:, self.indices].to(rows), rows, 1)
            self.rows, self.indices = list(rows.to(self.rows[0].dtype)), mixed

    def transformed(self, transform: RowTransform) -> Tensor:
        rows = torch.stack(self.rows)
        losses = self.site.losses.only(self.indices)
        scale = None if transform.scale_equivariant else losses.scale
        # Unscaled in float32: what a GradScaler keeps from underflow would be lost in half.
        new = transform.transform(rows if scale is None else _wide(rows) / scale, replace(self.site, losses=losses))
        return new if scale is None else (new * scale).to(rows.dtype)

    def sum(self, weights: Tensor) -> Tensor:
        """The sum of the rows, scaled or mixed: without a (T, *S) temporary."""
        sums = weights if weights.ndim == 1 else weights.sum(0)
        return weighted_sum(self.rows, sums[self.indices].tolist())

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


def _wide(rows: Tensor) -> Tensor:
    """Half-precision rows in float32, where weights neither overflow nor are rounded."""
    return rows.to(wide_dtype(rows.dtype))


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """A backward may be called inside an autocast, which would take the products of rows in half."""
    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if active else nullcontext()


def gramian_weights(transform: GramianTransform, blocks: Collection[_Block]) -> Tensor | None:
    """Weights by the losses' places in the user's list, from the Gramian of all blocks; 0 for a loss without rows."""
    if not blocks:
        return None
    losses = next(iter(blocks)).site.losses
    n = losses.n_losses
    total = torch.zeros(n + 1, n, dtype=torch.float64)  # and how often each loss is present
    by_ranks: dict[tuple[Ranks, bool], list[_Block]] = {}
    for block in blocks:
        by_ranks.setdefault((block.site.ranks, block.site.part is None), []).append(block)
    for (ranks, examples), together in by_ranks.items():
        device = together[0].rows[0].device
        part = torch.zeros(n + 1, n, dtype=solid_dtype(device), device=device)
        for block in together:
            index = torch.tensor(block.indices, device=device)
            part[index[:, None], index] += gramian(block.rows).to(device)
            part[n, index] = 1
        part = ranks.sum(part).to("cpu", torch.float64)
        # The ranks' losses are averaged: an example's row in the gradient of the mean is 1/size of the one seen here.
        part[:n] /= ranks.size**2 if examples else 1
        total += part
    products, present = total[:n], total[n]
    if losses.scale is not None and not transform.scale_equivariant:
        products = products / losses.scale**2
    indices = present.nonzero().flatten()
    if len(indices) == 1:
        return present.sign()
    losses = losses.only(indices.tolist())
    if not _finite(products, losses, transform):
        return torch.full_like(present, torch.nan)  # an overflow stays visible, and leaves no trace in the state
    weights = transform.weights(products[indices[:, None], indices], losses)
    full = products.new_zeros(n, *[n] * (weights.ndim - 1))
    full[indices if weights.ndim == 1 else (indices[:, None], indices)] = weights.to(full)
    return full


def _finite(products: Tensor, losses: Losses, transform: GramianTransform) -> bool:
    values = losses.values if transform.uses_values and losses.scalars is not None else torch.zeros(())
    return bool(products.isfinite().all() and values.isfinite().all())
