"""The rows at parameters, loss by loss; and how they are taken again, where all is as in an earlier step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .._graph.passes import Row
from .._graph.recall import RecalledRows, can_be_recalled
from .._graph.rows import plan_of, whole_passes
from .._torch import has_hooks, is_python_function, variable_of
from .._transform import Site
from .backward import Backward
from .fan_out import FAN_OUT
from .known import RowsAgain

TRIES = 2  # to keep how rows were taken


@dataclass
class RowsOfLosses:
    """The rows of a backward.

    Attributes:
        targets: The tensors whose `.grad` is added to.
        owners: The losses that may reach each, by position in `backward.agreed`; none for what is no parameter, whose
            rows are only added up.
        sites: What a transform is told of each.
        stream: Each loss's gradient for each target, loss by loss.
        how: In words.
        alone: Whether each target counts where one loss alone reaches it.
        opaque: Whether rows of zeros are none: the graph hides who reaches what.
    """

    targets: Sequence[Tensor]
    owners: Sequence[Sequence[int]]
    sites: Sequence[Site]
    stream: Iterable[tuple[int, Row]]
    how: str
    alone: Sequence[bool] = ()
    opaque: bool = False


def rows_again(backward: Backward) -> RowsOfLosses | None:
    """Rows as in an earlier step, if all is as it was then."""
    again = backward.known.rows
    edges = again.graph.targets_in(backward.origins) if again and backward.can_be_taken_back else None
    if again is None or edges is None:
        return None
    targets = [variable_of(leaf) for leaf, _ in edges]
    if [backward.number.get(id(target)) for target in targets] != again.numbers or any(map(has_hooks, targets)):
        return None
    reached, apart = again.graph.reached, again.graph.apart
    stream = whole_passes(backward.origins, backward.starts(), edges, reached, apart=apart, retain_graph=False)
    return RowsOfLosses(targets, again.owners, [Site(backward.agreed)] * len(targets), stream, again.how, again.alone)


def remember(backward: Backward, rows: RowsOfLosses) -> None:
    """Keep how the rows were taken, if the nodes' kinds, and how they hang together, tell all of it."""
    if backward.known.tries < TRIES:
        backward.known.rows = _kept(backward, rows)
        backward.known.tries += backward.known.rows is None


def _kept(backward: Backward, rows: RowsOfLosses) -> RowsAgain | None:
    graph = backward.graph
    leaves = {id(variable_of(leaf)): (leaf, 0) for leaf in graph.leaves()}
    if rows.opaque or graph.states is not None or graph.sinks or FAN_OUT.__name__ in graph.kinds:
        return None
    if any(map(is_python_function, graph.edges)) or any(map(has_hooks, rows.targets)):
        return None
    edges = [leaves[id(target)] for target in rows.targets]
    plan = plan_of(graph, edges, backward.batching, retain_graph=False)
    if not plan.whole or not can_be_recalled(graph, backward.is_parameter):
        return None
    numbers = [backward.number.get(id(target)) for target in rows.targets]
    recalled = RecalledRows(graph, edges, apart=plan.apart)
    return RowsAgain(recalled, numbers, rows.owners, rows.alone, rows.how)
