"""The nodes below the losses, in topological order, and who reaches each: all, or the top alone. No gradients.

In a graph that one thread has made, the numbers of the nodes fall from each to what it leads to. Sorted by them they
are in topological order, and a walk down in that order may end early. Where an edge shows that it does not hold (graphs
of several threads, nodes of one's own), each node's parents are counted instead, and the walk goes to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush

from torch.autograd.graph import Node

from .._torch import DDP_SINK, OF_PARAMETERS, AccumulateGrad, below_sink, sequence_number
from .supports import Children, Edge

Edges = dict[Node, Children]
"""What the inputs of each node lead to, in topological order."""

Reach = dict[Node, int]
"""For each node a bit mask: which of the losses reach it."""


def all_below(roots: Sequence[Edge]) -> tuple[list[Edge], list[Node], Edges, Reach, bool]:
    """The whole graph.

    Returns:
        The roots below the nodes that DistributedDataParallel may have laid there; those nodes, which no edge leads to;
        the edges and who reaches each node; whether the nodes' numbers fall along every edge.
    """
    found = _below(roots, lambda node: node.next_functions)
    sinks = [node for node in found if type(node) is DDP_SINK] if DDP_SINK in map(type, found) else []
    if sinks:
        roots = [_through_sinks(root) for root in roots]
        found = _below(roots, lambda node: tuple(_through_sinks(edge) for edge in node.next_functions))
    by_number = _by_number(roots, found)
    edges, reach = by_number or _by_counting(roots, found)
    return list(roots), sinks, edges, reach, by_number is not None


def top_below(roots: Sequence[Edge]) -> tuple[Edges, Reach] | None:
    """The graph down to where every node that is left is reached by all losses. What they lead to is left out.

    Leaves are reached by those losses at least that are told. `None` if the nodes' numbers do not fall along an edge,
    or DistributedDataParallel has laid a node there.
    """
    everyone = (1 << len(roots)) - 1
    edges: Edges = {}
    reach: Reach = {}
    waiting: list[tuple[int, int, Node]] = []  # the highest number first
    open_nodes: set[Node] = set()  # those below which there is something to learn
    leaves: list[Node] = []

    def arrive(node: Node, mask: int, above: float) -> bool:
        """Losses come to a node; False if its number says that it should have been waited for."""
        before = reach.get(node)
        if before is None:
            if type(node) is AccumulateGrad:
                leaves.append(node)
            else:
                number = sequence_number(node)
                if number >= above or type(node) is DDP_SINK:
                    return False
                heappush(waiting, (-number, len(reach), node))
        elif before | mask == before:
            return True
        elif node in edges:
            return False
        reach[node] = mask = mask | (before or 0)
        if type(node) is not AccumulateGrad:
            # Whether it is made of parameters alone, and so no activation, can only be seen below.
            if mask != everyone or node.name() in OF_PARAMETERS:
                open_nodes.add(node)
            else:
                open_nodes.discard(node)
        return True

    for position, (root, _) in enumerate(roots):
        if not arrive(root, 1 << position, float("inf")):
            return None
    while open_nodes:
        number, _, node = heappop(waiting)
        edges[node] = children = node.next_functions
        open_nodes.discard(node)
        mask = reach[node]
        for child, _ in children:
            if child is not None and not arrive(child, mask, -number):
                return None
    for node in [node for _, _, node in sorted(waiting)] + leaves:
        edges[node] = ()
    return edges, reach


def _by_number(roots: Sequence[Edge], found: Edges) -> tuple[Edges, Reach] | None:
    numbers = {node: -1 if type(node) is AccumulateGrad else sequence_number(node) for node in found}
    reach = dict.fromkeys(found, 0)
    for position, (root, _) in enumerate(roots):
        reach[root] |= 1 << position
    edges: Edges = {}
    for node in sorted(found, key=numbers.__getitem__, reverse=True):
        edges[node] = children = found[node]
        mask, number = reach[node], numbers[node]
        for child, _ in children:
            if child is not None:
                if numbers[child] >= number:
                    return None
                reach[child] |= mask
    return edges, {node: reach[node] for node in edges}


def _by_counting(roots: Sequence[Edge], found: Edges) -> tuple[Edges, Reach]:
    waiting = dict.fromkeys(found, 0)  # how many parents are not yet placed
    for children in found.values():
        for child, _ in children:
            if child is not None:
                waiting[child] += 1
    reach = dict.fromkeys(found, 0)
    for position, (root, _) in enumerate(roots):
        reach[root] |= 1 << position
    edges: Edges = {}
    stack = [node for node in dict.fromkeys(node for node, _ in roots) if waiting[node] == 0]
    while stack:
        node = stack.pop()
        edges[node] = children = found[node]
        mask = reach[node]
        for child, _ in children:
            if child is not None:
                reach[child] |= mask
                waiting[child] -= 1
                if waiting[child] == 0:
                    stack.append(child)
    return edges, reach


def _below(starts: Iterable[Edge], children_of: Callable[[Node], Children]) -> Edges:
    """All nodes below some edges, in no order."""
    found: Edges = {}
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
