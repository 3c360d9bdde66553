"""PCGrad: project each gradient off those that it conflicts with."""

from __future__ import annotations

import torch
from torch import Tensor

from .._draws import Draws
from .._transform import GramianTransform, Losses


class PCGrad(GramianTransform):
    r"""Gradient surgery: remove from each gradient its part along every other one that it points against.

    For each $i$, over the others $j$ in random order:

    $$\tilde g_i \leftarrow \tilde g_i - \frac{\min(0, \tilde g_i \cdot g_j)}{\|g_j\|^2} g_j$$

    The rows stay separate, so that another transform may follow. They are summed at the end.

    Args:
        seed: Seed of the private random order. `None` derives one from the state of torch's global generator. Each
            method that is made gets another seed, and the same one again after `torch.manual_seed`.

    Raises:
        TypeError: If `seed` is not a whole number.

    Example:
        >>> PCGrad(seed=0)
        PCGrad()

    Source:
        Algorithm 1 of Yu et al. 2020, [arXiv:2001.06782](https://arxiv.org/abs/2001.06782).
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, seed: int | None = None) -> None:
        self.draws = Draws(seed)

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        if len(gramian) == 2:  # each has one other alone: in no order
            self.draws.next(torch.device("cpu"))
            (first, product), (_, second) = gramian.tolist()
            if not product < 0:
                return torch.eye(2, dtype=gramian.dtype)
            return gramian.new_tensor([[1.0, -product / second], [-product / first, 1.0]])
        squares = gramian.diagonal()
        each = torch.arange(len(gramian))
        mixing = torch.eye(len(gramian), dtype=gramian.dtype)
        for other in random_orders(len(gramian), self.draws):  # (T,), one for each row
            products = (mixing * gramian[other]).sum(1)
            conflicts = products.clamp_max(0) / squares[other]
            mixing[each, other] -= torch.where(products < 0, conflicts, 0)
        return mixing


def random_orders(n: int, draws: Draws) -> Tensor:
    """For each of n rows the others in random order, shape `(n - 1, n)`: those that come first, second, ..."""
    keys = torch.rand(n, n, generator=draws.next(torch.device("cpu")), dtype=torch.float64)
    return keys.fill_diagonal_(2).argsort(1).T[:-1]
