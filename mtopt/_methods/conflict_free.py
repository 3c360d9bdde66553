"""ConFIG: the same cosine with all gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._checks import check_not_negative, check_one_of
from .._transform import GramianTransform, Losses
from .settings import Setting, by_loss, check_setting
from .solvers import given_cosines

LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "min": torch.min,
    "max": torch.max,
    "mean": torch.mean,
    "harmonic": lambda norms: 1 / (1 / norms).mean(),
    "geometric": lambda norms: norms.log().mean().exp(),
}


class ConFIG(GramianTransform):
    r"""Conflict-free inverse gradients: the direction that has the same cosine with each loss's gradient.

    With $U$ the gradients at length 1, one in each row, and $u = U^+ \lambda$, where each $\lambda_i$ is usually 1:

    $$d = \Big(\sum_i g_i \cdot \frac{u}{\|u\|}\Big) \frac{u}{\|u\|}$$

    Where gradients are linearly dependent, $u$ is the least-squares solution, and may conflict. Where that is 0, as for
    two opposite gradients, the result is 0.

    Args:
        preference: $\lambda_i \ge 0$ of a loss: one number, one per loss, or a dict by loss name (1 for those not
            named). The cosines are in proportion to them. The authors' code calls them direction weights.
        length: `"projection"` is the sum of the projections, as in the equation. The others are the length rules of the
            authors' code. They act as if each gradient had the `"min"`, `"max"`, `"mean"`, `"harmonic"` or
            `"geometric"` mean of all lengths. Gradients that are 0 do not count.

    Raises:
        TypeError: If a `preference` is not a number.
        ValueError: If a `preference` is below 0, or `length` is none of these.

    Example:
        >>> ConFIG(preference={"boundary": 2.0})
        ConFIG(preference={'boundary': 2.0})

    Source:
        Eq. (2) of Liu, Chu, Thuerey 2025, [arXiv:2408.11104](https://arxiv.org/abs/2408.11104).
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, preference: Setting = 1.0, length: str = "projection") -> None:
        self.preference = check_setting(preference, "preference", check_not_negative)
        self.length = check_one_of(length, "length", ("projection", *LENGTHS))

    def check(self, losses: Losses) -> None:
        by_loss(self.preference, losses, "preference", 1.0)

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        norms = gramian.diagonal().sqrt()
        cosines = given_cosines(gramian, gramian.new_tensor(by_loss(self.preference, losses, "preference", 1.0)))
        weights = torch.where(norms > 0, cosines / norms, 0)
        products = gramian @ weights
        square = weights @ products  # |u|²
        if self.length != "projection" and (norms > 0).any():
            products = torch.where(norms > 0, products / norms, 0) * LENGTHS[self.length](norms[norms > 0])
        return torch.where(square > 1e-12 * cosines.square().sum(), weights * products.sum() / square, 0)
