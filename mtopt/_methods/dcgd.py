"""Dual cone gradient descent: two gradients, and a direction that conflicts with neither."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .._checks import check_one_of
from .._transform import GramianTransform, Losses
from .settings import check_which, indices_of


class DCGD(GramianTransform):
    r"""Dual cone gradient descent, for the residual of an equation and the conditions at its boundary.

    With $g_r$ the gradient of the residual, $g_b$ that of all other losses together, and $g = g_r + g_b$:

    - `"center"`: $g$ is projected onto the bisector of the two, which is
      $\frac{\|g_r\| + \|g_b\|}{2} \Big(\frac{g_r}{\|g_r\|} + \frac{g_b}{\|g_b\|}\Big)$, in each step;
    - `"projection"`: if $g$ conflicts with one of the two, it is projected to where it does not;
    - `"average"`: if $g$ conflicts with one of the two, the result is the mean of two projections of $g$, one off each.
      This is half of what PCGrad makes of the two.

    Otherwise the result is $g$. The result conflicts with neither $g_r$ nor $g_b$, but a single loss within a group may
    get worse. Where $g_r$ or $g_b$ is 0, the other one is the result.

    Args:
        variant: `"center"`, `"projection"` or `"average"`.
        residual: The loss that is the residual, by index or name; or a list of losses, whose gradients are added up.
            With two losses in all, it does not matter which.

    Raises:
        TypeError: If `residual` is neither an index nor a name, nor a list of these.
        ValueError: If `variant` is none of these, or `residual` names a loss that is not there, or every loss.

    Example:
        >>> DCGD(variant="average", residual=["mass", "momentum"])
        DCGD(variant='average', residual=('mass', 'momentum'))

    Source:
        DCGD (Center), (Projection) and (Average) of Hwang, Lim 2024, [arXiv:2409.18426](https://arxiv.org/abs/2409.18426);
        several losses in two groups as in its
        [code](https://github.com/youngsikhwang/Dual-Cone-Gradient-Descent).
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, variant: str = "center", residual: int | str | Iterable[int | str] = 0) -> None:
        self.variant = check_one_of(variant, "variant", ("center", "projection", "average"))
        self.residual = check_which(residual, "residual")

    def check(self, losses: Losses) -> None:
        if len(indices_of(self.residual, losses, "residual")) == losses.n_losses > 1:
            raise ValueError("`residual` has all the losses, but DCGD needs another one beside them.")

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        first = indices_of(self.residual, losses, "residual")
        groups = torch.tensor([[i in first, i not in first] for i in losses.indices]).T.to(gramian)  # (2, T)
        products = groups @ gramian @ groups.T
        own, other, between = products[0, 0], products[1, 1], products[0, 1]
        # As a share of what was added up no more than rounding, a sum is 0.
        if (products.diagonal() <= 1e-12 * (groups @ gramian.diagonal())).any():
            return torch.ones_like(gramian.diagonal())
        both = torch.stack([own, other])
        if self.variant == "center":
            norms = both.sqrt()
            return norms.sum() / (2 * norms) @ groups
        if not (both + between < 0).any():
            return torch.ones_like(gramian.diagonal())
        off = torch.stack([-between / own, -between / other])  # how much to add of each, so that it is orthogonal
        if self.variant == "average":
            return (1 + off) / 2 @ groups
        return torch.where(both + between < 0, off, 1) @ groups
