"""Rows at the parameters combined, and added to `.grad`. Takes no rows itself; no activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .._combine.combination import Shares
from .._combine.harm import Harm
from .._graph.passes import Row
from .._graph.sites import beside_shared
from .._torch import (
    has_hooks,
    storage_of,
    variable_of,
    wrappers_silent,
)
from .._transform import Site
from .averages import check_alike
from .backward import Backward
from .dot_grad import accumulate
from .explanation import Explanation, SiteExplained
from .fan_out import hidden_layers_refused
from .inner import MetricAt
from .refusals import check_dense, hides_who_reaches_what, refuse_layers
from .remembered import Remembered
from .shards import Shard, shards_of
from .taken_rows import RowsOfLosses, numbers_of, remember, rows_again, rows_of_losses
from .telling import HOOKS
from .weighted import combine_weighted


def combine_at_parameters(
    backward: Backward, *, every: bool = False, chosen: Sequence[Tensor] | None = None
) -> Explanation:
    """Rows at the shared parameters, or at those of them that were `chosen`: the others get the plain sum. Exclusive
    ones get their own loss's gradient, unless `every` one is to count.

    An exclusive parameter that stands in one operation with a shared one (the bias of a layer of which only one loss
    needs the value, and others derivatives) always counts: it is no head.
    """
    holding = backward.pipeline.holding
    if holding is not None and chosen is None:
        explanation = combine_weighted(backward, holding, all_count=every)
        if explanation is not None:
            return explanation
    shards: Sequence[Shard] = ()
    sinks: Sequence[Node] = ()
    with backward.taken_back(), hidden_layers_refused():
        rows = rows_again(backward)
        if rows is None:
            backward.look_at_all(nothing_changes=True)
            refuse_layers(backward)
            if any(backward.graph.shared(leaf) and has_hooks(variable_of(leaf)) for leaf in backward.graph.leaves()):
                backward.told.once(HOOKS)
            shards, sinks = shards_of(backward.parameters), backward.graph.sinks
            rows = rows_of_losses(backward, shards)
            rows.alone = _counting_alone(backward, rows, every)
            rows.opaque = hides_who_reaches_what(backward.graph)
            if backward.can_be_taken_back and not shards:
                remember(backward, rows)
        if chosen is not None:
            rows.choose(chosen)
        remembered = Remembered(backward, rows) if backward.pipeline.order.histories else None
        with wrappers_silent(sinks):
            combined = _combine(backward, rows, remembered, sharded=len(shards) > 0)
    gradients, held = combined.gradients, combined.held
    ranks = shards[0].replicas if shards else backward.ranks
    check_alike(ranks, [g for g, losses in zip(gradients, rows.owners, strict=True) if len(losses) > 0])
    if remembered is not None:
        remembered.finish(gradients, combined.shares)
        backward.agreed = remembered.losses
    with torch.no_grad():
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                gradients[i] = None  # so that it can be freed where it is added to one that is there
                own = gradient.layout is torch.strided and storage_of(gradient) not in held
                held.update({storage_of(gradient)} if own else ())
                accumulate(rows.targets[i], shards[i].whole(gradient) if shards else gradient, own=own)
    known, used = backward.known, (rows.how, backward.batching.used, combined.owners)
    if known.explained is None or known.of != used or backward.ranks.size > 1:
        known.explained, known.of = _explained(backward, rows, combined), used
    return known.explained


def _explained(backward: Backward, rows: RowsOfLosses, combined: _Combined) -> Explanation:
    sites = [
        SiteExplained("parameter", tuple(target.shape), tuple(backward.agreed.label(loss) for loss in sorted(losses)))
        for i, (target, losses) in enumerate(zip(rows.targets, combined.owners, strict=True))
        if len(losses) > 1 and rows.counts(i)
    ]
    why = 'at="parameters": single gradients of the shared parameters take a backward pass of the shared part per loss'
    if_slow = 'at="activations" takes one backward pass for all losses'
    return backward.explanation(rows.how, why, if_slow, sites, backward.batching.used)


def _counting_alone(backward: Backward, rows: RowsOfLosses, every: bool) -> list[bool]:
    """Which targets count where one loss alone reaches them: all that are asked for, and those beside a shared one."""
    if not backward.pipeline.has_gramian or not (every or any(len(owners) == 1 for owners in rows.owners)):
        return []
    beside = {id(variable_of(leaf)) for leaf in beside_shared(backward.graph, backward.is_parameter)}
    return [every or id(target) in beside for target in rows.targets]


def _combine(backward: Backward, rows: RowsOfLosses, remembered: Remembered | None, *, sharded: bool) -> _Combined:
    """The combined gradient of each target.

    Autograd may give one tensor to several targets, and what the rows were made of may keep them.
    """
    harm = None if sharded else _harm(backward, rows)
    stream = _without_zeros(rows) if rows.opaque else rows.stream
    stream = stream if harm is None else harm.followed(stream)
    stream = stream if remembered is None else remembered.rows(stream)
    enough = [1 if alone else 2 for alone in rows.alone or [False] * len(rows.owners)]
    shared = [i for i, owners in enumerate(rows.owners) if len(owners) >= enough[i] and rows.counts(i)]
    if any(rows.alone):
        rows.sites = [replace(site, counts_alone=counts) for site, counts in zip(rows.sites, rows.alone, strict=True)]
    if not backward.pipeline.gradient_transforms:
        shared = []  # rows are added up
    site_of = {i: site for site, i in enumerate(shared)}
    losses = backward.agreed if remembered is None else remembered.losses
    metric = None if backward.metric is None else partial(_measured, backward.metric, [rows.targets[i] for i in shared])
    combination = backward.pipeline.combination(losses, [rows.sites[i] for i in shared], metric)
    gradients: list[Tensor | None] = [None] * len(rows.targets)
    arrived: list[set[int]] = [set() for _ in rows.targets]
    held: set[int] = set()
    for position, found in stream:
        for i in range(len(found)):
            row, found[i] = found[i], None  # so that it can be freed
            if row is None:
                continue
            arrived[i].add(position)
            if row.layout is torch.strided:
                held.add(storage_of(row))
            if i in site_of:
                check_dense(row.layout is torch.strided)
                combination.add(site_of[i], position, row)
            else:
                before = gradients[i]
                gradients[i] = row if before is None else before + row
    if not any(arrived):
        raise RuntimeError(
            "No parameter got a gradient, so there is nothing to combine. With FSDP2, leave gradient synchronization "
            "on (set_requires_gradient_sync): rows that stay unsharded cannot be seen."
        )
    if harm is not None and backward.pipeline.watch is not None:
        harm.factors = backward.factors
        backward.pipeline.watch.follow(harm)
    for i, combined in zip(shared, combination.result() if shared else (), strict=True):
        gradients[i] = combined
    alone: Shares = dict.fromkeys(losses.indices, 1.0)
    traced = backward.pipeline.traced
    shares = [combination.shares(site_of[i]) if traced and i in site_of else alone for i in range(len(gradients))]
    return _Combined(gradients, shares, arrived, held)


@dataclass
class _Combined:
    """What the rows were combined to.

    Attributes:
        gradients: Of each target.
        shares: How much of each loss's row there is in it.
        owners: The losses that had a row there.
        held: The memory that is not our own.
    """

    gradients: list[Tensor | None]
    shares: list[Shares]
    owners: list[set[int]]
    held: set[int]


def _harm(backward: Backward, rows: RowsOfLosses) -> Harm | None:
    """Who keeps the rows until the step is done, if this step is looked at."""
    if backward.pipeline.watch is None or not backward.pipeline.watch.due:
        return None
    return Harm([backward.agreed.label(position) for position in range(len(backward.agreed))], rows.targets)


def _measured(metric: MetricAt, targets: Sequence[Tensor], site: int, rows: Tensor) -> Tensor:
    return metric(targets[site], rows)


def _without_zeros(rows: RowsOfLosses) -> Iterator[tuple[int, Row]]:
    """The rows, but where all of one's numbers at a target are zero."""
    for position, row in rows.stream:
        counts = _count_nonzero(row, rows.sites)
        for i, count in enumerate(counts):
            if not count:
                row[i] = None
        yield position, row


def _count_nonzero(row: Row, sites: Sequence[Site]) -> list[float]:
    """For each part of a row how many of its numbers are not zero, on all ranks that hold parts of it."""
    devices = dict.fromkeys(part.device for part in row if part is not None)
    counts = torch.zeros(len(row), device=next(iter(devices), None))
    for device in devices:  # each is waited for once
        here = [i for i, part in enumerate(row) if part is not None and part.device == device]
        parts = [part for i in here if (part := row[i]) is not None]
        counts[here] = torch.stack([numbers_of(part).count_nonzero() for part in parts]).to(counts)
    total: list[float] = sites[0].ranks.sum(counts).tolist()
    return total
