"""The rows at parameters, loss by loss: from the graph, of all ranks, shard by shard, or as in an earlier step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from .._graph.alive import check_repeatable
from .._graph.passes import Row
from .._graph.recall import RecalledRows, can_be_recalled
from .._graph.rows import check_rows_below, plan_of, rows_below, rows_by_backward, run_again, whole_passes
from .._graph.supports import Edge
from .._torch import REENTRANT_CHECKPOINT, has_hooks, is_python_function, variable_of
from .._transform import Site
from .averages import Reached, averaged
from .backward import Backward
from .fan_out import FAN_OUT
from .injecting import tell_injected
from .known import RowsAgain
from .refusals import check_real
from .shards import Shard

TRIES = 2  # to keep how rows were taken


@dataclass
class RowsOfLosses:
    """The rows of a backward pass.

    Attributes:
        targets: The tensors whose `.grad` is added to.
        owners: The losses that may reach each, by position in `backward.agreed`; none for what is no parameter, whose
            rows are only added up.
        sites: What a transform is told of each.
        stream: Each loss's gradient for each target, loss by loss.
        how: In words.
        alone: Whether each target counts where one loss alone reaches it.
        opaque: Whether rows of zeros are none: the graph hides who reaches what.
        chosen: The identities of the tensors where rows are combined; `None`: of all. Elsewhere they are added up.
    """

    targets: Sequence[Tensor]
    owners: Sequence[Sequence[int]]
    sites: Sequence[Site]
    stream: Iterable[tuple[int, Row]]
    how: str
    alone: Sequence[bool] = ()
    opaque: bool = False
    chosen: Set[int] | None = None

    def choose(self, parameters: Sequence[Tensor]) -> None:
        """Combine rows at these alone.

        Raises:
            RuntimeError: If no two losses meet at one of them.
        """
        self.chosen = set(map(id, parameters))
        if not any(len(owners) > 1 and self.counts(i) for i, owners in enumerate(self.owners)):
            raise RuntimeError(
                "No two `losses` reach one of the parameters that `at` has, so there is nothing to combine. Give "
                'parameters that the losses share, or at="parameters" for all of these.'
            )

    def counts(self, target: int) -> bool:
        """Whether rows are combined at a target, by its number."""
        return self.chosen is None or id(self.targets[target]) in self.chosen


def numbers_of(row: Tensor) -> Tensor:
    """Those that are kept of it, if it is sparse."""
    return row if row.layout is torch.strided else row.coalesce().values()


def rows_of_losses(backward: Backward, shards: Sequence[Shard]) -> RowsOfLosses:
    """From the graph; of all ranks; shard by shard; or by whole backward passes."""
    if shards:
        return _rows_of_shards(backward, shards)
    if REENTRANT_CHECKPOINT in backward.graph.kinds:
        return _rows_by_backward(backward)
    return _rows_of_all_ranks(backward) if backward.ranks.size > 1 else _rows_of_graph(backward)


def _rows_of_graph(backward: Backward) -> RowsOfLosses:
    unknown = len(backward.number)
    leaves = sorted(backward.graph.leaves(), key=lambda leaf: backward.number.get(id(variable_of(leaf)), unknown))
    edges = [(leaf, 0) for leaf in leaves]
    check_rows_below(backward.graph, edges, backward.batching, retain_graph=backward.retain_graph)
    tell_injected(backward)
    # Parameters of others take no part: their gradients are only added up.
    owners = [
        backward.graph.positions_at(edge) if id(variable_of(edge[0])) in backward.number else [] for edge in edges
    ]
    targets = [variable_of(leaf) for leaf in leaves]
    _check_shared(backward, targets, owners)
    return RowsOfLosses(
        targets,
        owners,
        [Site(backward.agreed)] * len(targets),
        rows_below(backward.graph, backward.starts(), edges, backward.batching, retain_graph=backward.retain_graph),
        "exclusive parts once, rows of the shared parameters loss by loss",
    )


def _rows_by_backward(backward: Backward) -> RowsOfLosses:
    """Reentrant checkpointing hides its parameters from the graph, and refuses autograd.grad."""
    if backward.ranks.size > 1:
        raise RuntimeError(
            'Reentrant checkpointing takes a whole backward pass per loss at `at="parameters"`, which the ranks cannot '
            "follow. Use torch.utils.checkpoint with use_reentrant=False."
        )
    check_repeatable(run_again(backward.graph, retain_graph=backward.retain_graph))
    targets = [parameter for parameter in backward.parameters if parameter.requires_grad]
    return RowsOfLosses(
        targets,
        [range(len(backward.agreed))] * len(targets),
        [Site(backward.agreed)] * len(targets),
        rows_by_backward(backward.graph, backward.starts(), targets, retain_graph=backward.retain_graph),
        "one whole backward pass per loss, because of reentrant checkpointing",
    )


def _rows_of_shards(backward: Backward, shards: Sequence[Shard]) -> RowsOfLosses:
    """FSDP2 adds up and splits the gradients in its own backward: its shards are read loss by loss."""
    check_repeatable(run_again(backward.graph, retain_graph=backward.retain_graph))
    backward.agree(sites=[backward.losses.indices])
    targets = [shard.parameter for shard in shards]

    def stream() -> Iterator[tuple[int, Row]]:
        starts = backward.starts()
        for position, row in rows_by_backward(backward.graph, starts, targets, retain_graph=backward.retain_graph):
            parts = [None if part is None else shard.local(part) for shard, part in zip(shards, row, strict=True)]
            row.clear()
            yield position, parts

    return RowsOfLosses(
        targets,
        [range(len(backward.agreed))] * len(targets),
        [shard.site(backward.agreed) for shard in shards],
        stream(),
        "one backward pass per loss, rows combined shard by shard",
    )


def _rows_of_all_ranks(backward: Backward) -> RowsOfLosses:
    """`autograd.grad` passes by DistributedDataParallel, so the rows are averaged here."""
    reached = reached_on_ranks(backward)
    return RowsOfLosses(
        reached.targets,
        reached.owners,
        [Site(backward.agreed)] * len(reached.targets),
        averaged(backward, reached),
        "exclusive parts once, rows of the shared parameters loss by loss, averaged over the ranks",
    )


def reached_on_ranks(backward: Backward) -> Reached:
    """What the losses of any rank reach, once all ranks have agreed."""
    edges: list[Edge | None] = [None] * len(backward.parameters)
    inputs: list[Edge] = []
    for leaf in backward.graph.leaves():
        variable = variable_of(leaf)
        if not backward.is_parameter(leaf):
            inputs.append((leaf, 0))
        elif id(variable) in backward.number:
            edges[backward.number[id(variable)]] = (leaf, 0)
        else:
            raise RuntimeError(
                f"The `losses` reach a parameter of shape {tuple(variable.shape)} that the optimizer does not have, so "
                f'that its gradient cannot be averaged over the ranks with `at="parameters"`. Add it to the optimizer, '
                f"or set requires_grad=False."
            )
    here = [edge for edge in (*edges, *inputs) if edge is not None]
    check_rows_below(backward.graph, here, backward.batching, retain_graph=backward.retain_graph)
    backward.agree(own_reduction=True)
    tell_injected(backward)
    masks = [0] * len(edges)
    for facts in backward.everywhere:
        for i, mask in facts.owned:
            masks[i] |= mask
    reached = [i for i, mask in enumerate(masks) if mask]
    targets = [backward.parameters[i] for i in reached]
    owners = [[p for p, index in enumerate(backward.agreed.indices) if masks[i] >> index & 1] for i in reached]
    _check_shared(backward, targets, owners)
    targets += [variable_of(leaf) for leaf, _ in inputs]
    owners += [[] for _ in inputs]
    return Reached(targets, owners, [*(edges[i] for i in reached), *inputs])


def _check_shared(backward: Backward, targets: Sequence[Tensor], owners: Sequence[Sequence[int]]) -> None:
    shared = [target for target, losses in zip(targets, owners, strict=True) if len(losses) > 1]
    if not shared and not backward.pipeline.order.histories:
        raise RuntimeError("The `losses` share no parameter that this optimizer has, so there is nothing to combine.")
    for target in shared:
        check_real(target.dtype)


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
