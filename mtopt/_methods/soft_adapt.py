"""SoftAdapt: more weight for the losses that rise, by the slope of their last values."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .._checks import check_count, check_flag, check_number
from .._transform import Losses, LossWeighting
from .state import PerLoss, Together


class Window(Together):
    """The last values of each loss, oldest first; NaN is "none yet"."""

    def __init__(self, length: int) -> None:
        self.values = [PerLoss() for _ in range(length)]

    def push(self, losses: Losses) -> Tensor:
        """Take in a step's values, and return all that are here then, shape `(window, T)`, float64."""
        for older, newer in pairwise(self.values):
            older.keep(losses, newer.of(losses))
        self.values[-1].keep(losses, losses.values)
        return torch.stack([value.of(losses) for value in self.values])

    def parts(self) -> dict[str, PerLoss]:
        return {str(i): value for i, value in enumerate(self.values)}


class SoftAdapt(LossWeighting):
    r"""SoftAdapt: a loss that rises, or falls more slowly, counts more.

    $$w = \mathrm{softmax}(\beta s), \qquad s_i = \sum_{k=1}^{n-1} \frac{\nabla^k L_i}{k}$$

    where $s_i$ is the slope of loss $i$ at its newest value, by the backward difference over its last $n$ values. For
    $n = 2$ it is the change since the step before. Differences that reach back before a loss's first value are left
    out. The weights sum to 1. The losses' units matter, because the slopes scale with the losses.

    Args:
        beta: How much a slope counts. Below 0, the loss that falls fastest counts most.
        window: The number $n$ of values that a slope is taken over.
        normalized: Whether to divide the slopes by the sum of their absolute values.
        loss_weighted: Whether to multiply the weights by the losses' means over the window, and to rescale them to sum
            to 1. No loss may then be below 0.

    Raises:
        TypeError: If `window` is not a whole number.
        ValueError: If `beta` is not finite, or `window` is below 2.

    Example:
        >>> SoftAdapt(loss_weighted=True)
        SoftAdapt(loss_weighted=True)

    Source:
        Section 3.1 of Heydari, Thompson, Mehmood 2019, [arXiv:1912.12355](https://arxiv.org/abs/1912.12355).
    """

    def __init__(
        self, *, beta: float = 0.1, window: int = 5, normalized: bool = False, loss_weighted: bool = False
    ) -> None:
        self.beta = check_number(beta, "beta")
        self.window = check_count(window, "window", 2)
        self.normalized = check_flag(normalized, "normalized")
        self.loss_weighted = check_flag(loss_weighted, "loss_weighted")
        self.past = Window(self.window)

    def check(self, losses: Losses) -> None:
        for position, value in enumerate(losses.values.tolist() if self.loss_weighted else ()):
            if value < 0:
                raise ValueError(
                    f"`losses[{losses.label(position)}]` is {value:g}, but `loss_weighted` needs losses of 0 or more. "
                    f"Add a constant to it, or leave `loss_weighted` out."
                )

    def weights(self, losses: Losses) -> Tensor:
        past = self.past.push(losses)
        slopes = torch.zeros_like(past[-1])
        differences = past
        for k in range(1, self.window):
            differences = differences.diff(dim=0)
            slopes = slopes + differences[-1].nan_to_num(0.0) / k
        tiny = torch.finfo(torch.float64).tiny
        if self.normalized:
            slopes = slopes / slopes.abs().sum().clamp_min(tiny)
        weights = (self.beta * slopes).softmax(0)
        if self.loss_weighted:
            weights = weights * past.nanmean(0)
            weights = weights / weights.sum().clamp_min(tiny)
        return weights
