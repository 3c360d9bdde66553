"""Uncertainty weighting: each loss is divided by a variance that is trained with the model."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_number, check_positive
from .._transform import Losses, LossWeighting
from .state import BelowZero, Trained


class UncertaintyWeighting(LossWeighting):
    r"""Weights from the losses' uncertainties, which are trained with the model: a loss that stays large counts less.

    $$L = \sum_i ½ e^{-s_i} L_i + ½ s_i, \qquad w_i = ½ e^{-s_i}$$

    In each step the $s_i = \log \sigma_i^2$ take one step of Adam, after their weights were used. They do not belong to
    the model's optimizer, so its weight decay does not pull them to 0.

    The losses should be above 0, as squared errors and cross-entropies are. For a loss that is not, $L$ has no minimum,
    and its weight grows in every step. Since a loss may touch 0 now and then, this gives one warning and no error.

    Args:
        lr: Step size of the $s_i$.
        start: Their first value. The default is LibMTL's.

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
