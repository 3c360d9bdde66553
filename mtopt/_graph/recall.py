"""The top of a graph as it was in an earlier step, and whether this step's is the same. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.autograd.graph import Node

from .._torch import AccumulateGrad, scales, sequence_number
from .loss_graph import LossGraph, Meeting, metadata_of
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
    """Whether the nodes' kinds, and how they hang together, tell all of a top: not, if numbers could change it."""
    weights = {None, *made_of_parameters(graph, is_parameter), *graph.leaves()}
    scaled = (children for node, children in graph.edges.items() if scales(node))
    return not any(child is None for children in scaled if {c for c, _ in children} <= weights for child, _ in children)


class Recalled:
    """The top of a graph, and the sites that were found in it, by the numbers of its nodes, without them."""

    def __init__(self, graph: LossGraph, sites: Sequence[Meeting]) -> None:
        number = {node: i for i, node in enumerate(graph.edges)}
        self.roots = [(number[node], output) for node, output in graph.roots]
        self.kinds = [type(node) for node in graph.edges]
        self.children = [
            (number[node], [None if child is None else (number[child], output) for child, output in children])
            for node, children in graph.edges.items()
            if children
        ]
        self.leaves = [i for i, kind in enumerate(self.kinds) if kind is AccumulateGrad]
        self.rest = sorted(set(range(len(number))) - {i for i, _ in self.children} - set(self.leaves))
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
        nodes = self._nodes_in(roots)
        if nodes is None or not all(is_parameter(nodes[i]) for i in self.leaves):
            return None
        least = sequence_number(nodes[self.children[-1][0]])
        if any(sequence_number(nodes[i]) > least for i in self.rest):
            return None
        return self._bound(nodes)

    def _nodes_in(self, roots: Sequence[Edge]) -> list[Node] | None:
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
