"""Smooth Tchebycheff scalarization: a smooth maximum of the losses' logarithms."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_count, check_not_negative, check_positive
from .._transform import Losses, LossWeighting
from .settings import Setting, by_loss, check_setting, check_values_positive
from .state import EpochMeans


class STCH(LossWeighting):
    r"""Smooth Tchebycheff scalarization: mostly the loss that is worst, relative to its mean at the end of a warm-up.

    $$L = T \mu \log \sum_i \exp \frac{\lambda_i (\log L_i - \log z_i)}{\mu}, \qquad
    w_i = T \, \mathrm{softmax}_i\Big(\frac{\lambda (\log L - \log z)}{\mu}\Big) \frac{\lambda_i}{L_i}$$

    for the $T$ losses present. Every loss must be above 0. During the warm-up, $L = \sum_i \log L_i$ and
    $w_i = 1 / L_i$. Call `epoch_end()` after each epoch: without it the warm-up never ends. The nadir $z_i$ is the mean
    of loss $i$ in the last epoch of the warm-up that it was present in, or, if there was none, its first value after
    the warm-up.

    Args:
        mu: Smoothing. The smaller it is, the closer the result is to the maximum.
        warmup_epochs: Number of warm-up epochs. The authors' code counts from 0: its 4 is 5 here.
        preference: $\lambda_i \ge 0$ of a loss: one number, one per loss, or a dict by loss name (1 for those not
            named). The authors' code has none, which is the same as 1.

    Raises:
        TypeError: If `warmup_epochs` is not a whole number.
        ValueError: If `mu` is not above 0, `warmup_epochs` is below 1, or a `preference` is below 0.

    Example:
        >>> STCH(warmup_epochs=1, preference={"depth": 0.5})
        STCH(warmup_epochs=1, preference={'depth': 0.5})

    Source:
        Lin et al. 2024, [arXiv:2402.19078](https://arxiv.org/abs/2402.19078), on logarithms and with a warm-up as in
        its [code](https://github.com/Xi-L/STCH/tree/main/STCH_MTL).
    """

    def __init__(self, *, mu: float = 1.0, warmup_epochs: int = 5, preference: Setting = 1.0) -> None:
        self.mu = check_positive(mu, "mu")
        self.warmup_epochs = check_count(warmup_epochs, "warmup_epochs")
        self.preference = check_setting(preference, "preference", check_not_negative)
        self.epochs = EpochMeans()

    def check(self, losses: Losses) -> None:
        by_loss(self.preference, losses, "preference", 1.0)
        check_values_positive(losses, "STCH")

    def weights(self, losses: Losses) -> Tensor:
        values = losses.values.double()
        if self.epochs.ended < self.warmup_epochs:
            self.epochs.add(losses)
            return 1 / values
        nadir = self.epochs.last.of(losses)
        nadir = torch.where(nadir.isnan(), values, nadir)
        self.epochs.last.keep(losses, nadir)
        preference = by_loss(self.preference, losses, "preference", 1.0)
        preferred = torch.tensor(preference, dtype=torch.float64, device=values.device)
        shares = (preferred * (values.log() - nadir.log()) / self.mu).softmax(0)
        return len(losses) * shares * preferred / values

    def epoch_end(self) -> None:
        """End an epoch. The first `warmup_epochs` of them are the warm-up."""
        if self.epochs.ended < self.warmup_epochs:
            self.epochs.end()
