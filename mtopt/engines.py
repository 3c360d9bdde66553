"""One backward of several losses: rows at the chosen sites, combined, on into `.grad`. No optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .arrivals import Finish, Take, rows_taken
from .batching import Batching
from .combine import Combination
from .graph import AccumulateGrad, Edge, Meeting
from .ranks import refuse_ranks
from .refusals import check_dense, check_marked, check_meetings, check_real, refuse_layers
from .report import Report, SiteReport
from .rows import rows_below, rows_by_backward
from .sites import joint_groups, marked_edges
from .step import Step


def backward_plain(step: Step) -> Report:
    """Nothing to combine: autograd adds the rows up."""
    refuse_ranks(step.pipeline, step.process_group)
    step.run(step.starts())
    return step.report("one ordinary backward, rows summed by autograd")


def backward_at_activations(step: Step) -> Report:
    """The frontier: rows where the losses first meet, combined within one ordinary backward."""
    refuse_layers(step)
    meetings = [meeting for meeting in step.graph.frontier() if len(meeting.losses) > 1]
    check_meetings(step, meetings)
    on_leaf = any(type(meeting.edge[0]) is AccumulateGrad for meeting in meetings)
    refuse_ranks(step.pipeline, step.process_group, parameters=on_leaf)
    starts = step.starts()
    handlers = []
    for meeting in meetings:
        combination = step.pipeline.combination(step.losses, [None])
        for loss in meeting.roots:
            combination.add(0, loss, starts[loss])
            starts[loss] = torch.zeros_like(starts[loss])
        handlers.append(_combining(combination))
    sites = [step.site_report(_kind(meeting.edge), meeting.shape, meeting.losses) for meeting in meetings]
    report = step.report("one ordinary backward, rows combined where the losses meet", sites)
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
    refuse_ranks(step.pipeline, step.process_group)
    groups = [[edge] for edge in marked] if joint_dim is None else joint_groups(marked, joint_dim)
    meetings = {edge: step.graph.meeting_at(edge) for edge in marked}
    direct = [group for group in groups if len(group) == 1 and meetings[group[0]].separate]
    ahead = [group for group in groups if group not in direct]
    check_meetings(step, [meetings[edge] for edge in marked], joint=[group for group in groups if len(group) > 1])
    starts = step.starts()
    handlers: dict[Edge, tuple[Take, Finish]] = {}
    for (edge,) in direct:
        combination = step.pipeline.combination(step.losses, [marked[edge].activation])
        for loss in meetings[edge].roots:
            combination.add(0, loss, starts[loss])
        handlers[edge] = _combining(combination)
    if ahead:
        activations = {edge: marked[edge].activation for group in ahead for edge in group}
        for edge, combined in _combined_ahead(step, starts, ahead, activations, joint_dim or 0, batching).items():
            handlers[edge] = (_ignore, partial(_identity, combined))
    for edge in handlers:
        for loss in meetings[edge].roots:
            starts[loss] = torch.zeros_like(starts[loss])
    sites = [_group_report(step, group) for group in groups]
    how = "one ordinary backward, rows combined at the named modules"
    report = step.report(how + (", after VJPs from the losses to them" if ahead else ""), sites, batching.used)
    with rows_taken([meetings[edge] for edge in handlers], list(handlers.values())):
        step.run(starts)
    return report


def backward_at_parameters(step: Step, parameters: Sequence[Tensor], batching: Batching) -> Report:
    """Rows at the shared parameters; exclusive ones get their own loss's gradient."""
    refuse_layers(step)
    refuse_ranks(step.pipeline, step.process_group, parameters=True)
    leaves = list(step.graph.leaves())
    if any(node.name() == "CheckpointFunctionBackward" for node in step.graph.edges):
        # Reentrant checkpointing hides its parameters from the graph, and refuses autograd.grad.
        targets = [parameter for parameter in parameters if parameter.requires_grad]
        shared = list(range(len(targets)))
        owners = [list(range(len(step.losses)))] * len(targets)
        stream = partial(rows_by_backward, step.graph, parameters=targets, retain_graph=step.retain_graph)
        how = "one whole backward per loss, because of reentrant checkpointing"
    else:
        targets = [leaf.variable for leaf in leaves]  # type: ignore[attr-defined]
        shared = [i for i, leaf in enumerate(leaves) if step.graph.shared(leaf)]
        if not shared:
            raise RuntimeError("The `losses` share no parameter, so there is nothing to combine.")
        edges = [(leaf, 0) for leaf in leaves]
        owners = [step.graph.losses_at(edge) for edge in edges]
        stream = partial(rows_below, step.graph, targets=edges, batching=batching, retain_graph=step.retain_graph)
        how = "exclusive parts once, rows of the shared parameters loss by loss"
    # One compiled node for a whole model hides which loss reaches what: its rows of zeros are no rows.
    opaque = any(node.name() == "CompiledFunctionBackward" for node in step.graph.edges)
    for i in shared:
        check_real(targets[i].dtype)
    site_of = {i: site for site, i in enumerate(shared)}
    combination = step.pipeline.combination(step.losses, [None] * len(site_of))
    gradients: list[Tensor | None] = [None] * len(targets)

    def take(loss: int, i: int, row: Tensor | None) -> None:
        if row is None or (opaque and not row.any()):
            return
        if i in site_of:
            check_dense(row.layout is torch.strided)
            combination.add(site_of[i], loss, row)
        else:
            gradients[i] = row

    for loss, rows in stream(starts=step.starts()):
        for i in range(len(rows)):
            take(loss, i, rows[i])
    for i, combined in zip(shared, combination.result(), strict=True):
        gradients[i] = combined
    for parameter, gradient in zip(targets, gradients, strict=True):
        if gradient is not None:
            accumulate(parameter, gradient)
    sites = [step.site_report("parameter", tuple(targets[i].shape), owners[i]) for i in shared]
    return step.report(how, sites, batching.used)


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Add to `.grad` as autograd does: in the parameter's memory layout, and calling the post-accumulate hooks."""
    if not parameter.requires_grad:
        return
    with torch.no_grad():
        if parameter.grad is not None:
            parameter.grad.add_(gradient)
        elif gradient.layout is torch.strided and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        else:
            parameter.grad = gradient.detach()
    for hook in (parameter._post_accumulate_grad_hooks or {}).values():
        hook(parameter)


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
        combinations.append(step.pipeline.combination(step.losses, [torch.cat(known, dim) if known else None]))
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


def _group_report(step: Step, group: Sequence[Edge]) -> SiteReport:
    calls = f", {len(group)} calls decided together" if len(group) > 1 else ""
    return step.site_report(_kind(group[0]) + calls, _shape(group[0]), step.losses_at(group))


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
