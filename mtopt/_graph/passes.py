r"""One pass of autograd over the part above the meetings, or over the part below. In which order is in `rows`.

    losses      a     b     c         the exclusive pass runs what one loss alone reaches: heads, and leaves of its own.
                |     |     |         Each node that leads into a meeting hands its gradient to `taking` instead; the
                ●     ●    ●|         gradients of a loss at a meeting are added up there: its row.
                 \   /    / |
    meetings     [ m1 ]  [ m2 ]       the shared pass runs what several losses reach, from the rows at the meetings to
                    \    /            the targets: once for each loss, or for several at a time by vmap.
    targets       leaves, edges

Leaves at which losses meet have their rows already. The exclusive pass frees its nodes, unless nodes of the shared part
lie between two meetings; the shared pass frees its own with the last loss only, which is never batched.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from .._torch import AccumulateGrad, loops_of_vmap_raise
from .batching import Batching
from .loss_graph import LossGraph, Meeting, gradient_edge
from .supports import Edge
from .taking import nothing, rows_taken

Row = list[Tensor | None]  # one loss's gradient, target by target


def exclusive_pass(
    graph: LossGraph,
    starts: Sequence[Tensor],
    losses: range,
    targets: Sequence[Edge],
    meetings: Sequence[Meeting],
    rows: dict[int, Row],
    *,
    retain_graph: bool,
) -> dict[int, dict[Edge, Tensor]]:
    """Differentiate what one loss alone reaches: returns its row at each meeting, fills in its exclusive targets."""
    arrived: dict[int, dict[Edge, Tensor]] = {position: {} for position in losses}
    here, handlers = [], []
    for meeting in meetings:
        for position in meeting.roots:
            if position in arrived:
                arrived[position][meeting.edge] = starts[position]
        entries = [entry for entry in meeting.entries if entry[2] in arrived]
        if entries:
            here.append(Meeting(meeting.edge, entries))
            # Nothing may flow on to what one loss reaches by shared nodes, too: the shared pass brings that.
            handlers.append((partial(_put, arrived, meeting.edge), nothing if graph.under else None))
    roots = [position for position in losses if not graph.shared(graph.roots[position][0])]
    own = {}
    for i, (node, _) in enumerate(targets):
        position = graph.reach.get(node, 0).bit_length() - 1
        if position in arrived and not graph.shared(node):
            own[i] = position
    places = [*(targets[i] for i in own), *(meeting.edge for meeting in here)]
    if roots and places:
        with rows_taken(here, handlers):
            gradients = torch.autograd.grad(
                [gradient_edge(graph.roots[position]) for position in roots],
                [gradient_edge(edge) for edge in places],
                [starts[position] for position in roots],
                retain_graph=retain_graph,
                allow_unused=True,
            )
        for (i, position), gradient in zip(own.items(), gradients, strict=False):
            rows[position][i] = gradient
    return arrived


def whole_pass(
    root: Edge, start: Tensor, targets: Sequence[Edge], reached: Sequence[int], *, retain_graph: bool
) -> Row:
    """Differentiate all that one loss reaches, without a stop where it meets others."""
    row: Row = [None] * len(targets)
    if reached:
        gradients = torch.autograd.grad(
            [gradient_edge(root)],
            [gradient_edge(targets[i]) for i in reached],
            [start],
            retain_graph=retain_graph,
            allow_unused=True,
        )
        _add_rows(row, reached, gradients)
    return row


def rows_at_leaves(at_edges: dict[Edge, Tensor], targets: Sequence[Edge], row: Row) -> None:
    """Where losses meet at a leaf, the row is there already."""
    for edge in [edge for edge in at_edges if type(edge[0]) is AccumulateGrad]:
        gradient = at_edges.pop(edge)
        if edge in targets:
            row[targets.index(edge)] = gradient


def shared_pass(
    at_edges: dict[Edge, Tensor], targets: Sequence[Edge], shared: Sequence[int], row: Row, *, retain_graph: bool
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


def shared_pass_by_vmap(
    graph: LossGraph,
    arrived: dict[int, dict[Edge, Tensor]],
    targets: Sequence[Edge],
    shared: Sequence[int],
    rows: dict[int, Row],
    losses: range,
    batching: Batching,
) -> bool:
    """The same for several losses at once; False if vmap cannot."""
    edges = list(dict.fromkeys(edge for position in losses for edge in arrived[position]))
    if not edges or not shared:
        return False
    kinds = {type(node).__name__ for node in graph.edges}
    try:
        with nullcontext() if kinds <= batching.taken else loops_of_vmap_raise():
            batched = _batched_vjp(
                [arrived[position] for position in losses], edges, [gradient_edge(targets[i]) for i in shared]
            )
    except Exception as error:  # vmap's refusals have many types; a real error comes again from the loop
        batching.give_up(error)
        return False
    batching.taken |= kinds
    for n, position in enumerate(losses):
        # vmap gives zeros, not None, to the losses of the chunk that do not reach a target
        reached = [graph.reach[targets[i][0]] >> position & 1 for i in shared]
        found = [g[n] if g is not None and r else None for g, r in zip(batched, reached, strict=True)]
        _add_rows(rows[position], shared, found)
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


def _add_rows(row: Row, shared: Sequence[int], gradients: Sequence[Tensor | None]) -> None:
    for i, gradient in zip(shared, gradients, strict=True):
        if gradient is not None:
            before = row[i]
            row[i] = gradient if before is None else before + gradient


def _put(arrived: dict[int, dict[Edge, Tensor]], edge: Edge, position: int, row: Tensor) -> None:
    arrived[position][edge] = row
