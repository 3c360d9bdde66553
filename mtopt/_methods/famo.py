"""Fast adaptive multitask optimization: weights that even out how fast the losses' logarithms fall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._checks import check_not_negative, check_number, check_positive
from .._ranks import ranks_of
from .._transform import Losses, LossesLike, LossWeighting
from .settings import Setting, by_loss, check_setting
from .state import PerLoss, Trained

_EPS = 1e-8


class FAMO(LossWeighting):
    r"""Fast Adaptive Multitask Optimization: a loss that fell less, relative to itself, counts more in later steps.

    $$L = c \sum_i p_i \log D_i, \qquad w_i = c \frac{p_i}{D_i}, \qquad c = \Big(\sum_i \frac{p_i}{D_i}\Big)^{-1}$$

    where $D_i = L_i - b_i + 10^{-8}$ and $p = \mathrm{softmax}(\xi)$ over the losses present; $c$ is taken as constant,
    and the weights sum to 1. After each step, give `observe` the losses of the same batch again, which costs one more
    forward pass. The $\xi_i$ then take a step of Adam down $\sum_i p_i (\log D_i^{\text{before}} - \log
    D_i^{\text{after}})$. Without it they stay where they are, and the weights only even out the losses' magnitudes.

    Args:
        lr: Step size of the $\xi_i$.
        decay: L2 penalty that pulls them to 0. The default is the paper's; the official code has 1e-5 or 1e-2.
        min_losses: Lower bound $b_i$ of a loss: one number, one per loss, or a dict by loss name (0 for those not
            named).

    Raises:
        ValueError: If `lr` is not above 0, `decay` is below 0, or a bound is not finite.

    Example:
        >>> from mtopt import MultiLossOptimizer
        >>> method, w = FAMO(), torch.ones(3, requires_grad=True)
        >>> optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), method)
        >>> optimizer.step([w.square().mean(), w.exp().mean()])
        >>> with torch.no_grad():
        ...     method.observe([w.square().mean(), w.exp().mean()])

    Source:
        Algorithms 1 and 2 of Liu, Feng, Stone, Liu 2023, [arXiv:2306.03792](https://arxiv.org/abs/2306.03792).
    """

    def __init__(self, *, lr: float = 0.025, decay: float = 1e-3, min_losses: Setting = 0.0) -> None:
        self.lr = check_positive(lr, "lr")
        self.decay = check_not_negative(decay, "decay")
        self.min_losses = check_setting(min_losses, "min_losses", check_number)
        self.trained = Trained(0.0, self.lr, self.decay)
        self.before = PerLoss()  # logarithms that wait for `observe`
        self.latest: Losses | None = None  # the last step's losses, without their graph

    def check(self, losses: Losses) -> None:
        for position, above in enumerate(self._above(losses).tolist()):
            if above <= 0:
                raise ValueError(
                    f"`losses[{losses.label(position)}]` is {losses.values[position]:g}, but FAMO needs losses above "
                    f"their `min_losses`, {self.min_losses}. Lower that, or leave the loss out of this step."
                )

    def weights(self, losses: Losses) -> Tensor:
        above = self._above(losses)
        self.before.keep(losses, above.log())
        self.latest = replace(losses, scalars=None, scale=None)
        shares = self.trained.of(losses).softmax(0) / above
        return shares / shares.sum()

    def observe(self, losses: LossesLike) -> None:
        """Take the losses of the same batch after the step, and train the weights by how far each fell.

        A loss trains nothing if it is `None`, not finite, not above its bound, or was absent from the step.

        Args:
            losses: As in the step, unscaled. They need no graph.

        Raises:
            TypeError: If a loss is not a tensor.
            ValueError: If their number or their names differ from those of the step, or one is not a scalar.
            RuntimeError: If no step came before.
        """
        n_losses = len(self.before.numbers)
        if n_losses == 0 or (self.latest is None and ranks_of(None).size > 1):
            raise RuntimeError("`observe` compares with the losses of a step. Call it after one.")
        latest = Losses(tuple(range(n_losses)), n_losses, _names(losses)) if self.latest is None else self.latest
        after = self._means(_in_order(losses, latest), latest)
        fall = self.before.of(after) - self._above(after).log()
        finite = fall.isfinite().tolist()
        self.before.keep(after, torch.full_like(fall, math.nan))
        fell = [i for i in latest.indices if finite[i]]
        if fell:
            fall, after = fall[fell], after.only(fell)
            shares = self.trained.of(after).softmax(0)
            self.trained.descend(after, shares * (fall - (shares * fall).sum()))  # fall through softmax's Jacobian

    def _above(self, losses: Losses) -> Tensor:
        bounds = by_loss(self.min_losses, losses, "min_losses", 0.0)
        return losses.values.double() - torch.tensor(bounds, dtype=torch.float64, device=losses.device) + _EPS

    def _means(self, losses: list[Tensor | None], latest: Losses) -> Losses:
        """All losses, each the mean over the ranks that gave it; NaN where none did."""
        given = [i for i, loss in enumerate(losses) if loss is not None]
        values = torch.zeros(len(given), dtype=torch.float64, device=self.before.numbers.device)
        for i, loss in enumerate(loss for loss in losses if loss is not None):
            values[i] = loss.detach().reshape(())
        means = latest.ranks.mean(values, given, len(losses))
        return replace(latest, indices=tuple(range(len(losses))), scalars=tuple(means))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "latest": None}  # its ranks cannot be pickled


def _names(losses: LossesLike) -> tuple[str, ...] | None:
    return tuple(losses) if isinstance(losses, Mapping) else None


def _in_order(losses: LossesLike, latest: Losses) -> list[Tensor | None]:
    """The losses observed, in the order of those of the step."""
    names = _names(losses)
    if len(losses) != latest.n_losses or set(names or ()) != set(latest.names or ()):
        needed = f"{latest.n_losses} losses" if latest.names is None else list(latest.names)
        given = f"{len(losses)} losses" if names is None else list(names)
        raise ValueError(f"`losses` must be those of the step, {needed}, but they are {given}.")
    entries = [losses[name] for name in latest.names or ()] if isinstance(losses, Mapping) else list(losses)
    for i, loss in enumerate(entries):
        if loss is not None and not isinstance(loss, Tensor):
            raise TypeError(f"`losses[{i}]` must be a tensor, but it is {type(loss).__name__}.")
        if loss is not None and loss.numel() != 1:
            raise ValueError(f"`losses[{i}]` must be a scalar, but it has shape {tuple(loss.shape)}.")
    return entries
