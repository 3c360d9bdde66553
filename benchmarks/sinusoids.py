"""How often gradient descent on a sum of sines ends in the one minimum that all of them share. No network.

The one-dimensional example of the GradDrop paper: each loss is a sine with minimum 0, of a frequency of its own, and
all are 0 at one place alone. `python benchmarks/evidence --problems sinusoids` writes the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtopt import sign_dropout

RANGE = 10.0  # starts are drawn from both sides of the joint minimum, at 0, up to here
STARTS = 1000
STEPS = 3000
NEAR = 0.1  # as near as this counts as reached
RATES = (0.5, 1.0, 2.0, 3.0, 4.0, 4.5, 5.0)  # first learning rates, as multiples of 1 / curvature at the joint minimum

Combine = Callable[[Tensor, torch.Generator], Tensor]  # from rows (T, N) to the direction of each of N starts
Frequencies = Callable[[int, torch.Generator], Tensor]  # of N starts, (T, N)


def golden(n: int, generator: torch.Generator) -> Tensor:
    """Six losses, each 1.618 times as fast as the one before: no two have a common period."""
    ratio = (1 + math.sqrt(5)) / 2
    return (0.25 * ratio ** torch.arange(6, dtype=torch.float64))[:, None].expand(-1, n)


def wide(n: int, generator: torch.Generator) -> Tensor:
    """Six losses for each start, drawn log-uniformly between 1/4 and 4."""
    return 0.25 * 16.0 ** torch.rand(6, n, dtype=torch.float64, generator=generator)


def narrow(n: int, generator: torch.Generator) -> Tensor:
    """Six losses for each start, drawn uniformly between 1 and 3."""
    return 1 + 2 * torch.rand(6, n, dtype=torch.float64, generator=generator)


FAMILIES: dict[str, Frequencies] = {"golden ratio": golden, "1/4 to 4": wide, "1 to 3": narrow}


def mgda(rows: Tensor, generator: torch.Generator) -> Tensor:
    """The shortest convex combination of numbers: 0 if they have both signs, else the smallest."""
    return rows.amin(0).clamp_min(0) + rows.amax(0).clamp_max(0)


def pcgrad(rows: Tensor, generator: torch.Generator) -> Tensor:
    """A number's projection off a number of the other sign is 0, so what conflicts vanishes."""
    return rows.sum(0) * ((rows >= 0).all(0) | (rows <= 0).all(0))


METHODS: dict[str, Combine] = {
    "plain sum": lambda rows, generator: rows.sum(0),
    "GradDrop": lambda rows, generator: sign_dropout(rows, generator=generator),
    "Random GradDrop": lambda rows, generator: sign_dropout(rows, keep=0.0, generator=generator),
    "MGDA": mgda,
    "PCGrad": pcgrad,
}


def reached(
    combine: Combine, frequencies: Frequencies, rate: float, n_starts: int, seed: int, n_steps: int = STEPS
) -> int:
    """How many starts end near the joint minimum, all at once, by gradient descent with a linear decay.

    The losses are 1 - cos(a x), which is a sine moved by a quarter of its period, for each frequency a.
    """
    generator = torch.Generator().manual_seed(seed)
    a = frequencies(n_starts, generator)
    x = RANGE * (2 * torch.rand(n_starts, dtype=torch.float64, generator=generator) - 1)
    lr = rate / a.square().sum(0)
    for step in range(n_steps):
        x = x - lr * (1 - step / n_steps) * combine(a * (a * x).sin(), generator)
    return int((x.abs() < NEAR).sum())


def measure(n_starts: int = STARTS, n_steps: int = STEPS) -> dict[str, Any]:
    """The share of each method with its best learning rate, tuned on other starts; 95 % intervals are Wilson's."""
    rates = {family: {name: _tuned(name, family, n_starts, n_steps) for name in METHODS} for family in FAMILIES}
    settings = {"range": RANGE, "starts": n_starts, "steps": n_steps, "near": NEAR, "rates": list(RATES)}
    return {"settings": settings, "rates": rates}


def _tuned(name: str, family: str, n_starts: int, n_steps: int) -> dict[str, Any]:
    from scipy.stats import binomtest

    combine, frequencies = METHODS[name], FAMILIES[family]
    tried = {rate: reached(combine, frequencies, rate, n_starts, 1000, n_steps) for rate in RATES}
    rate = max(tried, key=lambda rate: tried[rate])
    count = reached(combine, frequencies, rate, n_starts, 0, n_steps)
    interval = binomtest(count, n_starts).proportion_ci(method="wilson")
    return {
        "rate": rate,
        "at_edge": rate in (min(RATES), max(RATES)),
        "tuning": {str(rate): n for rate, n in tried.items()},
        "reached": count,
        "share": round(count / n_starts, 4),
        "interval": [round(float(interval.low), 4), round(float(interval.high), 4)],
    }
