"""Rows at the shared parameters: from the graph, of all ranks, or shard by shard. No activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .averages import averaged, check_alike
from .batching import Batching
from .compiled import hidden_layers_refused
from .graph import Edge
from .methods.base import Site
from .refusals import check_dense, check_real, refuse_layers
from .report import Report, SiteReport
from .rows import Rows, rows_below, rows_by_backward
from .shards import Shard, shards_of
from .step import Step


@dataclass
class _Rows:
    """The rows of a step.

    Attributes:
        targets: The tensors whose `.grad` is added to.
        owners: The losses that may reach each, by position in `step.agreed`; none for what is no parameter, whose rows
            are only added up.
        sites: What a transform is told of each.
        stream: Each loss's gradient for each target, loss by loss.
        how: In words.
    """

    targets: Sequence[Tensor]
    owners: Sequence[Sequence[int]]
    sites: Sequence[Site]
    stream: Iterable[tuple[int, Rows]]
    how: str


def backward_at_parameters(step: Step, batching: Batching) -> Report:
    """Rows at the shared parameters; exclusive ones get their own loss's gradient."""
    refuse_layers(step)
    shards = shards_of(step.parameters)
    if shards:
        rows = _rows_of_shards(step, shards)
    elif any(node.name() == "CheckpointFunctionBackward" for node in step.graph.edges):
        rows = _rows_by_backward(step)
    elif step.ranks.size > 1:
        rows = _rows_of_all_ranks(step, batching)
    else:
        rows = _rows_of_graph(step, batching)
    with step.graph.wrappers_silent(), hidden_layers_refused():
        gradients, owners = _combine(step, rows)
    ranks = shards[0].replicas if shards else step.ranks
    check_alike(ranks, [g for g, losses in zip(gradients, rows.owners, strict=True) if len(losses) > 0])
    for i, gradient in enumerate(gradients):
        if gradient is not None:
            gradients[i] = None  # so that it can be freed where it is added to one that is there
            accumulate(rows.targets[i], shards[i].whole(gradient) if shards else gradient)
    sites = [
        SiteReport("parameter", tuple(target.shape), tuple(step.agreed.label(loss) for loss in sorted(losses)))
        for target, losses in zip(rows.targets, owners, strict=True)
        if len(losses) > 1
    ]
    reason = 'at="parameters": single gradients of the shared parameters take a backward of the shared part per loss'
    return step.report(rows.how, reason, 'at="activations" takes one backward for all losses', sites, batching.used)


def _rows_of_graph(step: Step, batching: Batching) -> _Rows:
    leaves = sorted(step.graph.leaves(), key=lambda leaf: step.place.get(id(leaf.variable), len(step.place)))  # type: ignore[attr-defined]
    edges = [(leaf, 0) for leaf in leaves]
    owners = [step.graph.losses_at(edge) if step.is_parameter(edge[0]) else [] for edge in edges]
    targets = [leaf.variable for leaf in leaves]  # type: ignore[attr-defined]
    _check_shared(targets, owners)
    return _Rows(
        targets,
        owners,
        [Site(step.agreed)] * len(targets),
        rows_below(step.graph, step.starts(), edges, batching, retain_graph=step.retain_graph),
        "exclusive parts once, rows of the shared parameters loss by loss",
    )


def _rows_by_backward(step: Step) -> _Rows:
    """Reentrant checkpointing hides its parameters from the graph, and refuses autograd.grad."""
    if step.ranks.size > 1:
        raise RuntimeError(
            'Reentrant checkpointing takes a whole backward per loss with `at="parameters"`, which the ranks cannot '
            "follow. Use torch.utils.checkpoint with use_reentrant=False."
        )
    targets = [parameter for parameter in step.parameters if parameter.requires_grad]
    return _Rows(
        targets,
        [range(len(step.agreed))] * len(targets),
        [Site(step.agreed)] * len(targets),
        rows_by_backward(step.graph, step.starts(), targets, retain_graph=step.retain_graph),
        "one whole backward per loss, because of reentrant checkpointing",
    )


def _rows_of_shards(step: Step, shards: Sequence[Shard]) -> _Rows:
    """FSDP2 adds up and splits the gradients in its own backward: its shards are read loss by loss."""
    step.agree(sites=[step.losses.indices])
    targets = [shard.parameter for shard in shards]

    def stream() -> Iterator[tuple[int, Rows]]:
        starts = step.starts()
        for loss, rows in rows_by_backward(step.graph, starts, targets, retain_graph=step.retain_graph):
            parts = [None if row is None else shard.local(row) for shard, row in zip(shards, rows, strict=True)]
            rows.clear()
            yield loss, parts

    return _Rows(
        targets,
        [range(len(step.agreed))] * len(targets),
        [shard.site(step.agreed) for shard in shards],
        stream(),
        "one backward per loss, rows combined shard by shard",
    )


def _rows_of_all_ranks(step: Step, batching: Batching) -> _Rows:
    """`autograd.grad` passes by DistributedDataParallel, so the rows are averaged here."""
    edges: list[Edge | None] = [None] * len(step.parameters)
    inputs: list[Edge] = []  # these differ from rank to rank
    for leaf in step.graph.leaves():
        variable: Tensor = leaf.variable  # type: ignore[attr-defined]
        if not step.is_parameter(leaf):
            inputs.append((leaf, 0))
        elif id(variable) in step.place:
            edges[step.place[id(variable)]] = (leaf, 0)
        else:
            raise RuntimeError(
                f"The `losses` reach a parameter of shape {tuple(variable.shape)} that the optimizer does not have, so "
                f'that its gradient cannot be averaged over the ranks with `at="parameters"`. Add it to the optimizer, '
                f"or set requires_grad=False."
            )
    step.agree(own_reduction=True)
    masks = [0] * len(edges)
    for facts in step.everywhere:
        for i, mask in facts.owned:
            masks[i] |= mask
    reached = [i for i, mask in enumerate(masks) if mask]
    targets = [step.parameters[i] for i in reached]
    owners = [[p for p, index in enumerate(step.agreed.indices) if masks[i] >> index & 1] for i in reached]
    _check_shared(targets, owners)
    targets += [leaf.variable for leaf, _ in inputs]  # type: ignore[attr-defined]
    owners += [[] for _ in inputs]
    edges = [*(edges[i] for i in reached), *inputs]
    return _Rows(
        targets,
        owners,
        [Site(step.agreed)] * len(targets),
        averaged(step, targets, owners, edges, batching),
        "exclusive parts once, rows of the shared parameters loss by loss, averaged over the ranks",
    )


def _combine(step: Step, rows: _Rows) -> tuple[list[Tensor | None], list[set[int]]]:
    """The combined gradient of each target, and the losses that had a row there."""
    shared = [i for i, owners in enumerate(rows.owners) if len(owners) > 1]
    site_of = {i: site for site, i in enumerate(shared)}
    combination = step.pipeline.combination(step.agreed, [rows.sites[i] for i in shared])
    gradients: list[Tensor | None] = [None] * len(rows.targets)
    arrived: list[set[int]] = [set() for _ in rows.targets]
    # One node for a whole model hides which loss reaches what: its rows of zeros are no rows.
    hiding = ("CompiledFunctionBackward", "CheckpointFunctionBackward")
    opaque = any(node.name() in hiding for node in step.graph.edges)
    for loss, found in rows.stream:
        counts = _count_nonzero(found, rows.sites) if opaque else None
        for i in range(len(found)):
            row, found[i] = found[i], None  # so that it can be freed
            if row is None or (counts is not None and not counts[i]):
                continue
            arrived[i].add(loss)
            if i in site_of:
                check_dense(row.layout is torch.strided)
                combination.add(site_of[i], loss, row)
            else:
                before = gradients[i]
                gradients[i] = row if before is None else before + row
    if not any(arrived):
        raise RuntimeError(
            "No parameter got a gradient, so there is nothing to combine. With FSDP2, leave gradient synchronization "
            "on (set_requires_gradient_sync): rows that stay unsharded cannot be seen."
        )
    for i, combined in zip(shared, combination.result(), strict=True):
        gradients[i] = combined
    return gradients, arrived


def _count_nonzero(rows: Rows, sites: Sequence[Site]) -> list[float]:
    """For each row how many of its numbers are not zero, on all ranks that hold parts of it."""
    counts = torch.stack([torch.zeros(()) if row is None else row.count_nonzero().float().cpu() for row in rows])
    total: list[float] = sites[0].ranks.sum(counts).tolist()
    return total


def _check_shared(targets: Sequence[Tensor], owners: Sequence[Sequence[int]]) -> None:
    shared = [target for target, losses in zip(targets, owners, strict=True) if len(losses) > 1]
    if not shared:
        raise RuntimeError("The `losses` share no parameter, so there is nothing to combine.")
    for target in shared:
        check_real(target.dtype)


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Add to `.grad` as autograd does: in the parameter's memory layout, and calling the post-accumulate hooks."""
    if not parameter.requires_grad:
        return
    with torch.no_grad():
        if parameter.grad is not None:
            parameter.grad.add_(gradient)
        elif gradient.layout is torch.strided and (gradient.stride() != parameter.stride() or gradient._is_view()):
            parameter.grad = torch.empty_like(parameter).copy_(gradient)  # nor does it keep a larger tensor alive
        else:
            parameter.grad = gradient.detach()
    for hook in (parameter._post_accumulate_grad_hooks or {}).values():
        hook(parameter)
