"""In which dtype sums and products of rows are taken. Nothing else."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def widen(rows: Tensor) -> Tensor:
    """Half-precision rows in float32, where sums and weights neither overflow nor are rounded."""
    return rows.to(wide_dtype(rows.dtype))


def solid_dtype(device: torch.device) -> torch.dtype:
    """The widest dtype that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64
