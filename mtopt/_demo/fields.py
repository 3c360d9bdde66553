"""Tanh networks from points of the plane to values, many at once, with first and second derivatives. No equation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Fields(nn.Module):
    """Networks of one shape, computed together. Each has parameters of its own, and is asked at points of its own.

    Args:
        seeds: Of each network's first parameters: equal seeds give equal networks.
        width: Units of a hidden layer.
        depth: Hidden layers.
    """

    def __init__(self, seeds: Sequence[int], *, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.shapes = list(itertools.pairwise([2, *[width] * depth, 1]))
        self.rows = nn.Parameter(torch.stack([self._first_row(seed) for seed in seeds]))

    def _first_row(self, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        weights = [nn.init.xavier_normal_(torch.empty(shape), generator=random) for shape in self.shapes]
        return torch.cat([part for weight in weights for part in (weight.flatten(), torch.zeros(weight.shape[1]))])

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weights `(n, in, out)` and biases `(n, 1, out)`."""
        sizes = [size for n_in, n_out in self.shapes for size in (n_in * n_out, n_out)]
        parts = iter(torch.split(self.rows, sizes, dim=1))
        return [(next(parts).view(-1, *shape), next(parts)[:, None]) for shape in self.shapes]

    def forward(self, points: Tensor) -> Tensor:
        """Values `(n, p)` at points `(n, p, 2)`."""
        *hidden, (weight, bias) = self._layers()
        for inner_weight, inner_bias in hidden:
            points = torch.baddbmm(inner_bias, points, inner_weight).tanh()
        return torch.baddbmm(bias, points, weight).squeeze(2)

    def jet(self, points: Tensor, order: int = 2) -> list[Tensor]:
        """Values `(n, p)`, first derivatives along each axis, `(n, 2, p)`, and with `order=2` second ones.

        They are carried from layer to layer, beside the values.
        """
        n, p, _ = points.shape
        first = torch.eye(2)[:, None].expand(n, 2, p, 2)
        rows = [points[:, None], first, torch.zeros_like(first)][: order + 1]  # (n, 1 or 2, p, in)
        *hidden, (weight, bias) = self._layers()
        for inner_weight, inner_bias in hidden:
            value, *derivatives = (_through(part, inner_weight) for part in rows)
            value = (value + inner_bias[:, None]).tanh()
            slope = 1 - value.square()
            rows = [value, *(slope * derivative for derivative in derivatives)]
            if order == 2:
                rows[2] = rows[2] - 2 * value * slope * derivatives[0].square()
        value, *derivatives = (_through(part, weight) for part in rows)
        return [(value + bias[:, None]).flatten(1), *(derivative.squeeze(3) for derivative in derivatives)]


def _through(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows `(n, k, p, in)` times a layer's weights."""
    n, k, p, _ = rows.shape
    return (rows.flatten(1, 2) @ weight).view(n, k, p, -1)
