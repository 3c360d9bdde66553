"""Uncertainty weighting: each loss divided by a variance that is trained along."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_number, check_positive
from .._transform import Losses, LossWeighting
from .state import BelowZero, Trained


class UncertaintyWeighting(LossWeighting):
    r"""Weights from the losses' uncertainties, which are trained along: a loss that stays large counts less.

    $$L = \sum_i ½ e^{-s_i} L_i + ½ s_i, \qquad w_i = ½ e^{-s_i}$$

    The $s_i = \log \sigma_i^2$ take one step of Adam in each step, after their weights were used. They are no
    parameters of the model's optimizer, so that its weight decay does not pull them to 0.

    The losses should be above 0, as those of a likelihood's squares and cross entropies are: $L$ has no least value at
    one that is not, whose weight grows in every step. A loss may touch 0 now and then, so this is told by one warning,
    and not refused.

    Args:
        lr: Step size of the $s_i$.
        start: What they begin with; LibMTL's -0.5 by default.

    Raises:
        ValueError: If `lr` is not above 0.

    Example:
        >>> UncertaintyWeighting(lr=1e-2)
        UncertaintyWeighting(lr=0.01)

    Source:
        Eq. (7) of Kendall, Gal, Cipolla 2018, [arXiv:1705.07115](https://arxiv.org/abs/1705.07115).
    """

    def __init__(self, *, lr: float = 1e-3, start: float = -0.5) -> None:
        self.lr = check_positive(lr, "lr")
        self.start = check_number(start, "start")
        self.trained = Trained(self.start, self.lr)
        self.below_zero = BelowZero()

    def check(self, losses: Losses) -> None:
        self.below_zero.tell(losses, "UncertaintyWeighting")

    def weights(self, losses: Losses) -> Tensor:
        weights = 0.5 * (-self.trained.of(losses)).exp()
        self.trained.descend(losses, 0.5 - weights * losses.values)
        return weights
