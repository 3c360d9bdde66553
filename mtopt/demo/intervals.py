"""Confidence intervals of means and medians, and what they allow to say. No training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """`center` ± `half`; `half` is NaN where one value alone tells nothing about the spread."""

    center: float
    half: float

    @property
    def known(self) -> bool:
        return not math.isnan(self.half)

    @property
    def includes_zero(self) -> bool:
        return not abs(self.center) > self.half  # true for NaN, too

    def __mul__(self, factor: float) -> Interval:
        return Interval(self.center * factor, self.half * factor)


def mean_interval(values: Tensor, *, comparisons: int = 1) -> Interval:
    """Mean of independent values `(n,)` with Student's t interval.

    Args:
        values: One value per seed.
        comparisons: How many intervals shall hold at once with `CONFIDENCE` (Bonferroni).
    """
    from scipy.special import stdtrit  # comes with scikit-learn

    n = len(values)
    if n < 2:
        return Interval(float(values.mean()), math.nan)
    quantile = float(stdtrit(n - 1, 1 - (1 - CONFIDENCE) / (2 * comparisons)))
    return Interval(float(values.mean()), quantile * float(values.std()) / math.sqrt(n))


def median_interval(values: Tensor) -> Interval:
    """Median of many values `(n,)`, with the farther of the two order statistics that bound it."""
    ordered = values.sort().values
    reach = 0.98 * math.sqrt(len(values))  # 1.96 standard deviations of the count of values below the median
    low = ordered[max(0, math.floor((len(values) - 1) / 2 - reach))]
    high = ordered[min(len(values) - 1, math.ceil((len(values) - 1) / 2 + reach))]
    median = ordered.quantile(0.5)
    return Interval(float(median), float(torch.maximum(high - median, median - low)))


def mean_band(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and half width over the seeds, from `(seeds, n)` to `(n,)` each; the half width is 0 for one seed."""
    intervals = [mean_interval(column) for column in values.T]
    halves = [interval.half if interval.known else 0.0 for interval in intervals]
    return torch.tensor([interval.center for interval in intervals]), torch.tensor(halves)
