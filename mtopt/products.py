"""Inner products and weighted sums of rows, each of which is read once, part by part. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .sums import solid_dtype, wide_dtype

PART = 2**21
SLICES = 16


def gramian(rows: Sequence[Tensor]) -> Tensor:
    """The inner products of the rows with each other, shape `(T, T)`, summed up in float64."""
    device = rows[0].device
    total = torch.zeros(len(rows), len(rows), dtype=solid_dtype(device), device=device)
    flat = [row.reshape(-1) for row in rows]
    length, size = len(flat[0]), max(1, _part_size(device, len(flat[0])) // len(rows))
    scratch = torch.empty(len(rows), _padded(min(size, length)), dtype=wide_dtype(rows[0].dtype), device=device)
    for start in range(0, length, size):
        used = min(size, length - start)
        part = scratch[:, : _padded(used)]
        part[:, used:] = 0
        for into, row in zip(part, flat, strict=True):
            into[:used] = row[start : start + size]
        # Slices side by side: all cores work on a batch of products, but only one on a single small product.
        slices = part.view(len(rows), SLICES, -1).movedim(1, 0)
        total += torch.bmm(slices, slices.mT).sum(0)
    return total


def _padded(length: int) -> int:
    return -(-length // SLICES) * SLICES


def weighted_sum(rows: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""$\sum_i w_i g_i$, summed up in float32 or wider, in the rows' dtype."""
    total = torch.empty(rows[0].shape, dtype=wide_dtype(rows[0].dtype), device=rows[0].device)
    into, flat = total.view(-1), [row.reshape(-1) for row in rows]
    size = _part_size(total.device, len(into))
    for start in range(0, len(into), size):
        part = into[start : start + size].copy_(flat[0][start : start + size]).mul_(weights[0])
        for row, weight in zip(flat[1:], weights[1:], strict=True):
            part.add_(row[start : start + size], alpha=weight)
    return total.to(rows[0].dtype)


def _part_size(device: torch.device, length: int) -> int:
    """How many numbers to look at together: on a CPU they shall stay in its cache."""
    return PART if device.type == "cpu" else max(1, length)
