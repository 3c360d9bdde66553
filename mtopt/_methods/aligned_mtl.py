"""Aligned-MTL: gradients are made orthogonal and equally long."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_not_negative, check_one_of
from .._transform import GramianTransform, Losses
from .settings import Setting, by_loss, check_setting


class AlignedMTL(GramianTransform):
    r"""Independent component alignment: make the gradients' principal components equally long.

    With $G = V \Lambda V^T$ and $\sigma$ the `scale` of the $\sqrt{\lambda_i}$ that are not 0, the new rows are

    $$\tilde g = \sigma V \Lambda^{-1/2} V^T g$$

    They are orthogonal and of length $\sigma$, and of all such rows the nearest to the old ones. They stay separate, so
    that another transform may follow, and are summed at the end.

    Args:
        scale: `"min"`, the smallest singular value; `"median"` of them; `"rmse"`, the root of the mean eigenvalue.
        preference: Factor of each new row, 0 or more: one number, one per loss, or a dict by loss name (1 for those not
            named).

    Raises:
        TypeError: If a `preference` is not a number.
        ValueError: If `scale` is none of these, or a `preference` is below 0.

    Example:
        >>> AlignedMTL(scale="rmse")
        AlignedMTL(scale='rmse')

    Source:
        Algorithm 1 of Senushkin et al. 2023, [arXiv:2305.19000](https://arxiv.org/abs/2305.19000);
        `"median"` and `"rmse"` come from the official code.
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, scale: str = "min", preference: Setting = 1.0) -> None:
        self.scale = check_one_of(scale, "scale", ("min", "median", "rmse"))
        self.preference = check_setting(preference, "preference", check_not_negative)

    def check(self, losses: Losses) -> None:
        by_loss(self.preference, losses, "preference", 1.0)

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        preference = gramian.new_tensor(by_loss(self.preference, losses, "preference", 1.0))
        values, vectors = torch.linalg.eigh(gramian)
        several = (
            values > values[-1] * len(values) * torch.finfo(torch.float32).eps
        )  # what float32 rows can tell from 0
        if not several.any():
            return preference.diag()
        values, vectors = values[several], vectors[:, several]
        square = {"min": values.min, "median": values.median, "rmse": values.mean}[self.scale]()
        mixing: Tensor = preference[:, None] * vectors * (square / values).sqrt() @ vectors.T
        return mixing
