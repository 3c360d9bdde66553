"""A graph, or its top, as it was in an earlier step, and whether this step's is the same. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.autograd.graph import Node

from .._torch import AccumulateGrad, scales, sequence_number
from .loss_graph import LossGraph, Meeting, metadata_of, reached_by
from .sites import made_of_parameters
from .supports import Edge

Place = tuple[int, int]
"""An edge: the number of its node, and of the node's output."""


@dataclass(frozen=True)
class _Site:
    """A meeting, by numbers of nodes."""

    place: Place
    entries: list[tuple[int, int, int]]
    roots: list[int]
    shape: tuple[int, ...]
    dtype: torch.dtype


def can_be_recalled(graph: LossGraph, is_parameter: Callable[[Node], bool]) -> bool:
    """Whether the nodes' kinds, and how they hang together, tell all of it: not, if numbers could change that."""
    weights = {None, *made_of_parameters(graph, is_parameter), *graph.leaves()}
    scaled = (children for node, children in graph.edges.items() if scales(node))
    return not any(child is None for children in scaled if {c for c, _ in children} <= weights for child, _ in children)


def _numbers(graph: LossGraph) -> dict[Node | None, int]:
    return {node: i for i, node in enumerate(graph.edges)}


class Outline:
    """A graph, or its top, by the numbers of its nodes, without them."""

    def __init__(self, graph: LossGraph, number: Mapping[Node | None, int]) -> None:
        self.roots = [(number[node], output) for node, output in graph.roots]
        self.kinds = [type(node) for node in graph.edges]
        self.children = [
            (number[node], [None if child is None else (number[child], output) for child, output in children])
            for node, children in graph.edges.items()
            if children
        ]
        self.leaves = [i for i, kind in enumerate(self.kinds) if kind is AccumulateGrad]
        self.rest = sorted(set(range(len(self.kinds))) - {i for i, _ in self.children} - set(self.leaves))

    def nodes_in(self, roots: Sequence[Edge]) -> list[Node] | None:
        """The nodes by their numbers, if they are of the same kinds, and hang together in the same way."""
        nodes: list[Node | None] = [None] * len(self.kinds)
        for (i, output), (root, found) in zip(self.roots, roots, strict=True):
            if output != found or nodes[i] not in (None, root):
                return None
            nodes[i] = root
        for i, children in self.children:
            node = nodes[i]
            edges = () if node is None else node.next_functions
            if len(edges) != len(children):
                return None
            for place, (child, found) in zip(children, edges, strict=True):
                if child is None or place is None:
                    if (child is None) != (place is None):
                        return None
                elif place[1] != found or nodes[place[0]] not in (None, child):
                    return None
                else:
                    nodes[place[0]] = child
        alike = list(map(type, nodes)) == self.kinds and len(set(nodes)) == len(nodes)
        return nodes if alike else None  # type: ignore[return-value]


class RecalledTop:
    """The top of a graph, and the sites that were found in it."""

    def __init__(self, graph: LossGraph, sites: Sequence[Meeting]) -> None:
        number = _numbers(graph)
        self.outline = Outline(graph, number)
        self.sites = [
            _Site(
                (number[site.edge[0]], site.edge[1]),
                [(number[node], k, position) for node, k, position in site.entries],
                site.roots,
                site.shape,
                site.dtype,
            )
            for site in sites
        ]

    def sites_in(self, roots: Sequence[Edge], is_parameter: Callable[[Node], bool]) -> list[Meeting] | None:
        """The same sites below other losses; `None` if the top of their graph is another."""
        nodes = self.outline.nodes_in(roots)
        if nodes is None or not all(is_parameter(nodes[i]) for i in self.outline.leaves):
            return None
        least = sequence_number(nodes[self.outline.children[-1][0]])
        if any(sequence_number(nodes[i]) > least for i in self.outline.rest):
            return None
        return self._bound(nodes)

    def _bound(self, nodes: Sequence[Node]) -> list[Meeting] | None:
        meetings = []
        for site in self.sites:
            edge = nodes[site.place[0]], site.place[1]
            made = metadata_of(edge)
            if tuple(made.shape) != site.shape or made.dtype != site.dtype:
                return None
            entries = [(nodes[i], k, position) for i, k, position in site.entries]
            meetings.append(Meeting(edge, entries, list(site.roots)))
        return meetings


class RecalledRows:
    """A whole graph, and which loss reaches which parameters, where each loss is taken by one pass.

    Args:
        graph: The graph.
        targets: The leaves of the parameters, in their order.
        apart: Whether each pass frees what it has run.
    """

    def __init__(self, graph: LossGraph, targets: Sequence[Edge], *, apart: bool) -> None:
        number = _numbers(graph)
        self.outline = Outline(graph, number)
        self.targets = [number[node] for node, _ in targets]
        self.reached = [reached_by(graph, position, targets) for position in range(len(graph.roots))]
        self.apart = apart

    def targets_in(self, roots: Sequence[Edge]) -> list[Edge] | None:
        """The same leaves below other losses; `None` if their graph is another."""
        nodes = self.outline.nodes_in(roots)
        return None if nodes is None else [(nodes[i], 0) for i in self.targets]
