"""Dynamic weight average: more weight for the losses that fall more slowly from epoch to epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_positive
from .._transform import Losses, LossWeighting
from .state import EpochMeans


class DWA(LossWeighting):
    r"""Dynamic Weight Average: a loss that fell less over the last two epochs, relative to itself, counts more.

    $$w_i = T \, \mathrm{softmax}_i(r / \tau), \qquad r_i = \bar L_i(t - 1) / \bar L_i(t - 2)$$

    for $T$ losses whose means in epoch $t$ are $\bar L_i(t)$. Call `epoch_end()` after each epoch. All weights are 1
    until every loss present has been there in two epochs, and whenever a mean of 0 leaves no ratio.

    Args:
        tau: Temperature; the larger, the more equal the weights.

    Raises:
        ValueError: If `tau` is not above 0.

    Example:
        >>> method = DWA()
        >>> method.epoch_end()

    Source:
        Eq. (7) of Liu, Johns, Davison 2019, [arXiv:1803.10704](https://arxiv.org/abs/1803.10704).
    """

    def __init__(self, *, tau: float = 2.0) -> None:
        self.tau = check_positive(tau, "tau")
        self.epochs = EpochMeans()

    def weights(self, losses: Losses) -> Tensor:
        self.epochs.add(losses)
        ratios = self.epochs.last.of(losses) / self.epochs.earlier.of(losses)
        weights = len(losses) * (ratios / self.tau).softmax(0)
        return torch.where(ratios.isfinite().all(), weights, torch.ones_like(weights))

    def epoch_end(self) -> None:
        """End an epoch, whose mean losses are now final."""
        self.epochs.end()
