"""A vibrating string: the wave equation, its points, its losses and its exact solution. No training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .fields import Fields

SPEED = 2.0
INSIDE, START, ENDS = 128, 64, 64  # points in each step


class Points(NamedTuple):
    """Points (x, t) of one step, `(n, p, 2)`, x and t from 0 to 1: anywhere, at t = 0, and at the two ends."""

    inside: Tensor
    start: Tensor
    ends: Tensor


def stream(seeds: Sequence[int]) -> Iterator[Points]:
    """New points in each step, one set for each seed, the same for equal seeds."""
    randoms = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
    while True:
        drawn = {seed: _drawn(random) for seed, random in randoms.items()}
        yield Points(*(torch.stack(parts) for parts in zip(*(drawn[seed] for seed in seeds), strict=True)))


def losses(fields: Fields, points: Points) -> dict[str, Tensor]:
    """Of each network, `(n,)`: the wave equation, the string's shape and velocity at t = 0, its fixed ends."""
    _, _, second = fields.jet(points.inside)
    shape, first = fields.jet(points.start, order=1)
    residual = second[:, 1] - SPEED**2 * second[:, 0]
    return {
        "equation": residual.square().mean(1),
        "shape": (shape - exact(points.start)).square().mean(1),
        "velocity": first[:, 1].square().mean(1),
        "ends": fields(points.ends).square().mean(1),
    }


def exact(points: Tensor) -> Tensor:
    """Two modes of the string, which starts at rest: `(..., p)` at points `(..., p, 2)`."""
    x, t = (math.pi * points).unbind(-1)
    return x.sin() * (SPEED * t).cos() + (2 * x).sin() * (2 * SPEED * t).cos() / 2


def grid(n: int) -> Tensor:
    """Points `(n * n, 2)` all over the square; t changes from row to row of the picture, x within a row."""
    steps = torch.linspace(0, 1, n)
    t, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, t], -1).flatten(0, 1)


def _drawn(random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    inside, start, ends = (torch.rand(n, 2, generator=random) for n in (INSIDE, START, ENDS))
    start[:, 1] = 0
    ends[:, 0] = torch.arange(ENDS) % 2
    return inside, start, ends
