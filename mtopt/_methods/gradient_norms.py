"""Weights by gradient norms: they bring the losses' gradients to about one length."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_beta, check_count, check_one_of, check_positive, check_share
from .._transform import GramianTransform, Losses
from .holding import Holding
from .state import Calls, PerLoss


class GradientNorms(GramianTransform, Holding):
    r"""Weights by gradient norms: scale each gradient to the mean of their lengths, by a running average.

    $$\hat\lambda_i = \frac{\frac{1}{T} \sum_j \|g_j\|}{\|g_i\|}, \qquad
    \lambda_i \leftarrow \alpha \lambda_i + (1 - \alpha) \hat\lambda_i$$

    where $\lambda_i$ starts at the first $\hat\lambda_i$. A gradient of 0 leaves its weight unchanged. With
    `of="norms"` the average is of the norms instead of the weights, so that a batch with a short gradient does not make
    its weight large:

    $$n_i^2 \leftarrow \alpha n_i^2 + (1 - \alpha) \|g_i\|^2, \qquad
    \lambda_i = \frac{\frac{1}{T} \sum_j \hat n_j}{\hat n_i}, \qquad \hat n_i^2 = n_i^2 / (1 - \alpha^t)$$

    The weights act on the gradients at the site only. A part of the model that belongs to one loss gets that loss's own
    gradient. Where losses meet at several activations, each of them moves the weights.

    Args:
        average: Share $\alpha$ of the previous value, in [0, 1], below 1 for norms. jaxpi uses 0.9, and starts at a
            weight of 1.
        period: A weight moves at its loss's first gradient and at every `period`-th one after it, and stays the same in
            between. jaxpi uses 1000. Where this is the only transform of the gradients, at parameters, the steps in
            between take one ordinary backward pass of the weighted sum.
        of: What is averaged: `"weights"`, or `"norms"`, by their squares.
        power: Power, above 0, to which each $\hat\lambda_i$ is raised. Below 1 the gradients keep some of their
            difference in length; above 1 the shorter ones count more.

    Raises:
        TypeError: If `period` is not a whole number.
        ValueError: If `average`, `of` or `power` is out of range, or `period` is below 1.

    Example:
        >>> GradientNorms(average=0.99, of="norms")
        GradientNorms(average=0.99, of='norms')

    Source:
        Algorithm 1 of Wang, Sankaran, Wang, Perdikaris 2023, [arXiv:2308.08468](https://arxiv.org/abs/2308.08468). The
        paper takes the sum of the norms; the mean is that of its
        [code](https://github.com/PredictiveIntelligenceLab/jaxpi), "grad_norm".
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, average: float = 0.9, period: int = 1, of: str = "weights", power: float = 1.0) -> None:
        self.of = check_one_of(of, "of", ("weights", "norms"))
        self.average = check_beta(average, "average") if of == "norms" else check_share(average, "average")
        self.period = check_count(period, "period")
        self.power = check_positive(power, "power")
        if of == "norms":
            self.squares = PerLoss(on_cpu=True)
        else:
            self.averaged = PerLoss(on_cpu=True)
        self.calls = Calls(self.period)

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        squares, calls = gramian.diagonal(), self.calls.next(losses).to(gramian)
        due = calls % self.period == 0
        if self.of == "norms":
            before = self.squares.of(losses).to(squares).nan_to_num(0.0)
            moved = torch.where(due, self.average * before + (1 - self.average) * squares, before)
            self.squares.keep(losses, moved)
            return self._by_mean_norms(moved, calls)
        before, norms = self.averaged.of(losses).to(gramian), squares.sqrt()
        now = (norms.mean() / norms) ** self.power
        moved = torch.where(before.isnan(), now, self.average * before + (1 - self.average) * now)
        weights = torch.where((before.isnan() | due) & now.isfinite(), moved, before)
        self.averaged.keep(losses, weights)
        return weights.nan_to_num(1.0)

    def _by_mean_norms(self, squares: Tensor, calls: Tensor) -> Tensor:
        moves = torch.div(calls, self.period, rounding_mode="floor") + 1
        norms = (squares / (1 - self.average**moves)).sqrt()
        return torch.where(norms > 0, (norms.mean() / norms) ** self.power, 1.0)

    def holds(self, losses: Losses, *, several_ranks: bool = False) -> bool:
        return self.calls.none_is_due(losses, several_ranks=several_ranks)

    def held(self, losses: Losses) -> Tensor:
        calls = self.calls.next(losses)
        if self.of == "norms":
            return self._by_mean_norms(self.squares.of(losses).nan_to_num(0.0), calls)
        return self.averaged.of(losses).nan_to_num(1.0)
