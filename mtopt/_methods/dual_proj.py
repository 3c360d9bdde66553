"""DualProj: project the mean gradient to where it conflicts with no gradient."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_not_negative
from .._transform import GramianTransform, Losses
from .settings import Setting, by_loss, check_setting
from .solvers import dual_cone_projection


class DualProj(GramianTransform):
    r"""The mean gradient, projected onto the cone of directions that harm no loss.

    $$d = \arg\min_{d : \, d \cdot g_j \ge 0 \ \forall j} \Big\|d - \frac{1}{T} \sum_i \lambda_i g_i\Big\|$$

    where each $\lambda_i$ is usually 1.

    Args:
        eps: Added to the diagonal of the Gramian, as a share of its trace. The authors' code uses 1e-4, with which a
            gradient much shorter than another one is harmed again.
        preference: $\lambda_i \ge 0$ of a loss: one number, one per loss, or a dict by loss name (1 for those not
            named).

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If `eps` or a `preference` is below 0.

    Example:
        >>> DualProj(eps=1e-4)
        DualProj(eps=0.0001)

    Source:
        Eq. (11) of Lopez-Paz, Ranzato 2017, "Gradient Episodic Memory",
        [arXiv:1706.08840](https://arxiv.org/abs/1706.08840), for the mean of several losses.
    """

    scale_equivariant = True
    uses_values = False
    non_conflicting = True

    def __init__(self, *, eps: float = 0.0, preference: Setting = 1.0) -> None:
        self.eps = check_not_negative(eps, "eps")
        self.preference = check_setting(preference, "preference", check_not_negative)

    def check(self, losses: Losses) -> None:
        by_loss(self.preference, losses, "preference", 1.0)

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        preference = gramian.new_tensor(by_loss(self.preference, losses, "preference", 1.0))
        return dual_cone_projection(gramian, preference / len(gramian), self.eps)
