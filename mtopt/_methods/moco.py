"""MoCo: weights that shorten the combined gradient, one step at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_not_negative, check_positive
from .._transform import GramianTransform, Losses
from .state import PerLoss


class MoCo(GramianTransform):
    r"""Multi-objective gradient correction: the weights move one step of gradient descent towards those of MGDA.

    $$\lambda \leftarrow \Pi_\Delta\big(\lambda - \gamma\, (G + \rho I)\, \lambda\big), \qquad
    \text{out} = \sum_i \lambda_i g_i$$

    where $G$ is the Gramian, $\Pi_\Delta$ projects onto the simplex, and each $\lambda_i$ starts at $1/T$. The paper
    tracks each gradient by an average, so that the batch's noise does not bias the weights: put `Momentum(beta=0.5)` in
    front. An absent loss keeps its weight, and the others share the rest.

    Args:
        gamma: Step size $\gamma$ of the weights, above 0. It multiplies squared gradients, so choose it by their scale.
        rho: How strongly $\rho \ge 0$ pulls the weights towards equal ones.

    Raises:
        ValueError: If `gamma` or `rho` is out of range.

    Example:
        >>> MoCo(gamma=0.01)
        MoCo(gamma=0.01)

    Source:
        Algorithm 1 of Fernando, Shen, Liu, Chaudhury, Murugesan, Chen 2023, "Mitigating Gradient Bias in
        Multi-objective Learning: A Provably Convergent Approach", ICLR.
    """

    uses_values = False

    def __init__(self, *, gamma: float = 0.1, rho: float = 0.0) -> None:
        self.gamma = check_positive(gamma, "gamma")
        self.rho = check_not_negative(rho, "rho")
        self.shares = PerLoss(1.0)  # of all losses, up to a factor

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        shares = self.shares.of(losses).to(gramian)
        whole = shares.sum()
        before = shares / whole if whole > 0 else torch.full_like(shares, 1 / len(shares))
        slope = gramian @ before + self.rho * before
        now = onto_simplex(before - self.gamma * slope)
        self.shares.keep(losses, now * whole)
        return now


def onto_simplex(point: Tensor) -> Tensor:
    """The nearest point, shape `(T,)`, with no number below 0, and sum 1."""
    point = point - point.max()  # the same for all changes nothing, but large numbers would swallow the 1
    falling = point.sort(descending=True).values
    above = (falling.cumsum(0) - 1) / torch.arange(1, len(point) + 1).to(point)
    last = int((falling > above).sum()) - 1
    return (point - above[last]).clamp_min(0)
