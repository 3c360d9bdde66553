"""Numbers that a transform keeps from step to step, one for each loss, and trains. Decides nothing."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from .._transform import Losses


class PerLoss:
    """One number for each loss of the user's list. That of an absent loss stays as it is.

    Args:
        start: What each begins with; NaN is "none yet".
    """

    def __init__(self, start: float = math.nan) -> None:
        self.start = start
        self.numbers = torch.empty(0, dtype=torch.float64)

    def of(self, losses: Losses) -> Tensor:
        """The numbers of the losses present, shape `(T,)`, float64, on the device of their values.

        Raises:
            ValueError: If there were more or fewer losses before.
        """
        return self._on_device(losses)[list(losses.indices)]

    def keep(self, losses: Losses, numbers: Tensor) -> None:
        """Replace the numbers of the losses present."""
        self._on_device(losses)[list(losses.indices)] = numbers.to(self.numbers)

    def _on_device(self, losses: Losses) -> Tensor:
        if len(self.numbers) == 0:
            self.numbers = torch.full((losses.n_losses,), self.start, dtype=torch.float64)
        _check_number(losses, len(self.numbers))
        self.numbers = self.numbers.to(losses.device)
        return self.numbers

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": self.numbers.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.numbers = torch.tensor(state_dict["numbers"], dtype=torch.float64)


class PerPair:
    """One number for each pair of losses, 0 at first."""

    def __init__(self) -> None:
        self.numbers = torch.zeros(0, 0, dtype=torch.float64)

    def of(self, losses: Losses) -> Tensor:
        """The numbers of the losses present, shape `(T, T)`, float64, on the CPU.

        Raises:
            ValueError: If there were more or fewer losses before.
        """
        if len(self.numbers) == 0:
            self.numbers = torch.zeros(losses.n_losses, losses.n_losses, dtype=torch.float64)
        _check_number(losses, len(self.numbers))
        return self.numbers[losses.indices, :][:, losses.indices]

    def keep(self, losses: Losses, numbers: Tensor) -> None:
        """Replace the numbers of the losses present."""
        index = torch.tensor(losses.indices)
        self.numbers[index[:, None], index] = numbers

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": self.numbers.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rows = state_dict["numbers"]
        self.numbers = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(rows))


def _check_number(losses: Losses, before: int) -> None:
    if before != losses.n_losses:
        raise ValueError(
            f"`losses` has {losses.n_losses} entries, but {before} in the steps before. Give None for a loss that is "
            f"absent."
        )


class EpochMeans:
    """The mean of each loss in the last two epochs that it was present in; NaN is "none yet"."""

    def __init__(self) -> None:
        self.ended = 0  # epochs
        self.sums, self.counts = PerLoss(0.0), PerLoss(0.0)
        self.last, self.earlier = PerLoss(), PerLoss()

    def add(self, losses: Losses) -> None:
        """One step of the running epoch."""
        self.sums.keep(losses, self.sums.of(losses) + losses.values.double())
        self.counts.keep(losses, self.counts.of(losses) + 1)

    def end(self) -> None:
        """The running epoch is over."""
        self.ended += 1
        counts = self.counts.numbers.tolist()
        seen = Losses(tuple(i for i, count in enumerate(counts) if count > 0), len(counts))
        if len(seen) == 0:
            return
        means = self.sums.of(seen) / self.counts.of(seen)
        self.earlier.keep(seen, self.last.of(seen))
        self.last.keep(seen, means)
        self.sums.keep(seen, torch.zeros_like(means))
        self.counts.keep(seen, torch.zeros_like(means))

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("sums", "counts", "last", "earlier")}
        return {"ended": self.ended, **parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ended = int(state_dict["ended"])
        for name in ("sums", "counts", "last", "earlier"):
            getattr(self, name).load_state_dict(state_dict[name])


class Trained:
    """One number for each loss, trained by Adam, apart from the model's optimizer: its weight decay is not for them.

    Args:
        start: What each begins with.
        lr: Step size.
        decay: L2 penalty.

    Source:
        Algorithm 1 of Kingma, Ba 2015, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980); the same as
        `torch.optim.Adam` with a parameter per loss.
    """

    def __init__(self, start: float, lr: float, decay: float = 0.0) -> None:
        self.lr = lr
        self.decay = decay
        self.numbers = PerLoss(start)
        self.steps, self.mean, self.square = PerLoss(0.0), PerLoss(0.0), PerLoss(0.0)

    def of(self, losses: Losses) -> Tensor:
        """The numbers of the losses present, shape `(T,)`, float64."""
        return self.numbers.of(losses)

    def descend(self, losses: Losses, gradient: Tensor) -> None:
        """One step of Adam, for the losses present."""
        numbers, steps = self.of(losses), self.steps.of(losses) + 1
        gradient = gradient.to(numbers) + self.decay * numbers
        mean = self.mean.of(losses).lerp(gradient, 1 - 0.9)
        square = self.square.of(losses) * 0.999 + (1 - 0.999) * gradient.square()
        direction = mean / (1 - 0.9**steps) / ((square / (1 - 0.999**steps)).sqrt() + 1e-8)
        for kept, new in (
            (self.numbers, numbers - self.lr * direction),
            (self.steps, steps),
            (self.mean, mean),
            (self.square, square),
        ):
            kept.keep(losses, new)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("numbers", "steps", "mean", "square")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in ("numbers", "steps", "mean", "square"):
            getattr(self, name).load_state_dict(state_dict[name])


class BelowZero:
    """Tells once that a loss is at or below 0, where a weight that is trained along never stops growing."""

    def __init__(self) -> None:
        self.told = False

    def tell(self, losses: Losses, method: str) -> None:
        for position, value in enumerate(() if self.told else losses.values.tolist()):
            if value <= 0:
                self.told = True
                warnings.warn(
                    f"`losses[{losses.label(position)}]` is {value:g}. At losses of 0 or below, {method}'s weight "
                    f"grows in every step, without bound. If it stays there, add a constant that keeps it above 0, or "
                    f"take a method that does not read the losses, such as ConstantWeights.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return
