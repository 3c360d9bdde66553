"""The laws of sign dropout made testable: integrals over U that are exact, and an oracle written from the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

import mtopt


def integrate(rows: Tensor, function: Callable[[Tensor], Tensor], **settings: object) -> Tensor:
    """The integral over U in [0, 1) of a function of the result, exactly: the result is a step function of U.

    With one U for all coordinates, it jumps only at the values of f(P), so one point between each two jumps is enough.
    """
    keep = settings.get("keep", 1.0)
    purity = mtopt.sign_purity(rows)
    thresholds = keep(purity) if callable(keep) else (0.5 + keep * (purity - 0.5)).clamp(0, 1)
    ends = torch.cat([torch.zeros(1), thresholds.flatten(), torch.ones(1)]).to(rows.dtype).sort().values
    total = torch.zeros_like(rows[0])
    for low, high in pairwise(ends):
        if high > low:
            uniform = ((low + high) / 2).expand(rows.shape[1:])
            total = total + (high - low) * function(mtopt.sign_dropout(rows, uniform=uniform, **settings))
    return total


def oracle(rows: Tensor, uniform: Tensor, leaks: Sequence[float], slope: float) -> Tensor:
    """Sign dropout by the letter of the paper, coordinate by coordinate in Python floats."""
    columns = rows.to(torch.float64).flatten(1).T.tolist()
    draws = uniform.flatten().tolist()
    result = []
    for column, draw in zip(columns, draws, strict=True):
        positive = sum(g for g in column if g > 0)
        negative = -sum(g for g in column if g < 0)
        if positive + negative == 0:
            result.append(0.0)
            continue
        threshold = min(1.0, max(0.0, 0.5 + slope * (positive / (positive + negative) - 0.5)))
        kept = 0.0
        for leak, g in zip(leaks, column, strict=True):
            mask = 0 if (g < 0 if draw < threshold else g > 0) else 1
            kept += (leak + (1 - leak) * mask) * g
        result.append(kept)
    return torch.tensor(result, dtype=torch.float64).reshape(rows.shape[1:])
