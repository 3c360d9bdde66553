"""Trimmed mean: at each coordinate the largest and the smallest gradients count for nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_count
from .._dtypes import widen
from .._transform import Losses, RowTransform, Site


class TrimmedMean(RowTransform):
    r"""Trimmed mean: at each coordinate, the mean of the losses' gradients without the most extreme ones.

    $$d = \frac{1}{T - 2k} \sum_{i = k + 1}^{T - k} g_{(i)}$$

    where $g_{(1)} \le \dots \le g_{(T)}$ are the gradients sorted at this coordinate, and $k$ is `trim`. Use it for
    losses that should agree: the same task on different data, some of which may be spoiled. Where fewer than $2k + 1$
    losses are present, or meet, trimming stops when one or two are left, so the result is the median. A gradient that
    overflowed is not trimmed, so that a GradScaler sees it.

    Args:
        trim: How many are left out, $k$ of the largest and $k$ of the smallest. 0 is the mean.

    Raises:
        TypeError: If `trim` is not a whole number.
        ValueError: If `trim` is below 0. In a step, if the list of losses is shorter than `2 * trim + 1`.

    Example:
        >>> TrimmedMean(trim=2)
        TrimmedMean(trim=2)

    Source:
        Definition 2 of Yin, Chen, Ramchandran, Bartlett 2018, [arXiv:1803.01498](https://arxiv.org/abs/1803.01498),
        with the number of gradients in place of their share.
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, trim: int = 1) -> None:
        self.trim = check_count(trim, "trim", 0)

    def check(self, losses: Losses) -> None:
        if losses.n_losses < 2 * self.trim + 1:
            raise ValueError(
                f"`trim` is {self.trim}, for which TrimmedMean needs {2 * self.trim + 1} losses or more, but there are "
                f"{losses.n_losses}."
            )

    def transform(self, rows: Tensor, site: Site) -> Tensor:
        trimmed = min(self.trim, (len(rows) - 1) // 2)
        kept = rows.argsort(dim=0, stable=True)[trimmed : len(rows) - trimmed]
        shares = torch.zeros_like(widen(rows)).scatter_(0, kept, 1 / len(kept))
        return (widen(rows) * shares).to(rows.dtype)  # multiplied by 0, what is not finite stays so
