"""Nash-MTL: the gradients bargain for the step."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_not_negative
from .._transform import GramianTransform, Losses
from .solvers import fair_weights


class NashMTL(GramianTransform):
    r"""Nash bargaining: the direction with the largest product of the losses' gains.

    $$G w = 1 / w, \quad w > 0$$

    The result always has length $\sqrt T$, or `max_norm` if that is less, however small the gradients are: mind the
    learning rate. The equation is solved by Newton's method, not by a sequence of convex approximations.

    Args:
        max_norm: Largest length of the result; 0 for no bound.

    Raises:
        ValueError: If `max_norm` is below 0.

    Example:
        >>> NashMTL(max_norm=0)
        NashMTL(max_norm=0.0)

    Source:
        Claim 3.1 and algorithm 1 of Navon et al. 2022, [arXiv:2202.01017](https://arxiv.org/abs/2202.01017);
        `max_norm` comes from the official code.
    """

    uses_values = False
    non_conflicting = True

    def __init__(self, *, max_norm: float = 1.0) -> None:
        self.max_norm = check_not_negative(max_norm, "max_norm")

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        weights = fair_weights(gramian, 1.0)
        norm = max(0.0, float(weights @ gramian @ weights)) ** 0.5
        return weights * (self.max_norm / norm) if 0 < self.max_norm < norm else weights
