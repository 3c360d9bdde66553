"""Rows side by side: their inner products and weighted sums, for which each row is read once. Decides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .._dtypes import holds_squares, solid_dtype, wide_dtype, widen
from .._scratch import Scratch

PART = 2**20
"""Numbers looked at together: on a CPU they shall stay in its cache."""

DEPENDENT = 1e-5
"""Least eigenvalue of the Gramian of rows of length 1 below which they are added up in float64."""

LEAST, MOST = 2.0**-100, 2.0**100
"""Weights that float32 holds with room to spare."""

SMALL = 2**17
"""So few numbers are multiplied in float64 as fast as in float32."""

STRIP = 1024
"""Products summed up in float32 before they go on in float64: their rounding is 1e-7 then, not 1e-5."""

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


def gramian(rows: Rows, scratch: Scratch | None = None, *, exact: bool = False) -> Tensor:
    """The inner products of the rows with each other, shape `(T, T)`, in float64.

    Args:
        rows: Of one or more losses.
        scratch: Memory for parts of them.
        exact: Take all products in float64, which some devices lack: slower, but nothing is lost (see `lost`).
    """
    if isinstance(rows, Tensor):
        solid = solid_dtype(rows.device)
        flat = (rows.to(solid) if exact or rows.numel() <= SMALL else widen(rows)).reshape(len(rows), -1)
        return flat @ flat.T if flat.dtype == solid else _product_in_strips(flat)
    scratch = Scratch() if scratch is None else scratch
    flats = [row.reshape(-1) for row in rows]
    total = torch.zeros(len(rows), len(rows), dtype=solid_dtype(rows[0].device), device=rows[0].device)
    size = max(1, PART // len(rows))
    for start in range(0, len(flats[0]), size):
        parts = [flat[start : start + size] for flat in flats]
        stack = torch.stack(parts, out=scratch.take(parts[0].new_empty(len(parts), len(parts[0]))))
        total += gramian(stack, exact=exact)
        scratch.give(stack)
    return total


def _product_in_strips(flat: Tensor) -> Tensor:
    n = flat.shape[1] // STRIP
    strips, rest = flat[:, : n * STRIP].reshape(len(flat), n, STRIP).transpose(0, 1), flat[:, n * STRIP :]
    products = torch.bmm(strips, strips.transpose(1, 2)).sum(0, dtype=solid_dtype(flat.device))
    return products + rest @ rest.T


def lost(squares: Sequence[float], size: int, rows_of: Callable[[int], Iterable[Tensor]]) -> bool:
    """Whether products of float32 numbers under- or overflowed on the way to a Gramian.

    Args:
        squares: Its diagonal: the squared length of each row.
        size: How many numbers a row has.
        rows_of: The parts of the row at a position; looked at only in doubt.
    """
    for position, square in enumerate(squares):
        if not holds_squares(square, size):
            parts = [part for part in rows_of(position) if part.numel() > 0 and part.dtype != torch.float64]
            peaks = [float(part.abs().amax()) for part in parts]
            if any(peak > 0 for peak in peaks) and all(peak < math.inf for peak in peaks):
                return True
    return False


def nearly_dependent(gramian: Tensor) -> bool:
    """Whether rows cancel each other so far that sums in float32 say little of what is left, or nothing."""
    if len(gramian) == 2:  # the least eigenvalue of two cosines is 1 - |c|
        (first, product), (_, second) = gramian.tolist()
        lengths: float = math.sqrt(first) * math.sqrt(second) if first > 0 and second > 0 else 0.0
        return lengths > 0 and (1 - DEPENDENT) * lengths <= abs(product) < math.inf
    norms = gramian.diagonal().sqrt()
    cosines = (gramian / norms / norms[:, None])[norms > 0][:, norms > 0]
    _, failed = torch.linalg.cholesky_ex(cosines - DEPENDENT * torch.eye(len(cosines), dtype=gramian.dtype))
    return bool(failed) and math.isfinite(float(gramian.sum()))


def excess(weights: Sequence[float]) -> list[int]:
    """How much of each weight float32 cannot hold, as a power of two."""
    sizes = [abs(weight) for weight in weights]
    if all(LEAST < size < MOST for size in sizes):
        return [0] * len(sizes)
    held = [size == 0 or not math.isfinite(size) or LEAST < size < MOST for size in sizes]
    powers = [max(-126, min(126, math.frexp(size)[1])) for size in sizes]
    return [0 if fits else power for fits, power in zip(held, powers, strict=True)]


def scaled(rows: Rows, powers: Sequence[int]) -> Rows:
    """The rows times powers of two, in float32 or wider: their weights then are that much smaller."""
    if not any(powers):
        return rows
    return [widen(row) * 2.0**power for row, power in zip(rows, powers, strict=True)]


def weighted_sum(rows: Rows, weights: Sequence[float], *, exact: bool = False) -> Tensor:
    r"""$\sum_i w_i g_i$, in the rows' dtype.

    It is summed up in float32 or wider; in float64 where there are few numbers, or `exact` asks for it.
    """
    powers = excess(weights)
    if any(powers):
        weights = [math.ldexp(weight, -power) for weight, power in zip(weights, powers, strict=True)]
        return weighted_sum(scaled(rows, powers), weights, exact=exact).to(rows[0].dtype)
    few = isinstance(rows, Tensor) and rows.numel() <= SMALL
    dtype = solid_dtype(rows[0].device) if exact or few else wide_dtype(rows[0].dtype)
    if isinstance(rows, Tensor):
        flat = rows.to(dtype).reshape(len(rows), -1)
        return (flat.T @ flat.new_tensor(weights)).view(rows.shape[1:]).to(rows.dtype)
    total = torch.empty(rows[0].shape, dtype=rows[0].dtype, device=rows[0].device)
    into, flats = total.view(-1), [row.reshape(-1) for row in rows]
    for start in range(0, len(into), PART):
        part = into[start : start + PART]
        sums = part if part.dtype == dtype else torch.empty_like(part, dtype=dtype)
        sums.copy_(flats[0][start : start + PART]).mul_(weights[0])
        for flat, weight in zip(flats[1:], weights[1:], strict=True):
            sums.add_(flat[start : start + PART], alpha=weight)
        part.copy_(sums)
    return total
