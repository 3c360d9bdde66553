"""ReLoBRaLo: weights by how far each loss fell, smoothed over steps, with random lookbacks to the start."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_positive, check_share
from .._draws import Draws
from .._transform import Losses, LossWeighting
from .state import PerLoss


class ReLoBRaLo(LossWeighting):
    r"""Relative Loss Balancing with Random Lookback: a loss that fell less, relative to itself, counts more.

    $$w_i(t) = \alpha \big(\rho \, w_i(t - 1) + (1 - \rho) \, b_i(t, 0)\big) + (1 - \alpha) \, b_i(t, t - 1), \qquad
    b(t, t') = T \, \mathrm{softmax}\Big(\frac{L(t)}{\tau L(t') + 10^{-12}}\Big)$$

    for $T$ losses, where $\rho$ is drawn in each step: 1 with probability $\beta$, else 0, which forgets the weights so
    far. The weights start at 1. For each loss only the steps that it was present in count; in its first,
    $L(t') = L(t)$. The weights sum to $T$ as long as no loss is absent.

    Args:
        alpha: How slowly the weights change, in [0, 1].
        beta: Probability in [0, 1] of *not* looking back at the start.
        tau: Temperature; the larger, the more equal the weights.
        seed: Seed of the private random numbers. `None` derives one from the state of torch's global generator, which
            stays as it was. Each method that is made gets another seed, and the same one again after
            `torch.manual_seed`.

    Raises:
        TypeError: If `seed` is not a whole number.
        ValueError: If `alpha` or `beta` is not between 0 and 1, or `tau` is not above 0.

    Example:
        >>> ReLoBRaLo(tau=0.1)
        ReLoBRaLo(tau=0.1)

    Source:
        Eq. (11) of Bischof, Kraus 2021, [arXiv:2110.09813](https://arxiv.org/abs/2110.09813), which chooses `alpha`
        between 0.9 and 0.999 by the problem; the defaults are NVIDIA Modulus'.
    """

    def __init__(self, *, alpha: float = 0.95, beta: float = 0.99, tau: float = 1.0, seed: int | None = None) -> None:
        self.alpha = check_share(alpha, "alpha")
        self.beta = check_share(beta, "beta")
        self.tau = check_positive(tau, "tau")
        self.draws = Draws(seed)
        self.smoothed = PerLoss(1.0)
        self.first, self.last = PerLoss(), PerLoss()

    def weights(self, losses: Losses) -> Tensor:
        values = losses.values.double()
        first, last = self.first.of(losses), self.last.of(losses)
        first, last = torch.where(first.isnan(), values, first), torch.where(last.isnan(), values, last)
        uniform = torch.rand((), dtype=torch.float64, generator=self.draws.next(torch.device("cpu")))
        history = self.smoothed.of(losses) if uniform < self.beta else self._balanced(values, first)
        weights = self.alpha * history + (1 - self.alpha) * self._balanced(values, last)
        self.first.keep(losses, first)
        self.last.keep(losses, values)
        self.smoothed.keep(losses, weights)
        return weights

    def _balanced(self, values: Tensor, before: Tensor) -> Tensor:
        """More for a loss that fell less since `before`. The constant comes from the authors' code."""
        return len(values) * (values / (self.tau * before + 1e-12)).softmax(0)
