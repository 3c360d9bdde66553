"""What an optimizer's first step tells: one loss alone, or a state that left the transforms out. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._combine.pipeline import Pipeline
from .._torch import names_parameters, tree_leaves
from .._transform import Losses
from .telling import Told

_ALONE = (
    "One loss is alone, so nothing is combined. Give the losses, not their sum, e.g. `step([seg_loss, depth_loss])`."
)
_LEFT_OUT = (
    "The optimizer's state was loaded without that of the transforms, which start anew: torch.distributed.checkpoint "
    "keeps only what it knows of an optimizer. Save each `transform.state_dict()` beside it, and load that, too: see "
    "Save and resume in docs/recipes.md. If the checkpoint was made without mtopt, nothing is lost."
)


class FirstStep:
    """What one optimizer must remember until its first step: the state that its transforms began with."""

    def __init__(self, pipeline: Pipeline, told: Told) -> None:
        self.pipeline = pipeline
        self.told = told
        self.new = self._state()
        self.left_out = False  # from what was loaded last
        self.stepped = False

    def loaded(self, state_dict: Mapping[str, Any], *, own: bool) -> None:
        """A state was loaded, with one of the transforms of its own or without."""
        self.left_out = not own and names_parameters(state_dict)

    def tell(self, losses: Losses, n_ranks: int) -> None:
        """A step begins."""
        if self.left_out and self._starts_anew():
            self.told.once(_LEFT_OUT)
        if not self.stepped and self.pipeline.gradient_transforms and losses.n_losses == n_ranks == 1:
            self.told.once(_ALONE)
        self.left_out, self.stepped = False, True

    def _starts_anew(self) -> bool:
        """Whether there is a state at all, and it is as it was at first."""
        small, histories = bool(self.new and any(self.new)), self.pipeline.order.histories
        changed = (small and not _same(self.new, self._state())) or any(history.averages for history in histories)
        return (small or bool(histories)) and not changed

    def _state(self) -> list[dict[str, Any]] | None:
        """A copy of it; `None` where a transform has none before its first step."""
        try:
            return self.pipeline.copied_state()
        except Exception:
            return None


def _same(one: object, other: object) -> bool:
    ones, others = tree_leaves(one), tree_leaves(other)
    return len(ones) == len(others) and all(map(_equal, ones, others))


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return bool(one == other)
