"""Learning-rate annealing: weights from the residual's largest gradient and the other losses' mean gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .._checks import check_count, check_share
from .._transform import GramianTransform, Losses
from .holding import Holding
from .settings import check_which, indices_of
from .state import Calls, PerLoss


class Annealing(GramianTransform, Holding):
    r"""Learning-rate annealing of physics-informed networks: every other loss is brought up to the residual.

    $$\hat\lambda_i = \frac{\max |g_r|}{\text{mean} |g_i|}, \qquad
    \lambda_i \leftarrow \alpha \lambda_i + (1 - \alpha) \hat\lambda_i$$

    where $g_r$ is the gradient of the residual, whose own weight is 1. Each $\lambda_i$ starts at 1. The maximum and
    the mean run over all numbers of a row, at all shared parameters or activations together. A gradient of 0 leaves its
    weight unchanged.

    Args:
        residual: The loss that is the residual, by index or name; or a list, of which the largest gradient counts.
        average: Share $\alpha$ of the previous weight, in [0, 1]. The paper's $\alpha$ is the share of the new one.
        period: A weight moves at its loss's first gradient, and at every `period`-th one after it. The paper uses 10.

    Raises:
        TypeError: If `residual` is neither an index nor a name, or `period` is not a whole number.
        ValueError: If `average` is out of range, `period` is below 1, or `residual` names a loss that is not there.

    Example:
        >>> Annealing(residual="pde")
        Annealing(residual='pde')

    Source:
        Algorithm 1 of Wang, Teng, Perdikaris 2021, [arXiv:2001.04536](https://arxiv.org/abs/2001.04536), whose later
        work takes [`GradientNorms`][mtopt.GradientNorms] instead.
    """

    scale_equivariant = True
    uses_values = False
    reads_sizes = True

    def __init__(
        self, *, residual: int | str | Iterable[int | str] = 0, average: float = 0.1, period: int = 10
    ) -> None:
        self.residual = check_which(residual, "residual")
        self.average = check_share(average, "average")
        self.period = check_count(period, "period")
        self.averaged = PerLoss(1.0, on_cpu=True)
        self.calls = Calls(self.period)

    def check(self, losses: Losses) -> None:
        indices_of(self.residual, losses, "residual")

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        assert losses.sizes is not None
        largest, mean = losses.sizes.to(gramian).unbind(1)
        before, calls = self.averaged.of(losses).to(gramian), self.calls.next(losses).to(gramian)
        residual = indices_of(self.residual, losses, "residual")
        own = torch.tensor([index in residual for index in losses.indices])
        if not own.any():
            return before
        now = largest[own].max() / mean
        moves = (calls % self.period == 0) & now.isfinite() & (now > 0) & ~own
        weights = torch.where(moves, self.average * before + (1 - self.average) * now, before)
        self.averaged.keep(losses, weights)
        return weights

    def holds(self, losses: Losses, *, several_ranks: bool = False) -> bool:
        return self.calls.none_is_due(losses, several_ranks=several_ranks)

    def held(self, losses: Losses) -> Tensor:
        self.calls.next(losses)
        return self.averaged.of(losses)
