"""CAGrad: the direction near the mean gradient that is best for the loss that gains least."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_not_negative
from .._transform import GramianTransform, Losses
from .solvers import conflict_averse


class CAGrad(GramianTransform):
    r"""Conflict-averse gradient: near the mean gradient, the direction that is best for the loss that gains least.

    With the mean gradient $g_0$:

    $$d = \arg\max_d \min_i \, g_i \cdot d \quad \text{with } \|d - g_0\| \le c \|g_0\|$$

    This is $g_0 + c \|g_0\| \, g_w / \|g_w\|$ with $g_w = \sum_i w_i g_i$ for some $w$ of the simplex. It is about as
    long as the mean. The official code divides it by $1 + c^2$; here it is not rescaled. Where no direction helps all
    losses, it is the first point inside the ball, on the way from $g_0$, that harms none.

    Args:
        c: Radius of the ball, as a share of $\|g_0\|$. 0 is the mean; from 1 on, no loss is harmed.

    Raises:
        ValueError: If `c` is below 0.

    Example:
        >>> CAGrad(c=0.2)
        CAGrad(c=0.2)

    Source:
        Algorithm 1 of Liu, Liu, Jin, Stone, Liu 2021,
        [arXiv:2110.14048](https://arxiv.org/abs/2110.14048).
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, c: float = 0.4) -> None:
        self.c = check_not_negative(c, "c")

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        return conflict_averse(gramian, self.c)
