"""Every: a method decides in some steps only, and its weights hold in the steps between."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import check_count, kind_of
from .._transform import GramianTransform, Losses
from .around import Around
from .holding import Holding
from .state import Count, PerLoss


class Every(Around, Holding):
    r"""Lets a method choose weights in every k-th step. Other steps take one backward pass of the weighted sum.

    With T losses at parameters, a step costs about $1 + (T - 1) / k$ backward passes of the shared part, instead of T.
    If the method mixes rows, a row's weight is how much of it is in the result. Every must be the only transform of the
    gradients in the list, with `at="parameters"` or `"all parameters"`. A step with a loss that has no weight yet
    decides anew.

    Args:
        method: A method from the Gramian.
        steps: k, from 1 on.

    Raises:
        TypeError: If `method` is not a `GramianTransform`, or `steps` is not a whole number.
        ValueError: If `steps` is below 1.

    Example:
        >>> from mtopt import UPGrad
        >>> Every(UPGrad(), steps=10)
        Every(method=UPGrad(), steps=10)
    """

    def __init__(self, method: GramianTransform, steps: int) -> None:
        if not isinstance(method, GramianTransform):
            raise TypeError(
                f"`method` must be a method from the Gramian, e.g. UPGrad(), but it is {kind_of(method)}: only "
                f"weights of whole losses can hold in steps that do not see their gradients."
            )
        super().__init__(method)
        self.steps = check_count(steps, "steps")
        self.since = Count()
        self.last = PerLoss(on_cpu=True)

    @property
    def non_conflicting(self) -> bool:  # type: ignore[override]
        return self.method.non_conflicting and self.steps == 1

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        if self.holds(losses):
            return self.held(losses)
        weights = self.method.weights(gramian, losses)
        shares = weights.sum(0) if weights.ndim == 2 else weights
        self.last.keep(losses, shares.to(torch.float64))
        self.since.number = 0
        return weights

    def holds(self, losses: Losses, *, several_ranks: bool = False) -> bool:
        if self.last.n_losses == 0 or self.since.number >= self.steps - 1:
            return False
        return not any(map(math.isnan, self.last.listed(losses, all_losses=several_ranks)))

    def held(self, losses: Losses) -> Tensor:
        self.since.number += 1
        return self.last.of(losses)
