"""Rows side by side: their inner products and weighted sums, for which each row is read once. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._dtypes import solid_dtype, wide_dtype, widen
from .._scratch import Scratch

PART = 2**20
"""Numbers looked at together: on a CPU they shall stay in its cache."""

Rows = Tensor | Sequence[Tensor]
"""One for each loss: stacked, shape `(T, *S)`, or by themselves."""


def side_by_side(rows: Rows) -> Tensor:
    """The rows stacked, shape `(T, *S)`."""
    return rows if isinstance(rows, Tensor) else torch.stack(list(rows))


def stacked_if_small(rows: Rows) -> Rows:
    """Small rows stacked, which saves time; large ones as they are, which saves memory."""
    if isinstance(rows, Tensor) or len(rows) * rows[0].numel() > PART:
        return rows
    return torch.stack(list(rows))


def end_to_end(sites: Sequence[Sequence[Tensor]]) -> Tensor:
    """The rows of several sites, each loss's as one: shape `(T, N)`."""
    rows = sites[0][0].new_empty(len(sites[0]), sum(rows[0].numel() for rows in sites))
    for loss, row in enumerate(rows):
        torch.cat([rows[loss].reshape(-1) for rows in sites], out=row)
    return rows


def gramian(rows: Rows, scratch: Scratch | None = None) -> Tensor:
    """The inner products of the rows with each other, shape `(T, T)`, in float64."""
    if isinstance(rows, Tensor):
        flat = widen(rows).reshape(len(rows), -1)
        return (flat @ flat.T).to(solid_dtype(rows.device))
    scratch = Scratch() if scratch is None else scratch
    flats = [row.reshape(-1) for row in rows]
    total = torch.zeros(len(rows), len(rows), dtype=solid_dtype(rows[0].device), device=rows[0].device)
    size = max(1, PART // len(rows))
    for start in range(0, len(flats[0]), size):
        parts = [flat[start : start + size] for flat in flats]
        stack = torch.stack(parts, out=scratch.take(parts[0].new_empty(len(parts), len(parts[0]))))
        total += gramian(stack)
        scratch.give(stack)
    return total


def weighted_sum(rows: Rows, weights: Sequence[float]) -> Tensor:
    r"""$\sum_i w_i g_i$, summed up in float32 or wider, in the rows' dtype."""
    if isinstance(rows, Tensor):
        flat = widen(rows).reshape(len(rows), -1)
        return (flat.T @ flat.new_tensor(weights)).view(rows.shape[1:]).to(rows.dtype)
    total = torch.empty(rows[0].shape, dtype=wide_dtype(rows[0].dtype), device=rows[0].device)
    into, flats = total.view(-1), [row.reshape(-1) for row in rows]
    for start in range(0, len(into), PART):
        part = into[start : start + PART].copy_(flats[0][start : start + PART]).mul_(weights[0])
        for flat, weight in zip(flats[1:], weights[1:], strict=True):
            part.add_(flat[start : start + PART], alpha=weight)
    return total.to(rows[0].dtype)
