"""What a method of weights has if they may hold in steps that see no gradients. Decides nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from .._transform import Losses


class Holding(ABC):
    """Beside `weights`: whether those of before hold in a step, and which they are."""

    @abstractmethod
    def holds(self, losses: Losses, *, several_ranks: bool = False) -> bool:
        """Whether the weights of before hold in this step. Several ranks, which may have different losses, must all
        find the same."""

    @abstractmethod
    def held(self, losses: Losses) -> Tensor:
        """These weights, shape `(T,)`. It moves the state as `weights` would: called once, after all checks."""
