"""FairGrad: share out by α-fairness what the losses gain from the step."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_positive
from .._transform import GramianTransform, Losses
from .solvers import fair_weights


class FairGrad(GramianTransform):
    r"""Fair resource allocation: the direction with the largest α-fair utility of the losses' gains.

    $$G w = w^{-1/\alpha}, \quad w > 0$$

    Args:
        alpha: The kind of fairness. Near 0 the sum of the gains counts, at 1 their product (as in Nash-MTL), and for
            large values the least gain.

    Raises:
        ValueError: If `alpha` is not above 0.

    Example:
        >>> FairGrad(alpha=2.0)
        FairGrad(alpha=2.0)

    Source:
        Eq. (4) and algorithm 1 of Ban, Ji 2024, [arXiv:2402.15638](https://arxiv.org/abs/2402.15638).
    """

    uses_values = False
    non_conflicting = True

    def __init__(self, *, alpha: float = 1.0) -> None:
        self.alpha = check_positive(alpha, "alpha")

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        return fair_weights(gramian, 1 / self.alpha)
