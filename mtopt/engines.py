"""One backward of several losses: rows at activations, combined, and on through the rest. No rows at parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .arrivals import Finish, Take, rows_taken
from .batching import Batching
from .combine import Combination
from .compiled import hidden_layers_refused
from .graph import AccumulateGrad, Edge, Meeting
from .methods.base import Site
from .refusals import check_marked, check_meetings, refuse_layers
from .report import Report, SiteReport
from .rows import rows_below
from .signs import decision_shape, dims_of
from .sites import Mark, joint_groups, marked_edges
from .step import Step

NEAR_PLAIN = "this costs little more than a plain sum: look for the time elsewhere, such as in the forward pass"


def backward_plain(step: Step) -> Report:
    """Nothing to combine: autograd adds the rows up."""
    step.agree()
    step.run(step.starts())
    reason = "one loss is alone here" if step.pipeline.row_transforms else "no transform asks for single gradients"
    return step.report("one ordinary backward, rows summed by autograd", reason, NEAR_PLAIN)


def backward_at_activations(step: Step) -> Report:
    """The frontier: rows where the losses first meet, combined within one ordinary backward."""
    refuse_layers(step)
    meetings = [meeting for meeting in step.graph.frontier() if len(meeting.losses) > 1]
    if step.has_several:
        check_meetings(step, meetings)
    # Where they meet at a parameter its rows are needed from all ranks, as they are where a transform asks for it.
    leaves = [m for m in meetings if type(m.edge[0]) is AccumulateGrad and step.is_parameter(m.edge[0])]
    together = meetings if step.pipeline.sums_over_ranks else leaves
    step.agree(combines=len(meetings) > 0, sites=[_signature(step, meeting) for meeting in together])
    starts = step.starts()
    handlers = []
    for meeting in meetings:
        combination = _RowsOfAllRanks(step) if meeting in leaves and step.ranks.size > 1 else step.combination_at(None)
        for loss in meeting.roots:
            combination.add(0, loss, starts[loss])
            starts[loss] = torch.zeros_like(starts[loss])
        handlers.append(_combining(combination))
    sites = [step.site_report(_kind(meeting.edge), meeting.shape, meeting.losses) for meeting in meetings]
    how = "one ordinary backward, rows combined where the losses meet"
    reason = 'at="activations": where the losses first meet, one backward has the gradients of all of them'
    report = step.report(how, reason, NEAR_PLAIN, sites)
    with rows_taken(meetings, handlers):
        step.run(starts)
    return report


def backward_at_modules(step: Step, owner: str, batching: Batching) -> Report:
    """Rows at the outputs of named modules.

    Where each contribution to a site belongs to one loss, the rows are taken within the one ordinary backward. Where
    losses share nodes above it, or a decision is joint over several calls, batched VJPs get them first.
    """
    refuse_layers(step)
    joint_dim = None if step.pipeline.marginalized is None else step.pipeline.marginalized[0]
    # A row alone at a site stays as it is, unless the decision is joint; so most nodes need no look.
    marked = marked_edges(step.graph, owner, shared_only=joint_dim is None)
    if len(step.losses_at(marked)) < len(step.losses):
        marked = marked_edges(step.graph, owner)
        check_marked(step, marked)
    groups = [[edge] for edge in marked] if joint_dim is None else joint_groups(marked, joint_dim)
    meetings = {edge: step.graph.meeting_at(edge) for edge in marked}
    direct = [group for group in groups if len(group) == 1 and meetings[group[0]].separate]
    ahead = [group for group in groups if group not in direct]
    if step.has_several:
        check_meetings(step, [meetings[edge] for edge in marked], joint=[group for group in groups if len(group) > 1])
    together = groups if step.pipeline.sums_over_ranks else []
    combines = any(len(step.losses_at(group)) > 1 for group in groups)
    step.agree(combines=combines or joint_dim == 0, sites=[_decision(step, marked[group[0]]) for group in together])
    starts = step.starts()
    handlers: dict[Edge, tuple[Take, Finish]] = {}
    for (edge,) in direct:
        combination = step.combination_at(marked[edge].activation)
        for loss in meetings[edge].roots:
            combination.add(0, loss, starts[loss])
        handlers[edge] = _combining(combination)
    if ahead:
        activations = {edge: marked[edge].activation for group in ahead for edge in group}
        with step.graph.wrappers_silent(), hidden_layers_refused():
            combined = _combined_ahead(step, starts, ahead, activations, joint_dim or 0, batching)
        for edge, gradient in combined.items():
            handlers[edge] = (_ignore, partial(_identity, gradient))
    for edge in handlers:
        for loss in meetings[edge].roots:
            starts[loss] = torch.zeros_like(starts[loss])
    sites = [_group_report(step, group, joint_dim or 0) for group in groups]
    how = "one ordinary backward, rows combined at the named modules"
    reason, slow = "`at` names them, and each loss has a part of its own above them", NEAR_PLAIN
    if ahead:
        how += ", after VJPs from the losses to them"
        reason = "`at` names them; losses share a part above them, or a decision is joint over several calls"
        slow = "name a module above which each loss has a part of its own, and call it once"
    report = step.report(how, reason, slow, sites, batching.used)
    with rows_taken([meetings[edge] for edge in handlers], list(handlers.values())):
        step.run(starts)
    return report


def _combined_ahead(
    step: Step,
    starts: Sequence[Tensor],
    groups: Sequence[Sequence[Edge]],
    activations: dict[Edge, Tensor | None],
    dim: int,
    batching: Batching,
) -> dict[Edge, Tensor]:
    """The combined gradient at each edge, from VJPs; a group of edges is one site, its calls laid end to end."""
    edges = [edge for group in groups for edge in group]
    combinations = []
    for group in groups:
        known = [a for edge in group if (a := activations[edge]) is not None]
        combinations.append(step.combination_at(torch.cat(known, dim) if known else None))
    for loss, rows in rows_below(step.graph, starts, edges, batching, retain_graph=True):
        row_at = dict(zip(edges, rows, strict=True))
        for group, combination in zip(groups, combinations, strict=True):
            parts = [row_at[edge] for edge in group]
            like = next((part for part in parts if part is not None), None)
            if like is None:
                continue
            whole = [like.new_zeros(_shape(edge)) if p is None else p for edge, p in zip(group, parts, strict=True)]
            combination.add(0, loss, whole[0] if len(whole) == 1 else torch.cat(whole, dim))
    combined: dict[Edge, Tensor] = {}
    for group, combination in zip(groups, combinations, strict=True):
        (gradient,) = combination.result()
        if gradient is not None:
            sizes = [_shape(edge)[dim] for edge in group] if len(group) > 1 else []
            combined.update(zip(group, torch.split(gradient, sizes, dim) if sizes else (gradient,), strict=True))
    return combined


def _group_report(step: Step, group: Sequence[Edge], dim: int) -> SiteReport:
    if len(group) == 1:
        return step.site_report(_kind(group[0]), _shape(group[0]), step.losses_at(group))
    shape = list(_shape(group[0]))
    shape[dim] = sum(_shape(edge)[dim] for edge in group)
    kind = f"{_kind(group[0])}, {len(group)} calls decided together, laid end to end"
    return step.site_report(kind, tuple(shape), step.losses_at(group))


class _RowsOfAllRanks:
    """Keeps the rows at a parameter, where losses meet directly, until they are averaged over the ranks."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.rows: dict[int, Tensor] = {}

    def add(self, site: int, position: int, row: Tensor) -> None:
        self.rows[position] = row

    def result(self) -> list[Tensor | None]:
        positions = sorted(self.rows)
        mean = self.step.ranks.sum(torch.stack([self.rows[p] for p in positions]) / self.step.ranks.size)
        combination = self.step.pipeline.combination(self.step.losses, [Site(self.step.agreed)])
        for position, row in zip(positions, mean, strict=True):
            combination.add(0, position, row)
        return combination.result()


def _signature(step: Step, meeting: Meeting) -> tuple[object, ...]:
    """A meeting as all ranks must have it: at a parameter with the same losses and shape."""
    if type(meeting.edge[0]) is not AccumulateGrad:
        return (meeting.edge[0].name(),)
    return (meeting.shape, *(step.losses.indices[loss] for loss in meeting.losses))


def _decision(step: Step, mark: Mark) -> tuple[object, ...]:
    """A named site as all ranks must have it: with the same decisions."""
    if mark.activation is None:
        return (mark.module, mark.output)
    dims = dims_of(step.pipeline.marginalized or (), mark.activation.ndim)
    return (mark.module, mark.output, *(decision_shape(mark.activation.shape, dims) if 0 in dims else ()))


def _shape(edge: Edge) -> tuple[int, ...]:
    return Meeting(edge).shape


def _combining(combination: Combination) -> tuple[Take, Finish]:
    return partial(combination.add, 0), lambda: combination.result()[0]


def _ignore(loss: int, row: Tensor) -> None:
    return None


def _identity(gradient: Tensor) -> Tensor:
    return gradient


def _kind(edge: Edge) -> str:
    return "parameter" if type(edge[0]) is AccumulateGrad else f"output of {edge[0].name().removesuffix('Backward0')}"
