"""GradVac: turn gradients towards each other, up to the cosines that they usually have."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_share
from .._draws import Draws
from .._transform import GramianTransform, Losses
from .pcgrad import random_orders
from .state import PerPair

HIGHEST = 1 - 1e-6  # of a target: to turn a gradient all the way into another one takes an endless one


class GradVac(GramianTransform):
    r"""Gradient vaccine: turn gradients towards each other where they agree less than they usually do.

    For each $i$, over the others $j$ in random order, with the cosine $\phi$ of $\tilde g_i$ and $g_j$ and its moving
    average $\hat\phi_{ij}$: where $\phi < \hat\phi_{ij}$,

    $$\tilde g_i \leftarrow \tilde g_i + \frac{\|\tilde g_i\|\,
      \big(\hat\phi_{ij}\sqrt{1 - \phi^2} - \phi\sqrt{1 - \hat\phi_{ij}^2}\big)}
      {\|g_j\| \sqrt{1 - \hat\phi_{ij}^2}}\, g_j$$

    and then, conflict or not, $\hat\phi_{ij} \leftarrow (1 - \beta)\,\hat\phi_{ij} + \beta\,\phi$. The averages start
    at 0, so the first step is PCGrad's. The rows stay separate, so that another transform may follow.

    Args:
        beta: Weight $\beta$ of the newest cosine, in [0, 1]. The paper uses 1e-2, LibMTL 0.5.
        seed: Seed of the private random order. `None` derives one from the state of torch's global generator. Each
            method that is made gets another seed, and the same one again after `torch.manual_seed`.

    Raises:
        TypeError: If `seed` is not a whole number.
        ValueError: If `beta` is out of range.

    Example:
        >>> GradVac(beta=0.01)
        GradVac(beta=0.01)

    Source:
        Algorithm 1, eq. (2) and (3) of Wang, Tsvetkov, Firat, Cao 2021,
        [arXiv:2010.05874](https://arxiv.org/abs/2010.05874).
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, beta: float = 0.5, seed: int | None = None) -> None:
        self.beta = check_share(beta, "beta")
        self.draws = Draws(seed)
        self.cosines = PerPair()

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        norms = gramian.diagonal().sqrt()
        each = torch.arange(len(gramian))
        mixing = torch.eye(len(gramian), dtype=gramian.dtype)
        averages = self.cosines.of(losses)
        for other in random_orders(len(gramian), self.draws):  # (T,), one for each row
            products = mixing @ gramian
            length = (products * mixing).sum(1).clamp_min(0).sqrt()
            cosine = torch.nan_to_num(products[each, other] / (length * norms[other])).clamp(-1, 1)
            target = averages[each, other].clamp_max(HIGHEST)
            turn = target / (1 - target**2).sqrt() * (1 - cosine**2).sqrt() - cosine
            turned = (cosine < target) & (norms[other] > 0)
            mixing[each, other] += torch.where(turned, turn * length / norms[other], 0)
            averages[each, other] += self.beta * (cosine - averages[each, other])
        self.cosines.keep(losses, averages)
        return mixing
