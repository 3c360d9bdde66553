"""The loss balance of impartial multi-task learning: trained scales that bring each loss to 1."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_number, check_positive
from .._transform import Losses, LossWeighting
from .state import BelowZero, Trained


class IMTLL(LossWeighting):
    r"""IMTL-L: weights that are trained with the model, until each weighted loss is 1.

    $$L = \sum_i e^{s_i} L_i - s_i, \qquad w_i = e^{s_i}$$

    In each step the $s_i$ take one step of Adam, after their weights were used. They do not belong to the model's
    optimizer, so its weight decay does not pull them to 0.

    The losses should be above 0. For a loss that is not, $L$ has no minimum, and its weight grows in every step. Since
    a loss may touch 0 now and then, this gives one warning and no error.

    Args:
        lr: Step size of the $s_i$.
        start: Their first value.

    Raises:
        ValueError: If `lr` is not above 0, or `start` is not finite.

    Example:
        >>> IMTLL(lr=1e-2)
        IMTLL(lr=0.01)

    Source:
        Eq. (6) of Liu et al. 2021, [Towards Impartial Multi-task Learning](https://openreview.net/forum?id=IMPnRXEWpvr).
    """

    def __init__(self, *, lr: float = 1e-3, start: float = 0.0) -> None:
        self.lr = check_positive(lr, "lr")
        self.start = check_number(start, "start")
        self.trained = Trained(self.start, self.lr)
        self.below_zero = BelowZero()

    def check(self, losses: Losses) -> None:
        self.below_zero.tell(losses, "IMTLL")

    def weights(self, losses: Losses) -> Tensor:
        weights = self.trained.of(losses).exp()
        self.trained.descend(losses, weights * losses.values - 1)
        return weights
