"""A combination that is looked at: what the rows were, and how much of each was left. It changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from .._transform import GramianTransform, Losses, RowTransform, Site
from .block import Metric, mass
from .combination import Shares, Traced, masses_after, without_autocast
from .conflict import Conflict
from .harm import Harm


class Watch(Protocol):
    """Who looks."""

    due: bool
    """Whether this step is looked at."""

    def begin(self) -> None:
        """A backward pass begins."""

    def weigh(self, losses: Losses, weights: Tensor | None) -> None:
        """The losses of the step, and the product of the weightings."""

    def see(self, conflict: Conflict, kept: dict[str, float]) -> None:
        """The rows at the sites of one decision, and the share of each loss that was kept, where it is known."""

    def follow(self, harm: Harm) -> None:
        """The gradients of the parameters, which the next step will move."""

    def end(self) -> None:
        """The backward pass is done."""

    def stepping(self) -> AbstractContextManager[None]:
        """While a step is taken."""


class Watched:
    """Hands everything on to a combination, and looks at it on the way."""

    def __init__(
        self,
        inner: Traced,
        transforms: Sequence[GramianTransform | RowTransform],
        losses: Losses,
        sites: Sequence[Site],
        watch: Watch,
        metric: Metric | None = None,
    ) -> None:
        self.metric = metric
        self.inner = inner
        self.transforms = transforms
        self.losses = losses
        self.sites = sites
        self.watch = watch
        self.rows: list[list[Tensor]] = [[] for _ in sites]
        self.positions: list[list[int]] = [[] for _ in sites]

    def add(self, site: int, position: int, row: Tensor) -> None:
        self.rows[site].append(row)
        self.positions[site].append(position)
        self.inner.add(site, position, row)

    def result(self) -> list[Tensor | None]:
        several = [i for i, rows in enumerate(self.rows) if len(rows) > 1]
        if several:
            with without_autocast(self.rows[several[0]][0].device.type):
                self._look(several)
        return self.inner.result()

    def shares(self, site: int) -> Shares:
        return self.inner.shares(site)

    def _look(self, several: Sequence[int]) -> None:
        conflict = Conflict([self.losses.label(i) for i in range(len(self.losses))])
        for i in several:
            conflict.add(self.rows[i], self.positions[i])
        if self.losses.scale is not None:
            conflict.gramian /= self.losses.scale**2
        copies = copy.deepcopy(list(self.transforms))  # which draw the random numbers that are drawn afterwards
        self.watch.see(conflict, self._kept(copies, several))

    def _kept(self, copies: Sequence[GramianTransform | RowTransform], several: Sequence[int]) -> dict[str, float]:
        """How much of each loss's gradient is left, by the sum of its absolute values."""
        if any(self.sites[i].ranks.size > 1 and t.sums_over_ranks for i in several for t in copies):
            return {}  # it takes all ranks to know, and they may not be looking
        before, after = [0.0] * len(self.losses), [0.0] * len(self.losses)
        for i in several:
            for position, row in zip(self.positions[i], self.rows[i], strict=True):
                before[position] += mass(row)
        blocks = [(self.rows[i], self.losses.at(self.positions[i]), self.sites[i], i) for i in several]
        for masses in masses_after(copies, blocks, self.metric):
            for index, left in masses.items():
                if index in self.losses.indices:
                    after[self.losses.indices.index(index)] += left
        return {self.losses.label(i): after[i] / before[i] for i in range(len(self.losses)) if before[i] > 0}
