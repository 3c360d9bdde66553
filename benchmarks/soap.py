"""SOAP for many networks of one shape at once: the steps of an optimizer for each, to rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Soaps:
    """Adam in the eigenbases of Shampoo's preconditioners, which only matrices have.

    As in `pytorch_optimizer`, whose first step changes nothing and whose bases are refined by one QR decomposition.

    Args:
        shapes: Of the parameters of each network, in order.
        betas: Adam's β₁ and β₂; the preconditioners average by β₂, too.
        every: After how many steps the bases are refined.

    Source:
        Vyas et al. 2024, arXiv:2409.11321.
    """

    def __init__(self, shapes: Sequence[torch.Size], betas: tuple[float, float], every: int = 10) -> None:
        self.shapes = shapes
        self.soaps = [_Soap(betas, every) for _ in shapes]

    def changes(self, gradient: Tensor) -> Tensor:
        """What a step of rate 1 adds to the parameters, `(R, P)`, as the gradient."""
        parts = torch.split(gradient, [shape.numel() for shape in self.shapes], dim=1)
        shaped = (part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))
        return torch.cat([soap.change(part).flatten(1) for soap, part in zip(self.soaps, shaped, strict=True)], dim=1)


class _Soap:
    """Of one parameter of many networks, `(R, *S)`."""

    def __init__(self, betas: tuple[float, float], every: int, eps: float = 1e-8) -> None:
        (self.first, self.second), self.every, self.eps = betas, every, eps
        self.steps = -1

    def change(self, gradient: Tensor) -> Tensor:
        self.steps += 1
        if self.steps == 0:
            self.mean, self.square = torch.zeros_like(gradient), torch.zeros_like(gradient)
            self.products = [(1 - self.second) * product for product in _products(gradient)]
            self.bases = [torch.linalg.eigh(product).eigenvectors.flip(-1) for product in self.products]
            return torch.zeros_like(gradient)
        self.mean.lerp_(gradient, 1 - self.first)
        self.square.lerp_(self._turned(gradient).square(), 1 - self.second)
        change = self._turned_back(self._turned(self.mean) / (self.square.sqrt() + self.eps))
        for product, new in zip(self.products, _products(gradient), strict=True):
            product.lerp_(new, 1 - self.second)
        if self.steps % self.every == 0:
            self._refine()
        return -change * math.sqrt(1 - self.second**self.steps) / (1 - self.first**self.steps)

    def _turned(self, matrix: Tensor) -> Tensor:
        return self.bases[0].mT @ matrix @ self.bases[1] if self.bases else matrix

    def _turned_back(self, matrix: Tensor) -> Tensor:
        return self.bases[0] @ matrix @ self.bases[1].mT if self.bases else matrix

    def _refine(self) -> None:
        """A step of the power method for each basis, whose vectors are sorted by their eigenvalues."""
        for side, (product, basis) in enumerate(zip(self.products, self.bases, strict=True)):
            moved = product @ basis
            order = (basis * moved).sum(1).argsort(descending=True)
            self.square = self.square.gather(side + 1, _along(order, side, self.square))
            self.bases[side] = torch.linalg.qr(moved.gather(2, _along(order, 1, moved))).Q


def _products(gradient: Tensor) -> list[Tensor]:
    """Shampoo's, of the rows and of the columns of matrices."""
    return [gradient @ gradient.mT, gradient.mT @ gradient] if gradient.ndim == 3 else []


def _along(order: Tensor, side: int, like: Tensor) -> Tensor:
    """An order `(R, n)` of the rows (0) or the columns (1) of matrices, for `gather`."""
    return (order[:, :, None] if side == 0 else order[:, None, :]).expand_as(like)
