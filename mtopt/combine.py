"""Takes the rows at sites, and gives the combined gradient of each: row by row, or when all are there. No autograd."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .distributed import Ranks
from .methods.base import GramianTransform, Losses, RowTransform, Site, Stream
from .sums import wide_dtype


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
        self.rows: list[Tensor | None] = [None] * len(sites)  # (T, *S) each, filled from the front
        self.positions: list[list[int]] = [[] for _ in sites]

    def add(self, site: int, position: int, row: Tensor) -> None:
        rows = self.rows[site]
        if rows is None:
            rows = self.rows[site] = row.new_empty(len(self.losses), *row.shape)
        rows[len(self.positions[site])] = row
        self.positions[site].append(position)

    def result(self) -> list[Tensor | None]:
        device = next((rows.device for rows in self.rows if rows is not None), torch.device("cpu"))
        with _without_autocast(device.type):
            return self._result()

    def _result(self) -> list[Tensor | None]:
        several = [
            site
            for site, positions in enumerate(self.positions)
            if len(positions) > 1 or (positions and self.together[site])
        ]
        blocks = [_Block(self._rows(site), self.losses.at(self.positions[site]), self.sites[site]) for site in several]
        weights = None
        for transform in self.transforms:
            for block in blocks:
                block.weigh(weights)
            weights = None
            if isinstance(transform, GramianTransform):
                weights = gramian_weights(transform, blocks) if blocks else None
            else:
                for block in blocks:
                    block.transform(transform)
        results: list[Tensor | None] = [
            self._rows(site)[0] if len(positions) == 1 else None for site, positions in enumerate(self.positions)
        ]
        for site, block in zip(several, blocks, strict=True):
            results[site] = block.sum(weights)
        return results

    def _rows(self, site: int) -> Tensor:
        rows = self.rows[site]
        assert rows is not None
        return rows[: len(self.positions[site])]


class _Block:
    """The rows at one site on their way through the transforms, each with its loss's place in the user's list."""

    def __init__(self, rows: Tensor, losses: Losses, site: Site) -> None:
        self.rows = rows
        self.indices = list(losses.indices)
        self.site = site

    def transform(self, transform: RowTransform) -> None:
        losses = self.site.losses.only(self.indices)
        scale = None if transform.scale_equivariant else losses.scale
        # Unscaled in float32: what a GradScaler keeps from underflow would be lost in half.
        rows = self.rows if scale is None else self._wide() / scale
        rows = transform.transform(rows, replace(self.site, losses=losses))
        self.rows = rows if scale is None else (rows * scale).to(self.rows.dtype)

    def gramian(self) -> Tensor:
        flat = self._wide().flatten(1)
        return flat @ flat.T

    def weigh(self, weights: Tensor | None) -> None:
        """Scale the rows by `(n_losses,)` weights, or mix them by an `(n_losses, n_losses)` matrix."""
        if weights is None:
            return
        rows = self._wide()
        weights = weights.to(rows)
        if weights.ndim == 1:
            rows = rows * weights[self.indices].reshape(-1, *[1] * (rows.ndim - 1))
        else:  # a mixed row may exist for a loss that has none of its own here
            mixed = list(self.site.losses.indices)
            rows = torch.tensordot(weights[mixed][:, self.indices], rows, 1)
            self.indices = mixed
        self.rows = rows.to(self.rows.dtype)

    def sum(self, weights: Tensor | None) -> Tensor:
        """The sum of the rows, after weights that were not yet applied: without a (T, *S) temporary."""
        if weights is None:
            return self.rows.sum(0, dtype=wide_dtype(self.rows.dtype)).to(self.rows.dtype)
        column_sums = weights if weights.ndim == 1 else weights.sum(0)
        rows = self._wide()
        combined: Tensor = torch.tensordot(column_sums[self.indices].to(rows), rows, 1).to(self.rows.dtype)
        return combined

    def _wide(self) -> Tensor:
        """The rows, half ones in float32, where weights neither overflow nor are rounded."""
        return self.rows.to(wide_dtype(self.rows.dtype))


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """A backward may be called inside an autocast, which would take the products of rows in half."""
    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if active else nullcontext()


def gramian_weights(transform: GramianTransform, blocks: Sequence[_Block]) -> Tensor:
    """Weights by the losses' places in the user's list, from the Gramian of all blocks; 0 for a loss without rows."""
    losses = blocks[0].site.losses
    n = losses.n_losses
    like = blocks[0].rows
    gramian = torch.zeros(n, n, dtype=wide_dtype(like.dtype), device=like.device)
    present = torch.zeros(n, dtype=gramian.dtype, device=like.device)
    by_ranks: dict[tuple[Ranks, bool], list[_Block]] = {}
    for block in blocks:
        by_ranks.setdefault((block.site.ranks, block.site.part is None), []).append(block)
    for (ranks, examples), together in by_ranks.items():
        part = torch.zeros(n + 1, n, dtype=gramian.dtype, device=like.device)
        for block in together:
            index = torch.tensor(block.indices, device=like.device)
            part[index[:, None], index] += block.gramian()
            part[n, index] = 1
        part = ranks.sum(part)
        # The ranks' losses are averaged: an example's row in the gradient of the mean is 1/size of the one seen here.
        gramian += part[:n] / ranks.size**2 if examples else part[:n]
        present += part[n]
    if losses.scale is not None and not transform.scale_equivariant:
        gramian = gramian / losses.scale**2
    indices = present.nonzero().flatten()
    if len(indices) == 1:
        return present.sign()
    weights = transform.weights(gramian[indices[:, None], indices], losses.only(indices.tolist()))
    full = gramian.new_zeros(n, *[n] * (weights.ndim - 1))
    full[indices if weights.ndim == 1 else (indices[:, None], indices)] = weights.to(full.dtype)
    return full
