"""Causal weights: a loss counts only as far as the losses before it in time are small."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .._checks import check_not_negative
from .._transform import Losses, LossWeighting
from .settings import Setting, by_loss, check_setting


class CausalWeights(LossWeighting):
    r"""Causal weights, for losses in the order of time: a later one waits until the earlier ones are small.

    $$w_i = \exp\Big(-\sum_{k < i} \varepsilon_k L_k\Big)$$

    The first loss has weight 1. An absent loss holds no other loss back. Put a loss without a time of its own, such as
    one at a boundary, first in the list, with an $\varepsilon$ of 0. No other loss may be below 0.

    Args:
        eps: How far a loss holds back those after it: one number, one per loss, or a dict by loss name (1 for those not
            named). If it is too large, the last losses never get any weight; if it is too small, it changes nothing.
            The paper raises it from 0.01 to 100 in five stages.

    Raises:
        TypeError: If an `eps` is not a number.
        ValueError: If an `eps` is below 0. In a step, if a loss is below 0 whose `eps` is not 0.

    Example:
        >>> CausalWeights(eps={"boundary": 0.0})
        CausalWeights(eps={'boundary': 0.0})

    Source:
        Wang, Sankaran, Perdikaris 2022, [arXiv:2203.07404](https://arxiv.org/abs/2203.07404), algorithm 1. There the
        weighted losses are averaged; here, as everywhere, they are summed.
    """

    def __init__(self, *, eps: Setting = 1.0) -> None:
        self.eps = check_setting(eps, "eps", check_not_negative)

    def check(self, losses: Losses) -> None:
        pairs = zip(losses.values.tolist(), by_loss(self.eps, losses, "eps", 1.0), strict=True)
        for position, (value, eps) in enumerate(pairs):
            if value < 0 < eps:
                raise ValueError(
                    f"`losses[{losses.label(position)}]` is {value:g}, but CausalWeights needs losses of 0 or more. "
                    f"Add a constant to it, or give it an `eps` of 0."
                )

    def weights(self, losses: Losses) -> Tensor:
        values = losses.values.double()
        eps = torch.tensor(by_loss(self.eps, losses, "eps", 1.0), dtype=torch.float64, device=values.device)
        return functional.pad((eps * values)[:-1].cumsum(0), (1, 0)).neg().exp()
