"""Random loss weighting: new random weights in each step."""

from __future__ import annotations

import torch
from torch import Tensor

from .._draws import Draws
from .._transform import Losses, LossWeighting


class RLW(LossWeighting):
    r"""Random Loss Weighting: new random weights in each step, the same on all ranks; a baseline.

    $$w = T \, \mathrm{softmax}(z), \qquad z_i \sim \mathcal N(0, 1)$$

    for $T$ losses. The paper's weights sum to 1. These sum to $T$, so that their mean is that of the plain sum.

    Args:
        seed: Seed of the private random numbers. `None` derives one from the state of torch's global generator, which
            stays as it was. Each method that is made gets another seed, and the same one again after
            `torch.manual_seed`.

    Raises:
        TypeError: If `seed` is not a whole number.

    Example:
        >>> RLW(seed=1)
        RLW()

    Source:
        Algorithm 2 of Lin, Ye, Zhang, Tsang 2022, [arXiv:2111.10603](https://arxiv.org/abs/2111.10603).
    """

    uses_values = False
    scale_equivariant = True

    def __init__(self, *, seed: int | None = None) -> None:
        self.draws = Draws(seed)

    def weights(self, losses: Losses) -> Tensor:
        # On the CPU, and for absent losses too: the same draws on any device, whichever losses are there.
        generator = self.draws.next(torch.device("cpu"))
        normal = torch.randn(losses.n_losses, dtype=torch.float64, generator=generator)
        weights = len(losses) * normal[list(losses.indices)].softmax(0)
        return weights.to(losses.device)
