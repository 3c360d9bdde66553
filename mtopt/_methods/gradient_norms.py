"""Weights by gradient norms: the losses' gradients are brought to about one length."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_count, check_share
from .._transform import GramianTransform, Losses
from .state import PerLoss


class GradientNorms(GramianTransform):
    r"""Weights by gradient norms: each gradient is scaled to the mean of their lengths, by a running average.

    $$\hat\lambda_i = \frac{\frac{1}{T} \sum_j \|g_j\|}{\|g_i\|}, \qquad
    \lambda_i \leftarrow \alpha \lambda_i + (1 - \alpha) \hat\lambda_i$$

    where $\lambda_i$ begins with the first $\hat\lambda_i$. A gradient that is 0 leaves its weight as it is. The
    weights act on the gradients at the site alone; a part of the model that belongs to one loss gets that loss's own
    gradient. Where losses meet at several activations, each of these moves the weights.

    Args:
        average: Share $\alpha$ of the weight from before, in [0, 1]. jaxpi has 0.9, and begins with a weight of 1.
        period: The weights move at each loss's first gradient and at every `period`-th after it, and stay as they are
            in between. jaxpi has 1000.

    Raises:
        TypeError: If `period` is no whole number.
        ValueError: If `average` is out of range, or `period` is below 1.

    Example:
        >>> GradientNorms(period=100)
        GradientNorms(period=100)

    Source:
        Algorithm 1 of Wang, Sankaran, Wang, Perdikaris 2023, [arXiv:2308.08468](https://arxiv.org/abs/2308.08468). The
        mean of the norms is that of its [code](https://github.com/PredictiveIntelligenceLab/jaxpi), "grad_norm"; the
        paper has their sum.
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, average: float = 0.9, period: int = 1) -> None:
        self.average = check_share(average, "average")
        self.period = check_count(period, "period")
        self.averaged = PerLoss()
        self.calls = PerLoss(0.0)

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        norms, calls = gramian.diagonal().sqrt(), self.calls.of(losses).to(gramian)
        before, now = self.averaged.of(losses).to(gramian), norms.mean() / norms
        self.calls.keep(losses, calls + 1)
        moved = torch.where(before.isnan(), now, self.average * before + (1 - self.average) * now)
        due = before.isnan() | (calls % self.period == 0)
        weights = torch.where(due & now.isfinite(), moved, before)
        self.averaged.keep(losses, weights)
        return weights.nan_to_num(1.0)
