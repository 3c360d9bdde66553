"""DB-MTL: losses on a logarithmic scale, their gradients at one length."""

from __future__ import annotations

import torch
from torch import Tensor

from .._transform import GramianTransform, Losses
from .settings import check_values_positive


class DBMTL(GramianTransform):
    r"""Dual-balancing multi-task learning: gradients of the losses' logarithms, all as long as the longest of them.

    $$\text{out} = \Big(\max_j \frac{\|g_j\|}{L_j}\Big) \sum_i \frac{g_i}{\|g_i\|}$$

    since $g_i / L_i$ is the gradient of $\log L_i$. Every loss must be above 0. The paper also averages these gradients
    over the steps, and lets the past count less in each. For an average, put `Momentum()` in front; it averages the
    losses' gradients.

    Raises:
        ValueError: If a loss is not above 0.

    Example:
        >>> DBMTL()
        DBMTL()

    Source:
        Algorithm 1 of Lin, Jiang, Ye, Zhang, Chen, Chen, Liu, Kwok 2023, "Dual-Balancing for Multi-Task Learning",
        [arXiv:2308.12029](https://arxiv.org/abs/2308.12029), without its average.
    """

    scale_equivariant = True

    def check(self, losses: Losses) -> None:
        check_values_positive(losses, "DBMTL")

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        norms = gramian.diagonal().sqrt()
        longest = (norms / losses.values.to(norms)).max()
        return torch.where(norms > 0, longest / norms, 0)
