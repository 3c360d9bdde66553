"""IMTL-G: equal projections on all gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .._transform import GramianTransform, Losses
from .solvers import given_cosines


class IMTLG(GramianTransform):
    r"""Impartial multi-task learning by gradients: the result has the same projection on each loss's gradient.

    $$\sum_j w_j g_j \cdot \frac{g_i}{\|g_i\|} \text{ is the same for all } i, \quad \sum_i w_i = 1$$

    A weight may be negative. With three losses or more, the common projection may be negative too, so that every loss
    gets worse; that is the paper's rule. Where gradients are linearly dependent, the weights are the least-squares
    solution. Where they then sum to 0, as for two opposite gradients, the result is 0.

    Example:
        >>> IMTLG()
        IMTLG()

    Source:
        Liu et al. 2021, "Towards Impartial Multi-task Learning", ICLR: the closed form of IMTL-G.
    """

    scale_equivariant = True
    uses_values = False

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        norms = gramian.diagonal().sqrt()
        weights = torch.where(norms > 0, given_cosines(gramian, torch.ones_like(norms)) / norms, 0)
        total = weights.sum()
        return torch.where(total.abs() > 1e-8 * weights.abs().sum(), weights / total, 0)
