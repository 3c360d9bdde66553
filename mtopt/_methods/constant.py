"""Constant weights: the plain weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_number
from .._transform import Losses, LossWeighting
from .settings import Setting, by_loss, check_setting


class ConstantWeights(LossWeighting):
    r"""Fixed weights: the sum of the losses, each times a number.

    $$L = \sum_i w_i L_i$$

    Args:
        weight: Weight of a loss: one number, one per loss, or a dict by loss name (1 for those not named).

    Raises:
        TypeError: If a weight is not a number.
        ValueError: If a weight is not finite.

    Example:
        >>> ConstantWeights({"depth": 0.1})
        ConstantWeights(weight={'depth': 0.1})
    """

    uses_values = False
    scale_equivariant = True

    def __init__(self, weight: Setting) -> None:
        self.weight = check_setting(weight, "weight", check_number)

    def check(self, losses: Losses) -> None:
        by_loss(self.weight, losses, "weight", 1.0)

    def weights(self, losses: Losses) -> Tensor:
        weights = by_loss(self.weight, losses, "weight", 1.0)
        return torch.tensor(weights, dtype=torch.float64, device=losses.device)
