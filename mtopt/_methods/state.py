"""Numbers that a transform keeps, and may train, from step to step, one for each loss. Decides nothing."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from .._checks import check_count
from .._transform import Losses, check_as_many


class PerLoss:
    """One number for each loss of the user's list. That of an absent loss stays as it is.

    Args:
        start: The first value of each; NaN is "none yet".
        on_cpu: Whether they stay on the CPU, where Gramians are; else they are where the losses are.
    """

    def __init__(self, start: float = math.nan, *, on_cpu: bool = False) -> None:
        self.start = start
        self.on_cpu = on_cpu
        self.numbers = torch.empty(0, dtype=torch.float64, device="cpu")

    @property
    def n_losses(self) -> int:
        """How many losses there were; 0 before the first step."""
        return len(self.numbers)

    def of(self, losses: Losses) -> Tensor:
        """The numbers of the losses present, shape `(T,)`, float64, on the device of their values or on the CPU.

        Raises:
            ValueError: If there were more or fewer losses before.
        """
        numbers = self._on_device(losses)
        return numbers.clone() if len(losses) == len(numbers) else numbers[list(losses.indices)]

    def listed(self, losses: Losses, *, all_losses: bool) -> list[float]:
        """The same as plain numbers, or those of all losses, whichever are present."""
        numbers: list[float] = self.numbers.tolist()
        return numbers if all_losses else [numbers[index] for index in losses.indices]

    def keep(self, losses: Losses, numbers: Tensor) -> None:
        """Replace the numbers of the losses present."""
        self._on_device(losses)[list(losses.indices)] = numbers.to(self.numbers)

    def _on_device(self, losses: Losses) -> Tensor:
        if self.n_losses == 0:
            self.numbers = torch.full((losses.n_losses,), self.start, dtype=torch.float64, device="cpu")
        check_as_many(losses, self.n_losses)
        if not self.on_cpu:
            self.numbers = self.numbers.to(losses.device)
        return self.numbers

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": self.numbers.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.numbers = _tensor(state_dict["numbers"])
        if self.numbers.ndim != 1:
            raise ValueError(f"`numbers` must be a list of numbers, but it has shape {tuple(self.numbers.shape)}")


class Calls(PerLoss):
    """How often each loss was there, for a method that moves its number every k-th time, from the first on.

    Args:
        period: k.
    """

    def __init__(self, period: int) -> None:
        super().__init__(0.0, on_cpu=True)
        self.period = period

    def next(self, losses: Losses) -> Tensor:
        """How often before; counts this time."""
        before = self.of(losses)
        self.keep(losses, before + 1)
        return before

    def none_is_due(self, losses: Losses, *, several_ranks: bool) -> bool:
        """Whether no number moves now; on several ranks, none of any loss, as each may have others."""
        if self.period == 1 or self.n_losses == 0:
            return False
        return all(before % self.period for before in self.listed(losses, all_losses=several_ranks))


class Count:
    """How often something was done."""

    def __init__(self) -> None:
        self.number = 0

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.number = check_count(state_dict["number"], "number", 0)


class PerPair:
    """One number for each pair of losses, 0 at first."""

    def __init__(self) -> None:
        self.numbers = torch.zeros(0, 0, dtype=torch.float64, device="cpu")

    @property
    def n_losses(self) -> int:
        return len(self.numbers)

    def of(self, losses: Losses) -> Tensor:
        """The numbers of the losses present, shape `(T, T)`, float64, on the CPU.

        Raises:
            ValueError: If there were more or fewer losses before.
        """
        if self.n_losses == 0:
            self.numbers = torch.zeros(losses.n_losses, losses.n_losses, dtype=torch.float64, device="cpu")
        check_as_many(losses, self.n_losses)
        return self.numbers[losses.indices, :][:, losses.indices]

    def keep(self, losses: Losses, numbers: Tensor) -> None:
        """Replace the numbers of the losses present."""
        index = torch.tensor(losses.indices)
        self.numbers[index[:, None], index] = numbers

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": self.numbers.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        numbers = _tensor(state_dict["numbers"])
        n = len(numbers)
        if numbers.shape != (n, n) and n > 0:
            raise ValueError(
                f"`numbers` must be lists of as many numbers, but they are of shape {tuple(numbers.shape)}"
            )
        self.numbers = numbers.reshape(n, n)


def _tensor(numbers: object) -> Tensor:
    try:
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")
    except Exception as error:
        raise ValueError(f"`numbers` must be numbers, but they are {numbers!r}") from error


class Together:
    """Several numbers for each loss that form one part of a transform's state."""

    def parts(self) -> dict[str, PerLoss]:
        return {name: part for name, part in vars(self).items() if isinstance(part, PerLoss)}

    @property
    def n_losses(self) -> int:
        return max(part.n_losses for part in self.parts().values())

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        parts = self.parts()
        for name, part in parts.items():
            part.load_state_dict(state_dict[name])
        if len({part.n_losses for part in parts.values()} - {0}) > 1:
            raise ValueError(f"{', '.join(parts)} are not of as many losses")


class EpochMeans(Together):
    """The mean of each loss in the last two epochs that it was present in; NaN is "none yet"."""

    def __init__(self) -> None:
        self.ended = 0  # epochs
        self.sums, self.counts = PerLoss(0.0), PerLoss(0.0)
        self.last, self.earlier = PerLoss(), PerLoss()

    def add(self, losses: Losses) -> None:
        """Add one step to the running epoch."""
        self.sums.keep(losses, self.sums.of(losses) + losses.values.double())
        self.counts.keep(losses, self.counts.of(losses) + 1)

    def end(self) -> None:
        """End the running epoch."""
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
        return {"ended": self.ended, **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ended = check_count(state_dict["ended"], "ended", 0)
        super().load_state_dict(state_dict)


class Trained(Together):
    """One number for each loss, trained by an Adam of its own: the model's optimizer would apply weight decay.

    Args:
        start: The first value of each.
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


class BelowZero:
    """Warns once that a loss is at or below 0, where a trained weight never stops growing."""

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
