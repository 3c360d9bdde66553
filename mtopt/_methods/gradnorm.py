"""GradNorm: weights that make the gradients' norms follow the losses' training rates."""

from __future__ import annotations

from torch import Tensor

from .._checks import check_number, check_positive
from .._transform import GramianTransform, Losses
from .settings import check_values_positive
from .state import PerLoss, Trained

SMALLEST = 1e-6  # of a weight: one below 0 would climb


class GradNorm(GramianTransform):
    r"""Gradient normalization: train the weights so that losses that have fallen less get longer gradients.

    With $\tilde L_i = L_i / L_i(0)$ and $r_i = \tilde L_i / \bar{\tilde L}$ the weights take one step of Adam on

    $$\sum_i \Big| \|w_i g_i\| - \overline{\|w g\|} \; r_i^{\alpha} \Big|$$

    in which $\overline{\|w g\|} \, r_i^\alpha$ counts as a constant. They are then scaled to sum to T. A step uses the
    weights of the step before. They act on the gradients at the site only: a part of the model that belongs to one loss
    gets that loss's own gradient. Where losses meet at several activations, each of them moves the weights.

    Args:
        alpha: Strength $\alpha$ of the pull towards equal training rates.
        lr: Step size of the weights.

    Raises:
        ValueError: If `lr` is not above 0. In a step, if a loss is not above 0.

    Example:
        >>> GradNorm(alpha=0.5)
        GradNorm(alpha=0.5)

    Source:
        Eq. (1) and (2) and algorithm 1 of Chen, Badrinarayanan, Lee, Rabinovich 2018,
        [arXiv:1711.02257](https://arxiv.org/abs/1711.02257).
    """

    def __init__(self, *, alpha: float = 1.5, lr: float = 0.025) -> None:
        self.alpha = check_number(alpha, "alpha")
        self.lr = check_positive(lr, "lr")
        self.first_losses = PerLoss()
        self.trained = Trained(1.0, self.lr)

    def check(self, losses: Losses) -> None:
        check_values_positive(losses, "GradNorm")

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        values, norms = losses.values.to(gramian), gramian.diagonal().sqrt()
        first = self.first_losses.of(losses).to(gramian)
        first = first.where(first.isfinite(), values)
        self.first_losses.keep(losses, first)
        weights = self.trained.of(losses).to(gramian)
        progress = values / first
        rates = progress / progress.mean()
        targets = (weights * norms).mean() * rates**self.alpha
        self.trained.descend(losses, norms * (weights * norms - targets).sign())
        trained = self.trained.of(losses).clamp_min(SMALLEST)
        self.trained.numbers.keep(losses, trained * len(losses) / trained.sum())
        return weights
