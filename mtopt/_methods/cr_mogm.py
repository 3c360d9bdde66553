"""CR-MOGM: the weights of another method, averaged over the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_share, kind_of
from .._transform import GramianTransform, Losses
from .around import Around
from .state import PerLoss


class CRMOGM(Around):
    r"""Correlation-reduced multi-objective gradient manipulation: a running average of another method's weights.

    $$\lambda_i \leftarrow \alpha \lambda_i + (1 - \alpha) \hat\lambda_i$$

    where $\hat\lambda$ are the method's weights in this step, and $\lambda_i$ starts at the first $\hat\lambda_i$. When
    the noise of a batch is in the weights and in the gradients, it biases their products; the average has less of that
    noise. From a method that mixes the gradients, such as PCGrad, it takes how much of each gradient is in the sum: the
    rows are then weighted, not mixed. Where losses meet at several activations, each of them moves the average.

    Args:
        method: The method that is asked for weights in each step.
        average: Share $\alpha$ of the previous weight, in [0, 1]. The paper raises it to 1 as the learning rate falls:
            set the attribute between steps.

    Raises:
        TypeError: If `method` is not a method from the Gramian.
        ValueError: If `average` is out of range.

    Example:
        >>> import mtopt
        >>> CRMOGM(mtopt.MGDA(), average=0.5)
        CRMOGM(method=MGDA(), average=0.5)

    Source:
        Zhou, Zhang, Jiang, Zhong, Gu, Zhu 2022, "On the Convergence of Stochastic Multi-Objective Gradient Manipulation
        and Beyond", NeurIPS.
    """

    def __init__(self, method: GramianTransform, *, average: float = 0.9) -> None:
        if not isinstance(method, GramianTransform):
            raise TypeError(f"`method` must be a method from the Gramian, e.g. MGDA(), but it is {kind_of(method)}.")
        super().__init__(method)
        self.average = check_share(average, "average")
        self.averaged = PerLoss()

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        now = self.method.weights(gramian, losses).to(gramian)
        now = now.sum(0) if now.ndim == 2 else now
        before = self.averaged.of(losses).to(gramian)
        weights = torch.where(before.isnan(), now, self.average * before + (1 - self.average) * now)
        self.averaged.keep(losses, weights)
        return weights
