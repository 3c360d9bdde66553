"""One backward pass with weights that an earlier step has chosen. Takes no rows of single losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._graph.loss_graph import Meeting
from .._graph.sites import beside_shared
from .._graph.taking import rows_taken
from .._methods.holding import Holding
from .._torch import wrappers_silent
from .averages import Reached, mean_of_sums
from .backward import Backward
from .dot_grad import accumulate
from .explanation import NEAR_PLAIN, Explanation
from .shards import shards_of
from .taken_rows import reached_on_ranks

WEIGHTED = "one ordinary backward pass of the weighted sum"


def combine_weighted(backward: Backward, holding: Holding, *, all_count: bool) -> Explanation | None:
    """The weighted sum, where weights hold in this step; else `None`, and nothing was done.

    Args:
        backward: The step.
        holding: Which keeps them.
        all_count: Whether the parameters that one loss alone reaches are weighted, too.
    """
    if not holding.holds(backward.losses, several_ranks=backward.ranks.size > 1):
        return None
    if not backward.can_be_taken_back:
        backward.look_at_all()
    own = not all_count and _has_heads(backward)
    if own:
        backward.look_at_all()
        if backward.graph.states is not None:  # losses part again further down
            return None
    meetings = _above_shared(backward) if own else []
    # Averaged here, as rows are: a wrapper may put it off (`no_sync`), and there may be none.
    averages = backward.ranks.size > 1 and not shards_of(backward.parameters)
    reached = reached_on_ranks(backward) if averages else None
    if reached is None:
        backward.agree()
    starts = backward.starts()
    of_all = dict(zip(backward.agreed.indices, holding.held(backward.agreed).tolist(), strict=True))
    weights = [of_all[index] for index in backward.losses.indices]
    for position in {position for meeting in meetings for position in meeting.roots} if own else range(len(starts)):
        starts[position] = starts[position] * weights[position]
    handlers = [(sums.take, sums.finish) for sums in (_Weighted(weights) for _ in meetings)]
    with rows_taken(meetings, handlers):
        if reached is None:
            backward.run(starts)
        else:
            _add_means(backward, starts, reached)
    if backward.known.explained is None or backward.known.of != WEIGHTED:
        backward.known.explained = backward.explanation(WEIGHTED, f"{holding!r}: weights of before hold", NEAR_PLAIN)
        backward.known.of = WEIGHTED
    return backward.known.explained


def _add_means(backward: Backward, starts: Sequence[Tensor], reached: Reached) -> None:
    with wrappers_silent(backward.graph.sinks):
        means = mean_of_sums(backward, starts, reached)
    with torch.no_grad():
        for target, mean in zip(reached.targets, means, strict=True):
            if mean is not None:
                accumulate(target, mean, own=False)


def _has_heads(backward: Backward) -> bool:
    """Whether one loss alone reaches a parameter that does not count: there it has its own gradient."""
    known = backward.known
    if known.exclusive > 0 and known.heads is None:
        backward.look_at_all()
        beside = beside_shared(backward.graph, backward.is_parameter)
        known.heads = any(not backward.graph.shared(leaf) and leaf not in beside for leaf in backward.graph.leaves())
    return known.exclusive > 0 and bool(known.heads)


def _above_shared(backward: Backward) -> list[Meeting]:
    """Where gradients of single losses come to what is shared, or to a parameter that counts as it stands beside such a
    one: above, each loss has its own gradient."""
    graph = backward.graph
    beside = graph.meetings_at([(leaf, 0) for leaf in beside_shared(graph, backward.is_parameter)])
    return [*graph.frontier(), *(meeting for meeting in beside.values() if len(meeting.positions) == 1)]


class _Weighted:
    """Adds up rows with known weights."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = weights
        self.total: Tensor | None = None

    def take(self, position: int, row: Tensor) -> None:
        weighted = row * self.weights[position]
        self.total = weighted if self.total is None else self.total.add_(weighted)

    def finish(self) -> Tensor | None:
        return self.total
