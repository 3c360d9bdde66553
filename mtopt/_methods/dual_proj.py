"""DualProj: the mean gradient is projected to where it conflicts with none."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_not_negative
from .._transform import GramianTransform, Losses
from .solvers import dual_cone_projection


class DualProj(GramianTransform):
    r"""The mean gradient, projected onto the cone of directions that harm no loss.

    $$d = \arg\min_{d : \, d \cdot g_j \ge 0 \ \forall j} \Big\|d - \frac{1}{T} \sum_i g_i\Big\|$$

    Args:
        eps: Added to the diagonal of the Gramian, as a share of its trace. The authors' code has 1e-4; with it a
            gradient much shorter than another one is harmed again.

    Raises:
        ValueError: If `eps` is below 0.

    Example:
        >>> DualProj(eps=1e-4)
        DualProj(eps=0.0001)

    Source:
        Eq. (11) of Lopez-Paz, Ranzato 2017, "Gradient Episodic Memory",
        [arXiv:1706.08840](https://arxiv.org/abs/1706.08840), for the mean of several losses.
    """

    scale_equivariant = True
    uses_values = False
    non_conflicting = True

    def __init__(self, *, eps: float = 0.0) -> None:
        self.eps = check_not_negative(eps, "eps")

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        mean = torch.full_like(gramian.diagonal(), 1 / len(gramian))
        return dual_cone_projection(gramian, mean, self.eps)
