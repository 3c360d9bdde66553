"""Rows where the losses have met, combined within one ordinary backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .._combine.combination import Combination
from .._graph.loss_graph import Meeting
from .._graph.losses import cotangents
from .._graph.recall import RecalledTop, can_be_recalled
from .._graph.rows import check_rows_below, rows_at
from .._graph.sites import final_sites, nested_sites
from .._graph.supports import Edge, State, connected
from .._graph.taking import Finish, Take, replaced, rows_taken
from .._torch import AccumulateGrad, may_be_used_once, operator_of, wrappers_silent
from .._transform import Site
from .backward import Backward
from .explanation import NEAR_PLAIN, Explanation
from .fan_out import hidden_layers_refused
from .refusals import DIFFERENT_PARTS, check_meetings, refuse_layers

MOST_DESCENTS = 8
FEW, LARGE = 16, 0.2  # nodes, and share of the graph: from there on the price of taking it once per loss is told


def combine_at_activations(backward: Backward) -> Explanation:
    """Rows where all losses have met that will ever meet: a decision there has every row.

    Where each contribution to a site belongs to one loss, the rows are taken within the one ordinary backward pass.
    Where losses share nodes above it (a common head), VJPs of that part get them first.
    """
    known = backward.known
    if backward.can_be_taken_back and known.top is not None and known.explained is not None:
        recalled = known.top.sites_in(backward.origins, backward.is_parameter)
        if recalled is not None:
            _run(backward, backward.starts(), recalled, {})
            return known.explained
    refuse_layers(backward)
    sites, above = sites_of(backward)
    # Where they meet at a parameter its rows are needed from all ranks, as they are where a transform asks for it.
    leaves = [m for m in sites if type(m.edge[0]) is AccumulateGrad and backward.is_parameter(m.edge[0])]
    ahead = [meeting for meeting in sites if not meeting.separate]
    if ahead:
        check_rows_below(backward.graph, [meeting.edge for meeting in sites], backward.batching, retain_graph=True)
    together = sites if backward.pipeline.sums_over_ranks else leaves
    backward.agree(combines=len(sites) > 0, sites=[_signature(backward, meeting) for meeting in together])
    starts = backward.starts()
    if ahead and above > max(FEW, LARGE * len(backward.graph.edges)):
        backward.told.once(
            f"The losses share {above} of the {len(backward.graph.edges)} nodes of the graph above where all have met, "
            f"and that part is differentiated once for each of them. "
            f'`at="nested"` takes one backward pass for any number of losses: it decides wherever some meet.'
        )
    combined = _combined_ahead(backward, starts, sites, ahead) if ahead else {}
    explanation = _explained(backward, sites, ahead, above)
    if not backward.graph.whole and can_be_recalled(backward.graph, backward.is_parameter):
        known.top, known.explained = RecalledTop(backward.graph, sites), explanation
    _run(backward, starts, sites, combined)
    return explanation


def _run(
    backward: Backward, starts: list[Tensor], sites: Sequence[Meeting], combined: dict[Edge, Tensor | None]
) -> None:
    """The one backward pass, with the rows combined at the sites; at some they were before."""
    # Behind the hooks on a site's tensor, which each row has passed already; but not where more flows to it from above.
    nested = bool(combined) and backward.graph.nested(sites)
    behind = {} if nested else {edge: new for edge, new in combined.items() if new is not None}
    taken = [meeting for meeting in sites if meeting.edge not in behind]
    handlers = []
    for meeting in taken:
        if meeting.edge in combined:
            handlers.append(handing_on(combined[meeting.edge]))
        else:
            is_leaf = type(meeting.edge[0]) is AccumulateGrad and backward.is_parameter(meeting.edge[0])
            of_all_ranks = is_leaf and backward.ranks.size > 1
            combination = _RowsOfAllRanks(backward) if of_all_ranks else backward.combination_at(None)
            for position in meeting.roots:
                combination.add(0, position, starts[position])
            handlers.append(combining(combination))
        for position in meeting.roots:
            starts[position] = torch.zeros_like(starts[position])
    # In a part that nobody has looked at in this step.
    hidden = hidden_layers_refused() if backward.can_be_taken_back else nullcontext()
    with rows_taken(taken, handlers), replaced(behind), hidden:
        backward.run(starts)


def sites_of(backward: Backward) -> tuple[list[Meeting], int]:
    """The final sites, and how many nodes above them several losses share.

    Where losses are cut out of larger tensors, the graph cannot tell whether they share coordinates below. Their rows
    can: where no two overlap, the site is further down.
    """
    if not backward.graph.whole:
        found = _sites_of_top(backward)
        if found is not None:
            return found
        backward.look_at_all()
        refuse_layers(backward)
    graph, apart = backward.graph, set[Node]()
    graph.look_through_parts()
    for _ in range(MOST_DESCENTS):
        sites, above = final_sites(graph, backward.is_parameter, apart)
        if not backward.has_several:
            return sites, above
        if apart and not sites:
            break
        check_meetings(backward, sites)
        decided = _overlapping(backward, sites)
        if all(decided):
            backward.tell_left_out(set().union(*decided))
            return sites, above
        apart |= {meeting.edge[0] for meeting, losses in zip(sites, decided, strict=True) if not losses}
    raise RuntimeError(DIFFERENT_PARTS)


def _sites_of_top(backward: Backward) -> tuple[list[Meeting], int] | None:
    """The same from the top of the graph alone; `None` where that does not tell all."""
    graph = backward.graph
    if graph.bundled or graph.narrowed or not all(map(backward.is_parameter, graph.leaves())):
        return None
    sites, above = final_sites(graph, backward.is_parameter)
    if not sites or not all(meeting.separate for meeting in sites):
        return None
    if graph.cut and _places(backward, sites) not in backward.overlaps:
        return None
    check_meetings(backward, sites)
    backward.tell_left_out(set().union(*_overlapping(backward, sites)))
    return sites, above


def combine_nested(backward: Backward) -> Explanation:
    """Rows wherever losses meet, in one ordinary backward: where a further one joins, what was combined is one row."""
    backward.look_at_all()
    backward.graph.look_through_parts()
    refuse_layers(backward)
    sites = nested_sites(backward.graph, backward.is_parameter)
    if backward.has_several:
        check_meetings(backward, sites)
        backward.tell_left_out(
            {position for meeting in sites for position in backward.graph.positions_entering(meeting)}
        )
    together = sites if backward.pipeline.sums_over_ranks else []
    backward.agree(combines=len(sites) > 0, sites=[_signature(backward, meeting) for meeting in together])
    starts = backward.starts()
    handlers = []
    for meeting in sites:
        combination = backward.combination_at(None)
        for position in meeting.roots:
            combination.add(0, position, starts[position])
            starts[position] = torch.zeros_like(starts[position])
        handlers.append(combining(combination))
    graph = backward.graph
    explained = [backward.site_explained(kind_of(m.edge), m.shape, graph.positions_entering(m)) for m in sites]
    how = "one ordinary backward pass, rows combined wherever losses meet"
    why = 'at="nested": where a further loss joins, what was combined above is one row'
    explanation = backward.explanation(how, why, NEAR_PLAIN, explained)
    with rows_taken(sites, handlers):
        backward.run(starts)
    return explanation


def _combined_ahead(
    backward: Backward, starts: Sequence[Tensor], sites: Sequence[Meeting], ahead: Sequence[Meeting]
) -> dict[Edge, Tensor | None]:
    """The combined gradient at the sites above which losses share a part, from VJPs of that part."""
    combinations = {i: backward.combination_at(None) for i, meeting in enumerate(sites) if meeting in ahead}
    with wrappers_silent(backward.graph.sinks), hidden_layers_refused():
        for position, row in rows_at(backward.graph, starts, sites, backward.batching):
            for i, combination in combinations.items():
                if (gradient := row[i]) is not None:
                    combination.add(0, position, gradient)
    return {sites[i].edge: combination.result()[0] for i, combination in combinations.items()}


def _explained(backward: Backward, sites: Sequence[Meeting], ahead: Sequence[Meeting], above: int) -> Explanation:
    graph = backward.graph
    explained = [
        backward.site_explained(kind_of(meeting.edge), meeting.shape, graph.positions_entering(meeting))
        for meeting in sites
    ]
    how, if_slow = "one ordinary backward pass, rows combined where the losses meet", NEAR_PLAIN
    why = 'at="activations": where all losses have met, one backward pass has all their gradients'
    if ahead:
        how += ", after VJPs of what several losses share above"
        why += f"; {above} of {len(graph.edges)} nodes are shared above and differentiated once per loss"
        if_slow = 'let the losses part higher up, or use at="nested": one backward pass for any number of losses'
    return backward.explanation(how, why, if_slow, explained, backward.batching.used if ahead else "")


class _RowsOfAllRanks:
    """Keeps the rows at a parameter, where losses meet directly, until they are averaged over the ranks."""

    def __init__(self, backward: Backward) -> None:
        self.backward = backward
        self.rows: dict[int, Tensor] = {}

    def add(self, site: int, position: int, row: Tensor) -> None:
        self.rows[position] = row

    def result(self) -> list[Tensor | None]:
        positions = sorted(self.rows)
        mean = self.backward.ranks.sum(torch.stack([self.rows[p] for p in positions]) / self.backward.ranks.size)
        combination = self.backward.pipeline.combination(self.backward.losses, [Site(self.backward.agreed)])
        for position, row in zip(positions, mean, strict=True):
            combination.add(0, position, row)
        return combination.result()


def _signature(backward: Backward, meeting: Meeting) -> tuple[object, ...]:
    """A meeting as all ranks must have it: at a parameter with the same losses and shape."""
    if type(meeting.edge[0]) is not AccumulateGrad:
        return (meeting.edge[0].name(),)
    return (meeting.shape, *(backward.losses.indices[position] for position in meeting.positions))


def _overlapping(backward: Backward, sites: Sequence[Meeting]) -> list[set[int]]:
    """The losses that share coordinates at each site. Where the graph cannot tell, the rows do: once, as it is slow."""
    entering = [set(backward.graph.positions_entering(meeting)) for meeting in sites]
    if not backward.graph.cut:
        return entering
    key = _places(backward, sites)
    if key not in backward.overlaps and any(map(may_be_used_once, backward.graph.edges)):
        return entering
    if key not in backward.overlaps:
        states: list[State] = [{} for _ in sites]
        ones = cotangents(backward.graph.roots, None)
        with wrappers_silent(backward.graph.sinks), hidden_layers_refused():
            for position, row in rows_at(backward.graph, ones, sites, backward.batching):
                for state, part in zip(states, row, strict=True):
                    if part is not None:
                        mask = part != 0
                        state[position] = mask if bool(mask.any()) else None  # a head that starts at zero
        backward.overlaps[key] = [
            {position for group in connected(state) if len(group) > 1 for position in group} for state in states
        ]
    return backward.overlaps[key]


def _places(backward: Backward, sites: Sequence[Meeting]) -> tuple[object, ...]:
    """Some sites, as they are in every step."""
    return tuple((m.edge[0].name(), m.shape, *backward.graph.positions_entering(m)) for m in sites)


def handing_on(gradient: Tensor | None) -> tuple[Take, Finish]:
    """Let a gradient that is known ahead flow on from a site."""
    return lambda position, row: None, lambda: gradient


def combining(combination: Combination) -> tuple[Take, Finish]:
    return partial(combination.add, 0), lambda: combination.result()[0]


def kind_of(edge: Edge) -> str:
    """What a site is, in words."""
    return "parameter" if type(edge[0]) is AccumulateGrad else f"output of {operator_of(edge[0])}"
