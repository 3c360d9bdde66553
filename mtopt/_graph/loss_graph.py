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

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from .._torch import (
    DDP_SINK,
    SELECTING,
    SPLITTING,
    AccumulateGrad,
    Metadata,
    below_sink,
    outputs_of,
    sequence_number,
    tells_changed,
    tells_freed,
    touch_saved,
)

Edge = tuple[Node, int]  # a node and the number of its output, as in Node.next_functions
Children = tuple[tuple[Node | None, int], ...]

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

    Attributes:
        origins: The edge of each loss.
        roots: The same, below the node that DistributedDataParallel may have laid there.
        sinks: Those nodes. They are looked through: no edge leads to them.
        edges: For each node what its inputs lead to; the losses' own nodes come first.
        reach: For each node a bit mask: bit i is set iff the loss at position i reaches it.
    """

    def __init__(self, origins: Sequence[Edge]) -> None:
        self.origins = list(origins)
        self.edges: dict[Node, Children] = {}
        self.roots = self.origins
        found = _below(origins, lambda node: node.next_functions)
        self.sinks = [node for node in found if type(node) is DDP_SINK]
        if self.sinks:
            self.roots = [_through_sinks(origin) for origin in origins]
            found = _below(self.roots, lambda node: tuple(_through_sinks(edge) for edge in node.next_functions))
        waiting = dict.fromkeys(found, 0)  # how many parents are not yet placed
        for children in found.values():
            for child, _ in children:
                if child is not None:
                    waiting[child] += 1
        self.reach = dict.fromkeys(found, 0)
        for i, (node, _) in enumerate(self.roots):
            self.reach[node] |= 1 << i
        stack = [node for node in dict.fromkeys(node for node, _ in self.roots) if waiting[node] == 0]
        while stack:
            node = stack.pop()
            self.edges[node] = children = found[node]
            mask = self.reach[node]
            for child, _ in children:
                if child is not None:
                    self.reach[child] |= mask
                    waiting[child] -= 1
                    if waiting[child] == 0:
                        stack.append(child)

    def shared(self, node: Node) -> bool:
        """Whether two losses or more reach the node."""
        mask = self.reach[node]
        return mask & (mask - 1) != 0

    def positions_at(self, edge: Edge) -> list[int]:
        """The losses that reach an edge's node."""
        mask = self.reach.get(edge[0], 0)
        return [position for position in range(mask.bit_length()) if mask >> position & 1]

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

    def frontier(self) -> list[Meeting]:
        """The edges from exclusive into shared nodes, and the losses that are themselves shared."""
        meetings: dict[Edge, Meeting] = {}
        shared = {node for node, mask in self.reach.items() if mask & (mask - 1)}
        for position, root in enumerate(self.roots):
            if root[0] in shared:
                meetings.setdefault(root, Meeting(root)).roots.append(position)
        for node, children in self.edges.items():
            if node not in shared:
                for k, edge in enumerate(children):
                    if edge[0] in shared:
                        meeting = meetings.setdefault(edge, Meeting(edge))  # type: ignore[arg-type]
                        meeting.entries.append((node, k, self.reach[node].bit_length() - 1))
        return list(meetings.values())

    def meeting_at(self, edge: Edge) -> Meeting:
        """How the gradients come to a given edge, from shared nodes too."""
        meeting = Meeting(edge, roots=[position for position, root in enumerate(self.roots) if root == edge])
        for node, children in self.edges.items():
            for k, child in enumerate(children):
                if child == edge:
                    position = SEVERAL if self.shared(node) else self.reach[node].bit_length() - 1
                    meeting.entries.append((node, k, position))
        return meeting

    def disjoint(self, meeting: Meeting) -> bool:
        """Whether the losses read different parts of the tensor, so that no coordinate is reached by two of them."""
        if meeting.roots or not all(node.name() in SELECTING | SPLITTING for node, _, _ in meeting.entries):
            return False
        reach_of = self.reach_of_edges()
        read: dict[int, Tensor] = {}  # for each loss where it reads
        for node, k, _ in meeting.entries:
            made = outputs_of(node)
            for number, metadata in enumerate(made):
                reach = reach_of.get((node, number), 0)
                if reach & (reach - 1):
                    return False
                gradients: list[Tensor | None] = [None] * len(made)
                gradients[number] = torch.ones(tuple(metadata.shape), dtype=metadata.dtype, device=metadata.device)
                found = node(*gradients)  # type: ignore[operator]
                part = (found[k] if isinstance(found, tuple) else found) != 0
                read[reach] = read[reach] | part if reach in read else part
        return int(sum(part.int() for part in read.values()).max()) < 2  # type: ignore[union-attr]

    def reach_of_edges(self) -> dict[Edge, int]:
        """For each edge, one output of a node, the losses that reach it, as a bit mask."""
        reach = dict.fromkeys(self.roots, 0)
        for position, root in enumerate(self.roots):
            reach[root] |= 1 << position
        for node, children in self.edges.items():
            for edge in children:
                if edge[0] is not None:
                    reach[edge] = reach.get(edge, 0) | self.reach[node]  # type: ignore[index, arg-type]
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

    def check_alive(self) -> None:
        """Raise if a backward already freed the graph, or an in-place change spoiled it: before anything is touched."""
        for node in self.edges:
            try:
                touch_saved(node)
            except RuntimeError as error:
                if (explained := _explained(error)) is not None:
                    raise explained from error
                # Anything else says only that this node does not let itself be looked at.


def _below(starts: Iterable[Edge], children_of: Callable[[Node], Children]) -> dict[Node, Children]:
    """All nodes below some edges, with what their inputs lead to."""
    found: dict[Node, Children] = {}
    stack = [node for node, _ in starts]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = children = children_of(node)
            stack.extend([child for child, _ in children if child is not None])
    return found


def _through_sinks(edge: tuple[Node | None, int]) -> Edge:
    while type(edge[0]) is DDP_SINK:
        edge = below_sink(*edge)  # type: ignore[arg-type]
    return edge  # type: ignore[return-value]


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


@contextmanager
def graph_errors_explained() -> Iterator[None]:
    """Say in plain words what torch says of a graph that cannot be differentiated."""
    try:
        yield
    except RuntimeError as error:
        if (explained := _explained(error)) is not None:
            raise explained from error
        raise


def _explained(error: RuntimeError) -> RuntimeError | None:
    if tells_freed(error):
        return RuntimeError(
            "`losses` come from a graph that an earlier backward has freed. Run the forward again, or give "
            "`retain_graph=True` to the earlier backward."
        )
    return RuntimeError(f"`losses` cannot be differentiated: {error}") if tells_changed(error) else None
