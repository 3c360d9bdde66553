"""Rows at any place of the graph: exclusive parts once, the shared part by batched VJPs. No transforms."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from .arrivals import rows_taken
from .batching import Batching, check_chunk_size
from .graph import AccumulateGrad, Edge, LossGraph, Meeting, edge_of, gradient_edge
from .losses import LossesLike, cotangents, read_losses

Rows = list[Tensor | None]  # one loss's gradient for each target


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
        retain_graph: Whether another backward may follow.

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
    graph.check_alive()
    batching = Batching(check_chunk_size(chunk_size))
    distinct = list(dict.fromkeys(targets))
    results: dict[Edge, Tensor] = {}
    with graph.wrappers_silent():
        for loss, rows in rows_below(graph, cotangents(roots, None), distinct, batching, retain_graph=retain_graph):
            for edge, row in zip(distinct, rows, strict=True):
                if row is not None:
                    if edge not in results:
                        results[edge] = row.to_dense().new_zeros(len(present), *row.shape)
                    results[edge][loss] = row.to_dense()
    return tuple(results.get(edge) for edge in targets)


def rows_below(
    graph: LossGraph, starts: Sequence[Tensor], targets: Sequence[Edge], batching: Batching, *, retain_graph: bool
) -> Iterator[tuple[int, Rows]]:
    """Yield `(loss, its gradient for each target)`, loss by loss; only one chunk of large rows is alive at a time."""
    meetings = graph.frontier()
    shared = [i for i, (node, _) in enumerate(targets) if node in graph.reach and graph.shared(node)]
    interior = [meeting for meeting in meetings if type(meeting.edge[0]) is not AccumulateGrad]
    size = batching.size_for(graph, interior) if interior else 1
    # If nodes lie between meetings the pass over the exclusive parts runs them, and must not free them; nor what
    # DistributedDataParallel laid under all outputs.
    keep_exclusive = retain_graph or graph.nested(meetings) or bool(graph.sinks)
    at_once = batching.exclusive_at_once(len(starts), meetings)
    last = len(starts) - 1
    first = 0
    rows: dict[int, Rows] = {}
    while first <= last:
        losses = range(first, min(first + (size if batching.refusal is None else 1), last + 1))
        if first not in rows:
            ahead = range(last + 1) if at_once else losses
            rows = {loss: [None] * len(targets) for loss in ahead}
            arrived = _exclusive_pass(graph, starts, ahead, targets, meetings, rows, retain_graph=keep_exclusive)
            for loss in ahead:
                _rows_at_leaves(arrived[loss], targets, rows[loss])
        first = losses.stop
        # The last loss stands alone, so that only a plain VJP, which vmap cannot refuse, frees the graph.
        for chunk in (losses[:-1], losses[-1:]) if losses[-1] == last else (losses,):
            batched = len(chunk) > 1 and _shared_pass_by_vmap(graph, arrived, targets, shared, rows, chunk, batching)
            for loss in chunk:
                if not batched:
                    retain = retain_graph or loss != last
                    _shared_pass(arrived[loss], targets, shared, rows[loss], retain_graph=retain)
                yield loss, rows[loss]
                rows[loss].clear()  # views that are still held would keep the whole chunk alive during the next one


def _exclusive_pass(
    graph: LossGraph,
    starts: Sequence[Tensor],
    losses: range,
    targets: Sequence[Edge],
    meetings: Sequence[Meeting],
    rows: dict[int, Rows],
    *,
    retain_graph: bool,
) -> dict[int, dict[Edge, Tensor]]:
    """Differentiate what one loss alone reaches: returns its row at each meeting, fills in its exclusive targets."""
    arrived: dict[int, dict[Edge, Tensor]] = {loss: {} for loss in losses}
    here, handlers = [], []
    for meeting in meetings:
        for loss in meeting.roots:
            if loss in arrived:
                arrived[loss][meeting.edge] = starts[loss]
        entries = [entry for entry in meeting.entries if entry[2] in arrived]
        if entries:
            here.append(Meeting(meeting.edge, entries))
            handlers.append((partial(_put, arrived, meeting.edge), _nothing))
    roots = [loss for loss in losses if not graph.shared(graph.roots[loss][0])]
    own = {}
    for i, (node, _) in enumerate(targets):
        loss = graph.reach.get(node, 0).bit_length() - 1
        if loss in arrived and not graph.shared(node):
            own[i] = loss
    places = [*(targets[i] for i in own), *(meeting.edge for meeting in here)]
    if roots and places:
        with rows_taken(here, handlers):
            gradients = torch.autograd.grad(
                [gradient_edge(graph.roots[loss]) for loss in roots],
                [gradient_edge(edge) for edge in places],
                [starts[loss] for loss in roots],
                retain_graph=retain_graph,
                allow_unused=True,
            )
        for (i, loss), gradient in zip(own.items(), gradients, strict=False):
            rows[loss][i] = gradient
    return arrived


def _rows_at_leaves(at_edges: dict[Edge, Tensor], targets: Sequence[Edge], row: Rows) -> None:
    """Where losses meet at a leaf, the row is there already."""
    for edge in [edge for edge in at_edges if type(edge[0]) is AccumulateGrad]:
        gradient = at_edges.pop(edge)
        if edge in targets:
            row[targets.index(edge)] = gradient


def _shared_pass(
    at_edges: dict[Edge, Tensor], targets: Sequence[Edge], shared: Sequence[int], row: Rows, *, retain_graph: bool
) -> None:
    """Push one loss's rows at the meetings on to the shared targets."""
    if at_edges and shared:
        gradients = torch.autograd.grad(
            [gradient_edge(edge) for edge in at_edges],
            [gradient_edge(targets[i]) for i in shared],
            list(at_edges.values()),
            retain_graph=retain_graph,
            allow_unused=True,
        )
        _add_rows(row, shared, gradients)


def _shared_pass_by_vmap(
    graph: LossGraph,
    arrived: dict[int, dict[Edge, Tensor]],
    targets: Sequence[Edge],
    shared: Sequence[int],
    rows: dict[int, Rows],
    losses: range,
    batching: Batching,
) -> bool:
    """The same for several losses at once; False if vmap cannot."""
    edges = list(dict.fromkeys(edge for loss in losses for edge in arrived[loss]))
    if not edges or not shared:
        return False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="There is a performance drop")  # vmap without a batching rule
            batched = _batched_vjp(
                [arrived[loss] for loss in losses], edges, [gradient_edge(targets[i]) for i in shared]
            )
    except Exception as error:  # vmap's refusals have many types; a real error comes again from the loop
        batching.give_up(error)
        return False
    for n, loss in enumerate(losses):
        # vmap gives zeros, not None, to the losses of the chunk that do not reach a target
        reached = [graph.reach[targets[i][0]] >> loss & 1 for i in shared]
        found = [g[n] if g is not None and r else None for g, r in zip(batched, reached, strict=True)]
        _add_rows(rows[loss], shared, found)
    return True


def _batched_vjp(
    arrived: Sequence[dict[Edge, Tensor]], edges: Sequence[Edge], inputs: Sequence[torch.autograd.graph.GradientEdge]
) -> list[Tensor | None]:
    """One VJP for several losses at once: for each input `(chunk, *S)`, or None where no loss reaches it."""
    outputs = [gradient_edge(edge) for edge in edges]
    stacked = []
    for edge in edges:
        like = next(at_edges[edge] for at_edges in arrived if edge in at_edges)
        zero = torch.zeros((), dtype=like.dtype, device=like.device).expand_as(like)
        stacked.append(torch.stack([at_edges.get(edge, zero) for at_edges in arrived]))
    reached: list[bool] = []

    def vjp(*gradients: Tensor) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(outputs, inputs, gradients, retain_graph=True, allow_unused=True)
        reached[:] = [gradient is not None for gradient in found]
        return tuple(gradient for gradient in found if gradient is not None)

    found = iter(torch.func.vmap(vjp)(*stacked))
    return [next(found) if is_reached else None for is_reached in reached]


def _add_rows(row: Rows, shared: Sequence[int], gradients: Sequence[Tensor | None]) -> None:
    for i, gradient in zip(shared, gradients, strict=True):
        if gradient is not None:
            before = row[i]
            row[i] = gradient if before is None else before + gradient


def rows_by_backward(
    graph: LossGraph, starts: Sequence[Tensor], parameters: Sequence[Tensor], *, retain_graph: bool
) -> Iterator[tuple[int, Rows]]:
    """Rows from one whole backward per loss, read off `.grad`: for graphs that `autograd.grad` cannot take."""
    for loss, (root, start) in enumerate(zip(graph.origins, starts, strict=True)):
        with _own_gradients(parameters):
            retain = retain_graph or loss < len(starts) - 1
            torch.autograd.backward([gradient_edge(root)], [start], retain_graph=retain)
            rows = [parameter.grad for parameter in parameters]
        yield loss, rows


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


def _put(arrived: dict[int, dict[Edge, Tensor]], edge: Edge, loss: int, row: Tensor) -> None:
    arrived[loss][edge] = row


def _nothing() -> None:
    return None
