"""Matrices of rows that break solvers: a bank that every method from the Gramian must survive."""

from __future__ import annotations

import torch


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


_ROW = _random(1, 6, seed=1)
_SCALES = 10.0 ** torch.tensor([[-15.0], [15.0], [0.0], [-7.0], [7.0], [1.0]], dtype=torch.float64)

HARD = {
    "independent": _random(4, 30),
    "in conflict": _random(4, 30) - 0.5 * _random(1, 30, seed=2),
    "many": _random(40, 500),
    "two": _random(2, 3),
    "zero row": torch.cat([_random(3, 4), torch.zeros(1, 4, dtype=torch.float64)]),
    "all zero": torch.zeros(3, 4, dtype=torch.float64),
    "equal rows": _ROW.expand(3, 6).clone(),
    "parallel": torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64) * _ROW,
    "opposite": torch.cat([_ROW, -_ROW]),
    "opposite, unequal": torch.cat([_ROW, -2 * _ROW, _random(1, 6, seed=3)]),
    "rank one": _random(5, 1, seed=4) * _ROW,
    "more rows than dims": _random(8, 3, seed=5),
    "nearly opposite": torch.cat([_ROW, -_ROW + 1e-3 * _random(1, 6, seed=6)]),
    "scales 1e-15 to 1e15": _SCALES * _random(6, 10, seed=7),
    "all tiny": 1e-15 * _random(4, 30),
    "all huge": 1e15 * _random(4, 30),
    "all 1e-26": 1e-26 * _random(4, 30),
    "all 1e20": 1e20 * _random(4, 30),
    "scales 1e-30 to 1e30": _SCALES**2 * _random(6, 10, seed=7),
    "copies and a negative": _random(2, 6, seed=8)[[0, 1, 0, 0, 1]] * torch.tensor([[1.0], [1], [1], [-1], [1]]),
    "rank two": _random(5, 2, seed=9) @ _random(2, 30, seed=10),
    "one number each": _random(4, 1, seed=11),
}

REGULAR = ("independent", "in conflict", "many", "two")  # linearly independent rows of like lengths
