"""Rows at the outputs of named modules: from the one backward pass, or from VJPs ahead of it. Finds no sites."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._graph.loss_graph import Meeting
from .._graph.rows import check_rows_below, rows_below
from .._graph.supports import Edge
from .._graph.taking import Finish, Take, replaced, rows_taken
from .._signs import decision_shape, dims_of
from .._torch import wrappers_silent
from .activations import combining, kind_of
from .backward import Backward
from .explanation import NEAR_PLAIN, Explanation, SiteExplained
from .fan_out import hidden_layers_refused
from .marks import Mark, joint_groups, marked_edges
from .refusals import check_marked, check_meetings, refuse_layers


def combine_at_modules(backward: Backward) -> Explanation:
    """Rows at the outputs of named modules.

    Where each contribution to a site belongs to one loss, the rows are taken within the one ordinary backward pass.
    Where losses share nodes above it, or a decision is joint over several calls, batched VJPs get them first.
    """
    backward.look_at_all()
    backward.graph.look_through_parts()
    refuse_layers(backward)
    joint_dim = None if backward.pipeline.marginalized is None else backward.pipeline.marginalized[0]
    # A row alone at a site stays as it is, unless the decision is joint; so most nodes need no look.
    marked = marked_edges(backward.graph, backward.owner, shared_only=joint_dim is None)
    if len(backward.positions_at(marked)) < len(backward.losses):
        marked = marked_edges(backward.graph, backward.owner)
        check_marked(backward, marked)
    groups = [[edge] for edge in marked] if joint_dim is None else joint_groups(marked, joint_dim)
    meetings = backward.graph.meetings_at(marked)
    direct = [group for group in groups if len(group) == 1 and meetings[group[0]].separate]
    ahead = [group for group in groups if group not in direct]
    if backward.has_several:
        check_meetings(
            backward, [meetings[edge] for edge in marked], joint=[group for group in groups if len(group) > 1]
        )
    if ahead:
        edges = [edge for group in ahead for edge in group]
        check_rows_below(backward.graph, edges, backward.batching, retain_graph=True)
    together = groups if backward.pipeline.sums_over_ranks else []
    combines = any(len(backward.positions_at(group)) > 1 for group in groups)
    backward.agree(
        combines=combines or joint_dim == 0, sites=[_decision(backward, marked[group[0]]) for group in together]
    )
    starts = backward.starts()
    handlers: dict[Edge, tuple[Take, Finish]] = {}
    combined: dict[Edge, Tensor] = {}
    for (edge,) in direct:
        combination = backward.combination_at(marked[edge].activation)
        for position in meetings[edge].roots:
            combination.add(0, position, starts[position])
        handlers[edge] = combining(combination)
    if ahead:
        activations = {edge: marked[edge].activation for group in ahead for edge in group}
        with wrappers_silent(backward.graph.sinks), hidden_layers_refused():
            combined = _combined_ahead(backward, starts, ahead, activations, joint_dim or 0)
    for edge in handlers:
        for position in meetings[edge].roots:
            starts[position] = torch.zeros_like(starts[position])
    sites = [_group_explained(backward, group, joint_dim or 0) for group in groups]
    how = "one ordinary backward pass, rows combined at the named modules"
    why, if_slow = "`at` names them, and each loss has a part of its own above them", NEAR_PLAIN
    if ahead:
        how += ", after VJPs from the losses to them"
        why = "`at` names them; losses share a part above them, or a decision is joint over several calls"
        if_slow = "name a module above which each loss has a part of its own, and call it once"
    explanation = backward.explanation(how, why, if_slow, sites, backward.batching.used)
    with rows_taken([meetings[edge] for edge in handlers], list(handlers.values())), replaced(combined):
        backward.run(starts)
    return explanation


def _combined_ahead(
    backward: Backward,
    starts: Sequence[Tensor],
    groups: Sequence[Sequence[Edge]],
    activations: dict[Edge, Tensor | None],
    dim: int,
) -> dict[Edge, Tensor]:
    """The combined gradient at each edge, from VJPs; a group of edges is one site, its calls laid end to end."""
    edges = [edge for group in groups for edge in group]
    combinations = []
    for group in groups:
        known = [a for edge in group if (a := activations[edge]) is not None]
        combinations.append(backward.combination_at(torch.cat(known, dim) if known else None))
    for position, rows in rows_below(backward.graph, starts, edges, backward.batching, retain_graph=True):
        row_at = dict(zip(edges, rows, strict=True))
        for group, combination in zip(groups, combinations, strict=True):
            parts = [row_at[edge] for edge in group]
            like = next((part for part in parts if part is not None), None)
            if like is None:
                continue
            whole = [like.new_zeros(_shape(edge)) if p is None else p for edge, p in zip(group, parts, strict=True)]
            combination.add(0, position, whole[0] if len(whole) == 1 else torch.cat(whole, dim))
    combined: dict[Edge, Tensor] = {}
    for group, combination in zip(groups, combinations, strict=True):
        (gradient,) = combination.result()
        if gradient is not None:
            sizes = [_shape(edge)[dim] for edge in group] if len(group) > 1 else []
            combined.update(zip(group, torch.split(gradient, sizes, dim) if sizes else (gradient,), strict=True))
    return combined


def _group_explained(backward: Backward, group: Sequence[Edge], dim: int) -> SiteExplained:
    if len(group) == 1:
        return backward.site_explained(kind_of(group[0]), _shape(group[0]), backward.positions_at(group))
    shape = list(_shape(group[0]))
    shape[dim] = sum(_shape(edge)[dim] for edge in group)
    kind = f"{kind_of(group[0])}, {len(group)} calls decided together, laid end to end"
    return backward.site_explained(kind, tuple(shape), backward.positions_at(group))


def _decision(backward: Backward, mark: Mark) -> tuple[object, ...]:
    """A named site as all ranks must have it: with the same decisions."""
    if mark.activation is None:
        return (mark.module, mark.output)
    dims = dims_of(backward.pipeline.marginalized or (), mark.activation.ndim)
    return (mark.module, mark.output, *(decision_shape(mark.activation.shape, dims) if 0 in dims else ()))


def _shape(edge: Edge) -> tuple[int, ...]:
    return Meeting(edge).shape
