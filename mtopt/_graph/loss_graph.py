r"""The autograd graph below a list of losses: which losses reach which node. Runs nothing, keeps nothing.

loss 0    loss 1    loss 2        `reach` of a node is a bit mask of the losses above it: 001, 010, 100 here.
  |          |        |
 001        010      100          exclusive: one bit. Such a node belongs to one loss, which may free it.
   \        /         |
 ---\------/----------|----       The frontier is the edges that lead from exclusive nodes into shared ones; those
     011              |           of one shared node's input make a `Meeting`. A loss that is itself shared (a sum
       \             /            of others) is a `root` of its meeting, not an entry.
 -------\-----------/-----
           111                    shared: two bits or more. An edge is (node, number of its output).
            |
       AccumulateGrad             a leaf, exclusive or shared as any node is
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from .._torch import (
    COVERING,
    CUTTING,
    ELEMENTWISE,
    PUTTING_TOGETHER,
    AccumulateGrad,
    Metadata,
    names_of,
    outputs_of,
    sequence_number,
)
from .supports import Children, Edge, State, connected, supports
from .walk import all_below, top_below

SEVERAL = -1  # instead of a position: an entry from a node that several losses reach


@dataclass
class Meeting:
    """An edge of the graph at which several losses' gradients come together.

    Attributes:
        edge: The place: input `edge[1]` of node `edge[0]`'s backward.
        entries: Where the gradient comes from, as `(node, number of its input, position of the loss)`.
        roots: Positions of the losses that are themselves this tensor.
    """

    edge: Edge
    entries: list[tuple[Node, int, int]] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)

    @property
    def positions(self) -> list[int]:
        """The losses that arrive here from nodes of their own."""
        return sorted({position for _, _, position in self.entries if position != SEVERAL} | set(self.roots))

    @property
    def separate(self) -> bool:
        """Whether every contribution belongs to one loss."""
        return all(position != SEVERAL for _, _, position in self.entries)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(metadata_of(self.edge).shape)

    @property
    def dtype(self) -> torch.dtype:
        return metadata_of(self.edge).dtype


class LossGraph:
    """All nodes below the losses, in topological order, with the set of losses that reach each.

    Args:
        origins: The edge of each loss.

    Attributes:
        roots: The same, below the node that DistributedDataParallel may have laid there.
        sinks: Those nodes. They are looked through: no edge leads to them.
        edges: For each node what its inputs lead to; the losses' own nodes come first.
        reach: For each node a bit mask: bit i is set iff the loss at position i reaches it.
        ordered: Whether the nodes' numbers fall along every edge, so that the top could be found alone.
        whole: Whether all nodes are here; else those alone above which one loss is missing (see `top_below`).
        kinds: The names of the nodes' kinds.
        states: Where each loss reaches each tensor; `None` where the nodes tell all there is to know.
        fewer: The losses that go on to an input of a node, as a bit mask, where these are not all that reach it.
        parting: Nodes that several losses reach, each at coordinates of its own, which lead to nodes of its own: losses
            or heads bundled in one tensor.
    """

    def __init__(self, origins: Sequence[Edge]) -> None:
        self.origins = list(origins)
        self.roots, self.sinks, edges, reach, self.ordered = all_below(origins)
        self._take(edges, reach, whole=True)

    @classmethod
    def top(cls, origins: Sequence[Edge]) -> LossGraph | None:
        """The nodes above which a loss is missing, and those that they lead to; `None` where only all can be found."""
        found = top_below(origins)
        if found is None:
            return None
        graph = cls.__new__(cls)
        graph.origins = graph.roots = list(origins)
        graph.sinks, graph.ordered = [], True
        graph._take(*found, whole=False)
        return graph

    def _take(self, edges: dict[Node, Children], reach: dict[Node, int], *, whole: bool) -> None:
        self.edges, self.reach, self.whole = edges, reach, whole
        self.kinds = names_of(edges)
        self.states: dict[Edge, State] | None = None
        self.fewer: dict[Edge, int] = {}
        self.parting: set[Node] = set()
        self.under: set[Node] = set()  # nodes that one loss alone reaches, through shared ones

    @cached_property
    def cut(self) -> bool:
        """Whether one loss by itself may reach less than all of a tensor, or one of several tensors of a node."""
        cutting = self.kinds & CUTTING
        return any(
            (cutting and node.name() in cutting)
            or any(number and several(self.reach[child]) for child, number in to if child)
            for node, to in self.edges.items()
            if not several(self.reach[node])
        )

    @cached_property
    def _narrow(self) -> set[Node]:
        """Nodes that one loss by itself reaches in less than all of a tensor, as far as their kinds tell."""
        narrow: set[Node] = set()
        for node, children in self.edges.items() if self.cut else ():
            if not several(self.reach[node]):
                name = node.name()
                stays = name in CUTTING or (node in narrow and (name in COVERING or name in ELEMENTWISE))
                narrow |= {child for child, number in children if child is not None and (stays or number)}
        return narrow

    @cached_property
    def narrowed(self) -> bool:
        """Whether a loss comes to less than all of a tensor that others reach, or several begin in one."""
        begins = (node for node, _ in self.roots)
        return any(several(self.reach[node]) for nodes in (self._narrow, begins) for node in nodes)

    @cached_property
    def bundled(self) -> bool:
        """Whether a loss may come to some only of the tensors of which one was put together."""
        putting = self.kinds & PUTTING_TOGETHER
        return bool(putting) and any(
            node.name() in putting and (several(self.reach[node]) or node in self._narrow) for node in self.edges
        )

    def look_through_bundles(self) -> None:
        """Tell losses apart where one tensor was put together of what belongs to each: nodes say too much there."""
        if self.states is None and self.bundled:
            self._look_through()

    def look_through_parts(self) -> None:
        """The same wherever a loss reads less than all of a tensor."""
        if self.states is None and (self.bundled or self.narrowed):
            self._look_through()

    def _look_through(self) -> None:
        """Who reaches what is a matter of coordinates."""
        self.states, self.fewer = supports(self.roots, self.edges)
        for (node, k), mask in self.fewer.items():
            if not mask:  # a part of which no loss reads anything
                edges = self.edges[node]
                self.edges[node] = (*edges[:k], (None, 0), *edges[k + 1 :])
        self.reach = dict.fromkeys(self.edges, 0)
        for (node, _), state in self.states.items():
            for position in state:
                self.reach[node] |= 1 << position
        for node in reversed(self.edges):
            if several(self.reach[node]) and type(node) is not AccumulateGrad:
                apart = all(len(connected(state)) == len(state) for state in self._states_of(node))
                below = (child for child, _ in self.edges[node] if child is not None and self.reach[child])
                if apart and all(child in self.parting or not several(self.reach[child]) for child in below):
                    self.parting.add(node)
        for node, children in self.edges.items():
            if self.reach[node] and (node in self.under or self.shared(node)):
                below = (child for child, _ in children if child is not None and self.reach[child] & self.reach[node])
                self.under |= {child for child in below if not self.shared(child)}
        self.__dict__.pop("cut", None)  # as it was not seen while bundled losses were in one tensor

    def _states_of(self, node: Node) -> list[State]:
        """Of the tensors that a node made."""
        assert self.states is not None
        return [self.states[node, k] for k in range(len(outputs_of(node))) if (node, k) in self.states]

    def reaching_nothing(self) -> list[int]:
        """The losses below which there is no leaf."""
        reached = 0
        for leaf in self.leaves():
            reached |= self.reach[leaf]
        return [
            position for position in range(len(self.roots)) if self.states is not None and not reached >> position & 1
        ]

    def shared(self, node: Node) -> bool:
        """Whether two losses or more reach the node, and it does not lead each on by itself."""
        return several(self.reach[node]) and node not in self.parting

    def beyond(self, node: Node) -> bool:
        """Whether gradients come to the node by way of shared ones, or it is one."""
        return node in self.reach and (self.shared(node) or node in self.under)

    def together(self, node: Node) -> bool:
        """Whether all losses that reach the node reach each of its tensors, and hang together at its coordinates."""
        if self.states is None:
            return True
        n = self.reach[node].bit_count()
        return all(len(state) == n and len(connected(state)) == 1 for state in self._states_of(node))

    def positions_at(self, edge: Edge) -> list[int]:
        """The losses that reach a tensor."""
        if self.states is not None:
            return sorted(self.states.get(edge, ()))
        return positions_in(self.reach.get(edge[0], 0))

    def leaves(self) -> Iterator[Node]:
        return (node for node in self.edges if type(node) is AccumulateGrad)

    def leaves_as_used(self) -> list[Node]:
        """The leaves in the order in which the forward pass used them, which does not depend on the losses' order."""
        first_use: dict[Node, int] = {}
        for node, children in self.edges.items():
            for child, _ in children:
                if type(child) is AccumulateGrad:
                    use = sequence_number(node)
                    first_use[child] = min(use, first_use.get(child, use))
        return sorted(first_use, key=first_use.__getitem__)

    def frontier(self, *, parting: bool = False) -> list[Meeting]:
        """The edges from exclusive into shared nodes, and the losses that are themselves shared.

        Nodes at which several losses part count as shared if asked for: where losses come together, whatever they read.
        """
        meetings: dict[Edge, Meeting] = {}
        shared = {node for node in self.edges if self.shared(node) or (parting and node in self.parting)}
        for position, root in enumerate(self.roots):
            if root[0] in shared:
                meetings.setdefault(root, Meeting(root)).roots.append(position)
        for node, children in self.edges.items():
            if self.reach[node] and not self.beyond(node) and node not in shared:
                for k, edge in enumerate(children):
                    if edge[0] in shared:
                        meeting = meetings.setdefault(edge, Meeting(edge))  # type: ignore[arg-type]
                        meeting.entries.append((node, k, self.reach[node].bit_length() - 1))
        return list(meetings.values())

    def meetings_at(self, edges: Iterable[Edge], inside: Collection[Node] = ()) -> dict[Edge, Meeting]:
        """How the gradients come to some tensors, from shared nodes too, but not from the nodes `inside`."""
        meetings = {edge: Meeting(edge) for edge in edges}
        for position, root in enumerate(self.roots):
            if root in meetings:
                meetings[root].roots.append(position)
        for node, children in self.edges.items():
            if node not in inside and self.reach[node]:
                for k, edge in enumerate(children):
                    if edge in meetings:
                        mask = self.going_on(node, k)
                        position = SEVERAL if several(mask) else mask.bit_length() - 1
                        meetings[edge].entries.append((node, k, position))
        return meetings

    def going_on(self, node: Node, k: int) -> int:
        """The losses that go on to an input of a node, as a bit mask."""
        return self.fewer.get((node, k), self.reach[node])

    def positions_entering(self, meeting: Meeting) -> list[int]:
        """The losses that come to a meeting by its entries."""
        reach = sum(1 << position for position in meeting.roots)
        for node, k, _ in meeting.entries:
            reach |= self.going_on(node, k)
        return positions_in(reach)

    def disjoint(self, edge: Edge) -> bool:
        """Whether the losses read different parts of a tensor, so that no coordinate is reached by two of them."""
        state = {} if self.states is None else self.states.get(edge, {})
        return len(state) > 1 and len(connected(state)) == len(state)

    def reach_of_edges(self) -> dict[Edge, int]:
        """For each edge, one output of a node, the losses that reach it, as a bit mask."""
        reach = dict.fromkeys(self.roots, 0)
        for position, root in enumerate(self.roots):
            reach[root] |= 1 << position
        for node, children in self.edges.items():
            for k, edge in enumerate(children):
                if edge[0] is not None:
                    reach[edge] = reach.get(edge, 0) | self.going_on(node, k)  # type: ignore[index, arg-type]
        return reach

    def nested(self, meetings: Sequence[Meeting]) -> bool:
        """Whether one meeting lies below another (a skip connection)."""
        places = {meeting.edge[0] for meeting in meetings}
        stack = [child for place in places for child, _ in self.edges[place]]
        seen: set[Node | None] = {None}
        while stack:
            node = stack.pop()
            if node in places:
                return True
            if node not in seen:
                seen.add(node)
                stack.extend(child for child, _ in self.edges[node])  # type: ignore[index]
        return False


def reached_by(graph: LossGraph, position: int, targets: Sequence[Edge]) -> list[int]:
    """Which of some targets a loss reaches."""
    return [i for i, (node, _) in enumerate(targets) if graph.reach.get(node, 0) >> position & 1]


def several(reach: int) -> bool:
    """Whether a bit mask has two bits or more."""
    return reach & (reach - 1) != 0


def positions_in(reach: int) -> list[int]:
    """The bits of a mask."""
    return [position for position in range(reach.bit_length()) if reach >> position & 1]


def metadata_of(edge: Edge) -> Metadata:
    """Shape, dtype and device of the tensor at an edge."""
    return outputs_of(edge[0])[edge[1]]


def edge_of(tensor: Tensor) -> Edge:
    if tensor.grad_fn is not None:
        return tensor.grad_fn, tensor.output_nr
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def gradient_edge(edge: Edge) -> GradientEdge:
    return GradientEdge(*edge)
