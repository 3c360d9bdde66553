"""Running averages of what each loss sends to each parameter. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._checks import check_count
from ._dtypes import widen
from ._sharded import like, local

Key = tuple[int, ...]
"""Indices of losses: one, or those of a product."""


@dataclass(frozen=True)
class Average:
    """A running average, corrected for its start: the weights of all that went into it add up to 1.

    Attributes:
        steps: How many numbers went into each.
        mean: Their average, float32 or wider.
    """

    steps: int
    mean: Tensor


def moved(before: Average | None, new: Tensor, beta: float) -> Average:
    """The average with a further number in it, which has weight 1 - beta: Adam's average after its correction."""
    if before is None:
        return Average(1, widen(new).clone())
    steps, weight = _next(before, beta)
    return Average(steps, torch.lerp(before.mean, new.to(before.mean), weight))


def product_added(before: Average | None, one: Tensor, other: Tensor, beta: float) -> Average:
    """The same with a product, in the memory of the average before."""
    if before is None:
        return Average(1, one * other)
    steps, weight = _next(before, beta)
    return Average(steps, before.mean.mul_(1 - weight).addcmul_(one, other, value=weight))


def _next(before: Average, beta: float) -> tuple[int, float]:
    steps = before.steps + 1
    return steps, (1 - beta) / (1 - beta**steps)


class History:
    """Averages by the parameter's number in the optimizer, and by the losses that they are of."""

    def __init__(self) -> None:
        self.averages: dict[int, dict[Key, Average]] = {}
        self.parameters: dict[int, Tensor] = {}  # those that averages are of
        self.loaded = False  # and not brought to the parameters yet

    def of(self, number: int) -> Mapping[Key, Average]:
        """What is kept for a parameter."""
        return self.averages.get(number, {})

    def keep(self, number: int, parameter: Tensor, new: Mapping[Key, Average]) -> None:
        self.averages[number] = {**self.of(number), **new}
        self.parameters[number] = parameter

    def fit(self, parameters: Iterable[Tensor]) -> None:
        """Bring loaded averages to where the parameters are.

        Raises:
            ValueError: If they are of other shapes, or there are fewer parameters.
        """
        by_number = dict(enumerate(parameters))
        placed: dict[int, dict[Key, Average]] = {}
        for number, averages in self.averages.items():
            if number not in by_number:
                raise ValueError(f"it has averages of parameter {number}, but there are {len(by_number)} parameters")
            like = local(by_number[number])
            for key, average in averages.items():
                mean = local(average.mean)
                if mean.shape != like.shape:
                    raise ValueError(
                        f"parameter {number} has shape {tuple(like.shape)}, but its averages {tuple(mean.shape)}"
                    )
                placed.setdefault(number, {})[key] = Average(average.steps, mean.to(like.device))
        self.averages, self.loaded = placed, False
        self.parameters = {number: by_number[number] for number in placed}

    def state_dict(self) -> dict[str, Any]:
        kept: dict[int, dict[Key, dict[str, Any]]] = {}
        for number, averages in self.averages.items():
            for key, average in averages.items():
                mean = like(self.parameters.get(number, average.mean), average.mean)
                kept.setdefault(number, {})[key] = {"steps": average.steps, "mean": mean}
        return {"averages": kept}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.averages = {
            number: {
                key: Average(check_count(a["steps"], "steps"), local(a["mean"]).detach().clone())
                for key, a in of.items()
            }
            for number, of in state_dict["averages"].items()
        }
        self.loaded = True
