"""MGDA: the shortest vector in the convex hull of the gradients."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_one_of
from .._transform import GramianTransform, Losses
from .settings import check_values_positive
from .solvers import min_norm


class MGDA(GramianTransform):
    r"""Multiple Gradient Descent Algorithm: the shortest convex combination of the losses' gradients.

    $$w = \arg\min_w \Big\| \sum_i w_i \frac{g_i}{n_i} \Big\|^2 \quad \text{with } w_i \ge 0, \ \sum_i w_i = 1$$

    It descends on every loss, or is 0 where no direction does. At an activation this is the upper bound MGDA-UB. It is
    found exactly, not by Frank-Wolfe steps. It is as long as a mean of the gradients, or shorter.

    Args:
        normalize: What divides each gradient while the weights are chosen: `"none"`, `"l2"` its norm, `"loss"` its
            loss, `"loss+"` both. The weights then apply to the gradients as they were.

    Raises:
        ValueError: If `normalize` is none of these. In a step, if it needs the losses and one of them is not above 0.

    Example:
        >>> MGDA(normalize="l2")
        MGDA(normalize='l2')

    Source:
        Désidéri 2012, C. R. Math. 350(5-6); eq. (3) of Sener, Koltun 2018,
        [arXiv:1810.04650](https://arxiv.org/abs/1810.04650), whose code has these ways to normalize.
    """

    scale_equivariant = True

    def __init__(self, *, normalize: str = "none") -> None:
        self.normalize = check_one_of(normalize, "normalize", ("none", "l2", "loss", "loss+"))

    @property
    def uses_values(self) -> bool:  # type: ignore[override]  # here it depends on the settings
        return self.normalize in ("loss", "loss+")

    @property
    def non_conflicting(self) -> bool:  # type: ignore[override]
        return self.normalize == "none"

    def check(self, losses: Losses) -> None:
        if self.uses_values:
            check_values_positive(losses, f'MGDA(normalize="{self.normalize}")')

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        if self.normalize in ("l2", "loss+"):
            norms = gramian.diagonal().sqrt().clamp_min(1e-150)
            gramian = gramian / norms / norms[:, None]
        if self.uses_values:
            values = losses.values.to(gramian)
            gramian = gramian / values / values[:, None]
        return min_norm(gramian)
