"""ConFIG: the same cosine with all gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .._transform import GramianTransform, Losses
from .solvers import equal_cosines


class ConFIG(GramianTransform):
    r"""Conflict-free inverse gradients: the direction that has the same cosine with each loss's gradient.

    With $U$ the gradients at length 1, one in each row, and $u = U^+ 1$:

    $$d = \Big(\sum_i g_i \cdot \frac{u}{\|u\|}\Big) \frac{u}{\|u\|}$$

    Where gradients are linearly dependent, $u$ is the solution of least squares, and may conflict; where that is 0, as
    for two opposite gradients, the result is 0.

    Example:
        >>> ConFIG()
        ConFIG()

    Source:
        Eq. (2) of Liu, Chu, Thuerey 2025, [arXiv:2408.11104](https://arxiv.org/abs/2408.11104).
    """

    scale_equivariant = True
    uses_values = False

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        norms = gramian.diagonal().sqrt()
        cosines = equal_cosines(gramian)
        weights = torch.where(norms > 0, cosines / norms, 0)
        square = weights @ gramian @ weights  # |u|²
        return torch.where(square > 1e-12 * cosines.square().sum(), weights * (gramian @ weights).sum() / square, 0)
