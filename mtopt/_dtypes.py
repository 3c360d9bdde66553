"""In which dtype sums and products of rows are taken. Nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FLOAT32 = torch.finfo(torch.float32)
_LEAST_SQUARE = _FLOAT32.tiny / _FLOAT32.eps


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def widen(rows: Tensor) -> Tensor:
    """Half-precision rows in float32, where sums and weights neither overflow nor are rounded."""
    return rows.to(wide_dtype(rows.dtype))


def solid_dtype(device: torch.device) -> torch.dtype:
    """The widest dtype that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def holds_squares(total: float, size: int) -> bool:
    """Whether float32 has held the squares of `size` numbers, whose sum there is `total`, or lost what matters."""
    return size * _LEAST_SQUARE < total < math.inf
