r"""Where all losses that will ever meet have met: the activations at which a decision has every row. Takes no rows.

loss 0   loss 1   loss 2          A node is final if two losses or more reach it, if they hang together at its
  |        |        |             coordinates, and if below it no further loss joins at an activation.
  +--[h]---+        |             h is reached by 0 and 1 only, and below it 2 joins: it is not final.
      \             /             f is: there all three have met. It is a site, as gradients come to it from nodes
       \           /              that are not final. Below it everything is final, and there is no other site.
        +---[f]---+
             |                    A parameter, or what is made of parameters alone, is no activation: a loss that
           trunk                  joins there only (a penalty on the weights) has no decision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import reduce
from operator import or_

from torch.autograd.graph import Node

from .._torch import OF_PARAMETERS, AccumulateGrad, scaled_by_a_number
from .loss_graph import LossGraph, Meeting, positions_in, several
from .supports import Edge


def final_sites(
    graph: LossGraph, is_parameter: Callable[[Node], bool], apart: Collection[Node] = ()
) -> tuple[list[Meeting], int]:
    """How the gradients come to each site, and how many nodes above the sites several losses share.

    `apart` are nodes at which the losses do not hang together, though the graph does not show it.
    """
    derived = made_of_parameters(graph, is_parameter)
    final = _final(graph, derived, apart)
    sites = _entered(graph, final)
    if not sites:  # but where one tensor is all that they share, a decision there is complete, whatever made it
        everything = _final(graph, set(), apart)
        alone = _entered(graph, everything)
        if len(alone) == 1:
            derived, final, sites = set(), everything, alone
    above = sum(graph.shared(node) for node in graph.edges if node not in final and node not in derived)
    return sites, above


def nested_sites(graph: LossGraph, is_parameter: Callable[[Node], bool]) -> list[Meeting]:
    """Wherever losses meet. Where a further one joins, what was combined above comes as one row, of its first loss."""
    derived = made_of_parameters(graph, is_parameter)
    coming: dict[
        Edge, dict[int, list[tuple[Node, int]]]
    ] = {}  # at each tensor the entries, by the losses that they bring
    for node, children in graph.edges.items():
        for k, edge in enumerate(children):
            if edge[0] is not None and graph.reach[node] and edge[0] not in derived:
                coming.setdefault(edge, {}).setdefault(graph.going_on(node, k), []).append((node, k))  # type: ignore[arg-type]
    roots: dict[Edge, list[int]] = {}
    for position, root in enumerate(graph.roots):
        roots.setdefault(root, []).append(position)
    sites = []
    for edge, by_losses in coming.items():
        masks = [*by_losses, *(1 << position for position in roots.get(edge, ()))]
        if all(mask != reduce(or_, masks) for mask in masks) and graph.shared(edge[0]) and graph.together(edge[0]):
            firsts = _told_apart(by_losses)
            entries = [(*entry, firsts[mask]) for mask, of in by_losses.items() for entry in of]
            sites.append(Meeting(edge, entries, roots.get(edge, [])))
    return sites


def _told_apart(masks: Iterable[int]) -> dict[int, int]:
    """For each set of losses one of them that stands for it: the first that stands for no smaller set."""
    chosen: dict[int, int] = {}
    for mask in sorted(masks, key=lambda mask: (mask.bit_count(), mask)):
        free = [position for position in positions_in(mask) if position not in chosen.values()]
        chosen[mask] = (free or positions_in(mask))[0]
    return chosen


def _final(graph: LossGraph, derived: set[Node], apart: Collection[Node]) -> set[Node]:
    final: set[Node] = set()
    for node in reversed(graph.edges):
        reach = graph.reach[node]
        if several(reach) and node not in derived and node not in apart and graph.together(node):
            below = (child for child, _ in graph.edges[node] if child is not None and child not in derived)
            if all(graph.reach[child] == reach and child in final for child in below if graph.reach[child]):
                final.add(node)
    return final


def _entered(graph: LossGraph, final: set[Node]) -> list[Meeting]:
    """The tensors at which gradients of two losses or more come from nodes that are not final."""
    edges: dict[Edge, None] = {root: None for root in graph.roots if root[0] in final}
    for node, children in graph.edges.items():
        if node not in final and graph.reach[node]:
            edges |= {edge: None for edge in children if edge[0] in final}  # type: ignore[misc]
    meetings = graph.meetings_at(edges, final).values()
    return [meeting for meeting in meetings if not meeting.separate or len(meeting.positions) > 1]


def made_of_parameters(graph: LossGraph, is_parameter: Callable[[Node], bool]) -> set[Node]:
    """Parameters, and the nodes that make other weights of them: views, products with a number, normalized weights."""
    derived: set[Node] = set()
    for node in reversed(graph.edges):
        children = graph.edges[node]
        if type(node) is AccumulateGrad:
            if is_parameter(node):
                derived.add(node)
        elif children and node.name() in OF_PARAMETERS:
            made_of = {child for child, _ in children}
            if made_of <= derived or (made_of - derived == {None} and scaled_by_a_number(node)):
                derived.add(node)
    return derived


def beside_shared(graph: LossGraph, is_parameter: Callable[[Node], bool]) -> set[Node]:
    """Parameters that one loss alone reaches, in an operation in which a shared one stands, too."""
    derived = made_of_parameters(graph, is_parameter)
    of_shared: set[Node | None] = set()
    found: set[Node] = set()
    for node in reversed(graph.edges):
        made = {child for child, _ in graph.edges[node]}
        if node in derived and (several(graph.reach[node]) or made & of_shared):
            of_shared.add(node)
        elif made & of_shared:
            found |= {child for child in made & derived if type(child) is AccumulateGrad} - of_shared
    return found


def in_one_operation(graph: LossGraph, is_parameter: Callable[[Node], bool]) -> list[set[Node]]:
    """The parameters that stand in an operation together, where there are several."""
    derived = made_of_parameters(graph, is_parameter)
    leaves: dict[Node, set[Node]] = {}
    found = []
    for node in reversed(graph.edges):
        below = [child for child, _ in graph.edges[node] if child in derived]
        here = {node} if type(node) is AccumulateGrad else set().union(*(leaves[child] for child in below))
        if node in derived:
            leaves[node] = here
        elif len(here) > 1:
            found.append(here)
    return found
