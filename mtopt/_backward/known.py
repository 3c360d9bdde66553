"""What a look at the whole graph has shown, so that the next backward need not look at all of it. No gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .._graph.loss_graph import LossGraph
from .._torch import has_post_accumulate_hooks, variable_of

LOOKS = 2  # at the whole graph before one at its top may do
EVERY = 64  # backwards: so often the whole graph is looked at anew


@dataclass
class Known:
    """What is known of the graphs of one form: with the same losses, which end in the same operations.

    Attributes:
        shared: How many parameters several losses reach.
        exclusive: How many one alone reaches.
        looks: How often the whole graph was looked at.
        since: Backwards since the last look.
        plain: Whether the graph can be walked from the top, and all that a backward changes is in the optimizer's
            parameters, so that it can be taken back.
    """

    shared: int = 0
    exclusive: int = 0
    looks: int = 0
    since: int = 0
    plain: bool = False

    def suffices(self, parameters: Sequence[Tensor]) -> bool:
        """Whether nothing more is needed of the whole graph: what this backward does can be taken back."""
        self.since += 1
        return (
            self.plain
            and self.looks >= LOOKS
            and self.since < EVERY
            and all(parameter.grad is None for parameter in parameters)
        )

    def learn(self, graph: LossGraph, parameters: Sequence[Tensor]) -> None:
        """Take what the whole graph shows."""
        leaves = list(graph.leaves())
        self.shared = sum(map(graph.shared, leaves))
        self.exclusive = len(leaves) - self.shared
        changed = [variable_of(leaf) for leaf in leaves]
        own = set(map(id, parameters))
        can_be_taken_back = all(id(leaf) in own and not has_post_accumulate_hooks(leaf) for leaf in changed)
        self.plain = graph.ordered and can_be_taken_back
        self.looks += 1
        self.since = 0
