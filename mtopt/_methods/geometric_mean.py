"""The geometric mean of the losses."""

from __future__ import annotations

from torch import Tensor

from .._transform import Losses, LossWeighting
from .settings import check_values_positive


class GeometricMean(LossWeighting):
    r"""The geometric mean of the losses: a loss in another unit changes the length of its gradient, not its direction.

    $$L = \Big(\prod_i L_i\Big)^{1/T}, \qquad w_i = \frac{L}{T L_i}$$

    for the $T$ losses present. Every loss must be above 0.

    Example:
        >>> GeometricMean()
        GeometricMean()

    Source:
        The geometric loss strategy (GLS) of Chennupati, Sistu, Yogamani, Rawashdeh 2019,
        [arXiv:1904.08492](https://arxiv.org/abs/1904.08492).
    """

    def check(self, losses: Losses) -> None:
        check_values_positive(losses, "GeometricMean")

    def weights(self, losses: Losses) -> Tensor:
        logs = losses.values.double().log()
        return (logs.mean() - logs).exp() / len(losses)
