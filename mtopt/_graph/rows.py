"""Rows at any place of the graph: exclusive parts once, the shared part by batched VJPs. No transforms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .._checks import check_chunk_size
from .._torch import COMPILED, AccumulateGrad, has_hooks, outputs_of, variable_of, would_donate, wrappers_silent
from .._transform import LossesLike
from .alive import check_alive, check_repeatable, graph_errors_explained
from .batching import Batching
from .loss_graph import LossGraph, Meeting, edge_of, gradient_edge, reached_by
from .losses import cotangents, read_losses
from .passes import Row, exclusive_pass, rows_at_leaves, shared_pass, shared_pass_by_vmap, whole_pass
from .supports import Edge
from .taking import nothing, rows_taken

HEADS = 2**22  # numbers that heads made: up to here they may be there until the last loss was differentiated


def per_loss_gradients(
    losses: LossesLike,
    inputs: Tensor | Sequence[Tensor],
    *,
    chunk_size: int | None = None,
    retain_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    r"""The gradient of each loss for each input: one row of the Jacobian per loss.

    Parts of the graph that one loss alone reaches are differentiated once; only the shared part is differentiated
    per loss, several losses at a time by `torch.func.vmap`, or in a loop where that cannot work or does not pay.

    Args:
        losses: T scalar losses: a list, a dict or a 1-D tensor; `None` is absent and has no row.
        inputs: Tensors to differentiate for: parameters, inputs or activations.
        chunk_size: Losses in one vmap. `None` chooses, 1 asks for the loop.
        retain_graph: Whether another backward pass may follow.

    Returns:
        For each input a tensor of shape `(T, *input.shape)`, zero where a loss does not reach it, or `None` where no
        loss does.

    Raises:
        TypeError: If a loss or an input is not a tensor.
        ValueError: If a loss is not a scalar, needs no gradient, or stands twice; if an input needs no gradient.
        RuntimeError: If the graph was freed.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> per_loss_gradients([(3 * w).sum(), (w**2).sum()], w)
        (tensor([[3., 3.],
                [2., 4.]]),)
    """
    present, roots = read_losses(losses)
    targets = []
    for i, tensor in enumerate((inputs,) if isinstance(inputs, Tensor) else inputs):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`inputs[{i}]` must be a tensor, but it is {type(tensor).__name__}.")
        if not tensor.requires_grad:
            raise ValueError(f"`inputs[{i}]` does not require grad, so no loss can be differentiated for it.")
        targets.append(edge_of(tensor))
    graph = LossGraph(roots)
    graph.look_through_bundles()
    check_alive(graph)
    batching = Batching(check_chunk_size(chunk_size))
    distinct = list(dict.fromkeys(targets))
    check_rows_below(graph, distinct, batching, retain_graph=retain_graph)
    results: dict[Edge, Tensor] = {}
    with wrappers_silent(graph.sinks), graph_errors_explained():
        for position, rows in rows_below(graph, cotangents(roots, None), distinct, batching, retain_graph=retain_graph):
            for edge, row in zip(distinct, rows, strict=True):
                if row is not None:
                    if edge not in results:
                        results[edge] = row.to_dense().new_zeros(len(present), *row.shape)
                    results[edge][position] = row.to_dense()
    return tuple(results.get(edge) for edge in targets)


def rows_below(
    graph: LossGraph, starts: Sequence[Tensor], targets: Sequence[Edge], batching: Batching, *, retain_graph: bool
) -> Iterator[tuple[int, Row]]:
    """Yield `(position of a loss, its row)`, loss by loss; only one chunk of large rows is alive at a time."""
    plan = plan_of(graph, targets, batching, retain_graph=retain_graph)
    meetings = plan.meetings
    shared = [i for i, (node, _) in enumerate(targets) if graph.beyond(node)]
    at_once = batching.exclusive_at_once(len(starts), meetings)
    last = len(starts) - 1
    if plan.whole:
        by_loss = [reached_by(graph, position, targets) for position in range(len(starts))]
        yield from whole_passes(graph.roots, starts, targets, by_loss, apart=plan.apart, retain_graph=retain_graph)
        return
    first = 0
    rows: dict[int, Row] = {}
    while first <= last:
        losses = range(first, min(first + (plan.size if batching.refusal is None else 1), last + 1))
        if first not in rows:
            ahead = range(last + 1) if at_once else losses
            rows = {position: [None] * len(targets) for position in ahead}
            arrived = exclusive_pass(graph, starts, ahead, targets, meetings, rows, retain_graph=plan.keep_exclusive)
            for position in ahead:
                rows_at_leaves(arrived[position], targets, rows[position])
        first = losses.stop
        # The last loss stands alone, so that only a plain VJP, which vmap cannot refuse, frees the graph.
        for chunk in (losses[:-1], losses[-1:]) if losses[-1] == last else (losses,):
            batched = len(chunk) > 1 and shared_pass_by_vmap(graph, arrived, targets, shared, rows, chunk, batching)
            for position in chunk:
                if not batched:
                    retain = retain_graph or position != last
                    reached = [i for i in shared if graph.reach[targets[i][0]] >> position & 1]
                    shared_pass(arrived[position], targets, reached, rows[position], retain_graph=retain)
                yield position, rows[position]
                rows[position].clear()  # views that are still held would keep the whole chunk alive during the next one


def whole_passes(
    roots: Sequence[Edge],
    starts: Sequence[Tensor],
    targets: Sequence[Edge],
    reached: Sequence[Sequence[int]],
    *,
    apart: bool,
    retain_graph: bool,
) -> Iterator[tuple[int, Row]]:
    """The same by one pass for each loss, to the targets that it reaches; `apart`: each frees what it has run."""
    last = len(starts) - 1
    for position, (root, start) in enumerate(zip(roots, starts, strict=True)):
        retain = retain_graph or (position != last and not apart)
        yield position, whole_pass(root, start, targets, reached[position], retain_graph=retain)


@dataclass
class Plan:
    """How rows below a graph are taken.

    Attributes:
        meetings: Where the exclusive parts end.
        size: Losses to differentiate together below them.
        keep_exclusive: Whether the pass over the exclusive parts retains them.
        whole: Whether each loss is taken by one pass, without a stop at the meetings.
        apart: Whether the losses share leaves alone, so that each pass frees what it has run.
    """

    meetings: list[Meeting]
    size: int
    keep_exclusive: bool
    whole: bool
    apart: bool


def plan_of(graph: LossGraph, targets: Sequence[Edge], batching: Batching, *, retain_graph: bool) -> Plan:
    meetings = graph.frontier()
    interior = [meeting for meeting in meetings if type(meeting.edge[0]) is not AccumulateGrad]
    size = batching.size_for(graph, interior) if interior else 1
    # If nodes lie between meetings the pass over the exclusive parts runs them, and must not free them; nor what
    # DistributedDataParallel laid under all outputs, nor nodes that lead both to shared and to exclusive ones.
    keep = retain_graph or graph.nested(meetings) or bool(graph.sinks) or graph.states is not None
    keep = keep or _compiled_by_a_pass(graph)
    hooked = any(map(has_hooks, shared_leaves(graph, targets)))
    if hooked:
        batching.used = "loop, because hooks on shared parameters run once for each loss"
    apart = not interior and graph.states is None and not graph.sinks
    # A stop at the meetings gains nothing where the losses are taken one by one below them; but it frees large heads.
    one_by_one = size == 1 or len(graph.roots) < 3
    whole = hooked or apart or (one_by_one and (keep or _numbers_above(graph) <= HEADS))
    return Plan(meetings, size, keep, whole, apart)


def _numbers_above(graph: LossGraph) -> int:
    """How many numbers the operations made that one loss alone reaches, its leaves apart."""
    alone = (node for node in graph.edges if not graph.shared(node) and type(node) is not AccumulateGrad)
    return sum(prod(made.shape) for node in alone for made in outputs_of(node))


def _compiled_by_a_pass(graph: LossGraph) -> bool:
    """Whether a pass over the exclusive parts would compile for one use what the shared part has, too."""
    waiting = [node for node in graph.edges if would_donate(node)] if COMPILED in graph.kinds else []
    return len({type(node) for node in waiting}) < len({(type(node), graph.beyond(node)) for node in waiting})


def check_rows_below(graph: LossGraph, targets: Sequence[Edge], batching: Batching, *, retain_graph: bool) -> None:
    """Raise if `rows_below`, or `rows_at`, would have to run a node again that can be run only once."""
    if COMPILED not in graph.kinds:
        return
    plan = plan_of(graph, targets, batching, retain_graph=retain_graph)
    places, above = set(targets), set[Node]()
    for node in reversed(graph.edges):
        if any(edge in places or edge[0] in above for edge in graph.edges[node]):
            above.add(node)
    if plan.whole:
        again = () if plan.apart and not retain_graph else run_again(graph, retain_graph=retain_graph)
        check_repeatable(above.intersection(again))
    else:
        check_repeatable(node for node in above if plan.keep_exclusive or graph.beyond(node))


def run_again(graph: LossGraph, *, retain_graph: bool) -> list[Node]:
    """The nodes that are retained where each loss is taken by one pass: the last of them frees its own."""
    last = 1 << len(graph.roots) - 1
    return [node for node, reach in graph.reach.items() if retain_graph or reach & ~last]


def rows_at(
    graph: LossGraph, starts: Sequence[Tensor], meetings: Sequence[Meeting], batching: Batching
) -> Iterator[tuple[int, Row]]:
    """What each loss brings to some meetings by their entries; the graph is retained."""
    if not graph.nested(meetings):
        yield from rows_below(graph, starts, [meeting.edge for meeting in meetings], batching, retain_graph=True)
        return
    batching.used = "loop, because some sites lie below others"
    for position, (root, start) in enumerate(zip(graph.origins, starts, strict=True)):
        row: Row = [None] * len(meetings)
        # Nothing flows on from a meeting, so that what comes to one below comes by its own entries.
        handlers = [(partial(_put, row, i), nothing) for i in range(len(meetings))]
        with rows_taken([_of_one(graph, meeting, position) for meeting in meetings], handlers):
            torch.autograd.grad(
                [gradient_edge(root)],
                [gradient_edge(meeting.edge) for meeting in meetings],
                [start],
                retain_graph=True,
                allow_unused=True,
            )
        for i, meeting in enumerate(meetings):
            if position in meeting.roots:
                before = row[i]
                row[i] = start if before is None else before + start
        yield position, row


def _of_one(graph: LossGraph, meeting: Meeting, position: int) -> Meeting:
    """The same meeting where one loss comes alone: all that its entries bring is one row."""
    own = [(node, k, position) for node, k, _ in meeting.entries if graph.going_on(node, k) >> position & 1]
    return Meeting(meeting.edge, own)


def _put(row: Row, i: int, _: int, gradient: Tensor) -> None:
    row[i] = gradient


def shared_leaves(graph: LossGraph, targets: Sequence[Edge]) -> Iterator[Tensor]:
    """The leaves among some edges that two losses or more reach."""
    for node, _ in targets:
        if type(node) is AccumulateGrad and node in graph.reach and graph.shared(node):
            yield variable_of(node)


def rows_by_backward(
    graph: LossGraph, starts: Sequence[Tensor], parameters: Sequence[Tensor], *, retain_graph: bool
) -> Iterator[tuple[int, Row]]:
    """Rows from one whole backward pass per loss, read off `.grad`: for graphs that `autograd.grad` cannot take."""
    for position, (root, start) in enumerate(zip(graph.origins, starts, strict=True)):
        with _own_gradients(parameters):
            retain = retain_graph or position < len(starts) - 1
            torch.autograd.backward([gradient_edge(root)], [start], retain_graph=retain)
            row = [parameter.grad for parameter in parameters]
        yield position, row


@contextmanager
def _own_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Put every `.grad` aside, and back again."""
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
