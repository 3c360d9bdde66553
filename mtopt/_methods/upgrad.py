"""UPGrad: each gradient is projected to where it conflicts with none."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_not_negative
from .._transform import GramianTransform, Losses
from .solvers import dual_cone_projection


class UPGrad(GramianTransform):
    r"""Unconflicting projection of gradients: each is projected onto the cone of directions that harm no loss.

    $$\tilde g_i = \frac{1}{T} \arg\min_{d : \, d \cdot g_j \ge 0 \ \forall j} \|d - g_i\|$$

    The rows stay apart, so that another transform may follow. Their sum is the mean of the projections, T times shorter
    than the plain sum where nothing conflicts: mind the learning rate.

    Args:
        eps: Added to the diagonal of the Gramian, as a share of its trace. The authors' code has 1e-4; with it a
            gradient much shorter than another one is harmed again.

    Raises:
        ValueError: If `eps` is below 0.

    Example:
        >>> UPGrad(eps=1e-4)
        UPGrad(eps=0.0001)

    Source:
        Eq. (3) and proposition 1 of Quinton, Rey 2024, [arXiv:2406.16232](https://arxiv.org/abs/2406.16232).
    """

    scale_equivariant = True
    uses_values = False
    non_conflicting = True

    def __init__(self, *, eps: float = 0.0) -> None:
        self.eps = check_not_negative(eps, "eps")

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        each = torch.eye(len(gramian), dtype=gramian.dtype) / len(gramian)
        return dual_cone_projection(gramian, each, self.eps)
