"""Krum: the gradient that is closest to its nearest neighbours. Outliers count for nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_count
from .._transform import GramianTransform, Losses


class Krum(GramianTransform):
    r"""Krum and Multi-Krum: the mean of the gradients that lie closest to others, for losses that should agree.

    $$s_i = \sum_{j \in N_i} \|g_i - g_j\|^2$$

    where $N_i$ are the $T - f - 2$ gradients nearest to $g_i$, and $f$ is `n_byzantine`. The result is the mean of the
    `n_selected` gradients with the smallest $s_i$. On a tie the first ones are taken, so the order of the losses counts
    for $T = f + 3$, where the two nearest gradients always tie. The other losses have no part in the step. So use Krum
    where each loss is the same task on different data, some of which may be spoiled. Where fewer than $f + 3$ losses
    are present, or meet, the result is the plain mean.

    Args:
        n_byzantine: How many gradients may be spoiled. The paper's guarantee needs $T > 2 f + 2$.
        n_selected: How many gradients are averaged.

    Raises:
        TypeError: If a setting is not a whole number.
        ValueError: If `n_byzantine` is below 0 or `n_selected` below 1. In a step, if the list of losses is shorter
            than `n_byzantine + 3`, or than `n_selected`.

    Example:
        >>> Krum(n_byzantine=2, n_selected=3)
        Krum(n_byzantine=2, n_selected=3)

    Source:
        Section 4 of Blanchard, El Mhamdi, Guerraoui, Stainer 2017, "Machine Learning with Adversaries: Byzantine
        Tolerant Gradient Descent", NeurIPS.
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, n_byzantine: int = 1, n_selected: int = 1) -> None:
        self.n_byzantine = check_count(n_byzantine, "n_byzantine", 0)
        self.n_selected = check_count(n_selected, "n_selected")

    def check(self, losses: Losses) -> None:
        if losses.n_losses < self.n_byzantine + 3:
            raise ValueError(
                f"`n_byzantine` is {self.n_byzantine}, for which Krum needs {self.n_byzantine + 3} losses or more, but "
                f"there are {losses.n_losses}."
            )
        if losses.n_losses < self.n_selected:
            raise ValueError(f"`n_selected` is {self.n_selected}, but there are {losses.n_losses} losses.")

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        n_nearest = len(gramian) - self.n_byzantine - 2
        if n_nearest < 1:
            return torch.full_like(gramian.diagonal(), 1 / len(gramian))
        squares = gramian.diagonal() + gramian.diagonal()[:, None] - (gramian + gramian.T)
        nearest = squares.sort(1).values[:, 1 : 1 + n_nearest]  # without its own, 0
        selected = nearest.sum(1).argsort(stable=True)[: self.n_selected]
        weights = torch.zeros_like(gramian.diagonal())
        weights[selected] = 1 / len(selected)
        return weights
