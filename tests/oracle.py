"""What a backward of several losses must give, found slowly: one node after the other, loss by loss.

No hooks, no engine of autograd, no masks: each node is called with numbers, and a loss reaches what its gradient says.
That asks for models whose gradients are zero only where nothing is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

AccumulateGrad = type(get_gradient_edge(torch.ones(1, requires_grad=True)).node)
Edge = tuple[Node, int]
Rows = dict[int, Tensor]
LOOKED_UP = ("EmbeddingBackward0", "IndexBackward0")  # rows of a table, of which the data say which
Combine = Callable[[Tensor], Tensor]


class Oracle:
    """One forward, and each loss's gradient at all that lies below."""

    def __init__(self, losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        self.roots = [edge_of(loss) for loss in losses]
        self.numbers = {id(parameter): i for i, parameter in enumerate(parameters)}
        self.nodes = _in_order([node for node, _ in self.roots])
        self.rows: dict[Edge, Rows] = {}
        self.along: dict[tuple[Node, int], set[int]] = {}  # which losses come along an input of a node
        for i, (root, loss) in enumerate(zip(self.roots, losses, strict=True)):
            arrived = {root: torch.ones_like(loss).detach()}
            for node in self.nodes:
                for k, child, gradient in self._passed_on(node, arrived):
                    if gradient.any():
                        self.along.setdefault((node, k), set()).add(i)
                        _add(arrived, child, gradient)
            for edge, gradient in arrived.items():
                self.rows.setdefault(edge, {})[i] = gradient
        self.reach = {node: set().union(*(self.rows.get(edge, ()) for edge in _edges_of(node))) for node in self.nodes}
        self.derived: set[Node] = set()
        for node in reversed(self.nodes):
            made = [child for child, _ in node.next_functions]
            if type(node) is AccumulateGrad:
                of_parameters = id(node.variable) in self.numbers
            else:
                of_parameters = bool(made) and node.name() not in LOOKED_UP
                of_parameters &= all(child in self.derived or (child is None and _times_number(node)) for child in made)
            if of_parameters:
                self.derived.add(node)

    def _passed_on(self, node: Node, arrived: dict[Edge, Tensor]) -> list[tuple[int, Edge, Tensor]]:
        gradients = [arrived.get(edge) for edge in _edges_of(node)]
        if type(node) is AccumulateGrad or all(gradient is None for gradient in gradients):
            return []
        if callable(node):
            found = node(*gradients)
        else:  # a custom function, which autograd gives zeros instead of nothing
            given = zip(gradients, node._input_metadata, strict=True)
            found = node.apply(*(torch.zeros(m.shape, dtype=m.dtype) if g is None else g for g, m in given))
        passed = []
        for k, (child, gradient) in enumerate(
            zip(node.next_functions, found if isinstance(found, tuple) else (found,), strict=True)
        ):
            if child[0] is not None and gradient is not None:
                like = child[0]._input_metadata[child[1]]
                passed.append((k, child, gradient.detach().sum_to_size(tuple(like.shape)).to(like.dtype)))
        return passed

    # -- where losses meet ---------------------------------------------------------------------------------------------

    def whole(self, node: Node) -> bool:
        """Whether its losses reach each of its tensors, and each shares a coordinate with another."""
        tensors = [self.rows[edge] for edge in _edges_of(node) if edge in self.rows]
        return all(set(rows) == self.reach[node] and _hang_together(rows) for rows in tensors)

    def final(self) -> set[Node]:
        """The nodes below which no further loss joins at an activation, and whose entering rows overlap."""
        apart: set[Node] = set()
        while True:
            final = self._final_but(apart)
            entering = self._arriving(final, lambda rows: rows.sum(0))[1]
            new = {node for (node, _), rows in entering.items() if len(rows) > 1 and not _overlap(rows)}
            if not new:
                return final
            apart |= new

    def _final_but(self, apart: set[Node]) -> set[Node]:
        final = self._final(self.derived, apart)
        if not self._decides(final) and self._decides(everything := self._final(set(), apart)):
            entered = {e for e, rows in self._entering(everything).items() if len(rows) > 1}
            if len(entered) == 1:
                return everything
        return final

    def only_at_a_parameter(self) -> bool:
        """Whether losses meet at no activation, at most at one tensor that is made of parameters."""
        return not self._decides(self._final(self.derived))

    def _final(self, derived: set[Node], apart: Collection[Node] = ()) -> set[Node]:
        return {
            node
            for node in self.nodes
            if node not in derived
            and len(self.reach[node]) > 1
            and all(
                self.reach[n] == self.reach[node] and self.whole(n) and n not in apart
                for n in self._below(node) - derived
            )
        }

    def _below(self, node: Node) -> set[Node]:
        """The node, and all to which a gradient goes on from it."""
        below, waiting = {node}, [node]
        while waiting:
            parent = waiting.pop()
            for k, (child, _) in enumerate(parent.next_functions):
                if (parent, k) in self.along and child not in below:
                    below.add(child)
                    waiting.append(child)
        return below

    def _entering(self, final: set[Node]) -> dict[Edge, set[int]]:
        entering: dict[Edge, set[int]] = {}
        for i, root in enumerate(self.roots):
            if root[0] in final:
                entering.setdefault(root, set()).add(i)
        for (node, k), losses in self.along.items():
            if node not in final and (child := node.next_functions[k])[0] in final:
                entering.setdefault(child, set()).update(losses)
        return entering

    def _decides(self, final: set[Node]) -> bool:
        return any(len(losses) > 1 for losses in self._entering(final).values())

    # -- gradients of the parameters -----------------------------------------------------------------------------------

    def plain(self) -> list[Tensor | None]:
        return self._at_parameters(lambda rows: torch.stack(list(rows.values())).sum(0))

    def at_parameters(self, combine: Combine) -> list[Tensor | None]:
        """Each parameter by itself."""
        return self._at_parameters(lambda rows: combine(torch.stack(list(rows.values()))))

    def at_all_parameters(self, combine: Combine) -> list[Tensor | None]:
        """All parameters as one."""
        leaves = [n for n in self.nodes if type(n) is AccumulateGrad and id(n.variable) in self.numbers]
        if not leaves:
            return [None] * len(self.numbers)
        zeros = [torch.zeros_like(leaf.variable) for leaf in leaves]
        whole = [
            torch.cat(
                [self.rows.get((leaf, 0), {}).get(i, zero).flatten() for leaf, zero in zip(leaves, zeros, strict=True)]
            )
            for i in range(len(self.roots))
        ]
        parts = combine(torch.stack(whole)).split([zero.numel() for zero in zeros])
        gradients: list[Tensor | None] = [None] * len(self.numbers)
        for leaf, part in zip(leaves, parts, strict=True):
            gradients[self.numbers[id(leaf.variable)]] = part.view_as(leaf.variable)
        return gradients

    def _at_parameters(self, combine: Callable[[Rows], Tensor]) -> list[Tensor | None]:
        gradients: list[Tensor | None] = [None] * len(self.numbers)
        for node in self.nodes:
            if type(node) is AccumulateGrad and id(node.variable) in self.numbers and (node, 0) in self.rows:
                gradients[self.numbers[id(node.variable)]] = combine(self.rows[node, 0])
        return gradients

    def reading_nothing(self) -> bool:
        """Whether there is a loss that no leaf has part in."""
        leaves = [rows for (node, _), rows in self.rows.items() if type(node) is AccumulateGrad]
        return len(set().union(*leaves)) < len(self.roots)

    def sharing(self) -> int:
        """How many parameters two losses or more reach."""
        leaves = (node for node in self.nodes if type(node) is AccumulateGrad and id(node.variable) in self.numbers)
        return sum(len(self.reach[leaf]) > 1 for leaf in leaves)

    def at_activations(self, combine: Combine) -> list[Tensor | None] | None:
        """Rows combined where they enter what is final; `None` where no two do."""
        final = self.final()
        return self._collected(self._arriving(final, combine)[0]) if self._decides(final) else None

    def _arriving(self, final: set[Node], combine: Combine) -> tuple[list[dict[Edge, Tensor]], dict[Edge, Rows]]:
        """What comes to each tensor, and the rows that enter what is final, where they are combined."""
        entering: dict[Edge, Rows] = {}
        on = -1  # instead of a loss: what was combined
        arrived: dict[int, dict[Edge, Tensor]] = {i: {} for i in (on, *range(len(self.roots)))}
        for i, (node, k) in enumerate(self.roots):
            arrived[i][node, k] = torch.ones_like(self.rows[node, k][i])
        for node in self.nodes:
            if node in final:
                for edge in _edges_of(node):
                    rows = {i: of.pop(edge) for i, of in arrived.items() if i != on and edge in of}
                    rows = {i: row for i, row in rows.items() if row.any()}
                    if rows:
                        entering[edge] = rows
                        _add(arrived[on], edge, combine(torch.stack(list(rows.values()))))
            for of in arrived.values():
                for _, child, gradient in self._passed_on(node, of):
                    _add(of, child, gradient)
        return list(arrived.values()), entering

    def nested(self, combine: Combine) -> list[Tensor | None] | None:
        """One backward: wherever sets of losses come together, each less than all of them, their rows are combined.

        There are no more rows than losses: what comes of a set is, or joins, the row of one of its losses.
        """
        coming: dict[Edge, list[tuple[frozenset[int], Tensor]]] = {}
        arrived: dict[Edge, Tensor] = {}
        decided = False
        for i, root in enumerate(self.roots):
            coming.setdefault(root, []).append((frozenset([i]), torch.ones_like(self.rows[root][i])))
        for node in self.nodes:
            for edge in _edges_of(node):
                rows: dict[frozenset[int], Tensor] = {}
                for losses, gradient in coming.get(edge, ()):
                    if losses:
                        rows[losses] = rows.get(losses, 0) + gradient
                if not rows:
                    continue
                stack = torch.stack(list(_by_one_loss(rows).values()))
                apart = all(losses != frozenset().union(*rows) for losses in rows)
                if apart and node not in self.derived and self.whole(node):
                    arrived[edge], decided = combine(stack), True
                else:
                    arrived[edge] = stack.sum(0)
            for k, child, gradient in self._passed_on(node, arrived):
                losses = frozenset(self.along.get((node, k), ()))
                coming.setdefault(child, []).append((losses, gradient))
        return self._collected([arrived]) if decided else None

    def at_edges(self, edges: Collection[Edge], combine: Combine) -> list[Tensor | None] | None:
        """All rows of some tensors combined there; `None` where a loss has none, or no two share a coordinate."""
        there = [self.rows[edge] for edge in edges if edge in self.rows]
        reaching = set().union(*there)
        if len(reaching) < len(self.roots) or not any(_overlap(rows) for rows in there):
            return None
        arrived: dict[Edge, Tensor] = {}
        for i, root in enumerate(self.roots):
            _add(arrived, root, torch.ones_like(self.rows[root][i]))
        for node in self.nodes:
            for edge in _edges_of(node):
                if edge in edges and edge in self.rows:
                    arrived[edge] = combine(torch.stack(list(self.rows[edge].values())))
            for _, child, gradient in self._passed_on(node, arrived):
                _add(arrived, child, gradient)
        return self._collected([arrived])

    def _collected(self, arrived: Collection[dict[Edge, Tensor]]) -> list[Tensor | None]:
        gradients: list[Tensor | None] = [None] * len(self.numbers)
        for of in arrived:
            for (node, _), gradient in of.items():
                if type(node) is AccumulateGrad and id(node.variable) in self.numbers:
                    i = self.numbers[id(node.variable)]
                    gradients[i] = gradient if gradients[i] is None else gradients[i] + gradient
        return gradients


def edge_of(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _edges_of(node: Node) -> list[Edge]:
    return [(node, k) for k in range(len(node._input_metadata))]


def _in_order(starts: Sequence[Node]) -> list[Node]:
    """The nodes below, each before all that it leads to."""
    done: dict[Node, None] = {}
    stack = [(node, False) for node in starts]
    while stack:
        node, left = stack.pop()
        if left:
            done[node] = None
        elif node not in done:
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None and child not in done]
    return list(reversed(done))


def _add(to: dict[Edge, Tensor], edge: Edge, gradient: Tensor) -> None:
    to[edge] = to[edge] + gradient if edge in to else gradient


def _by_one_loss(rows: dict[frozenset[int], Tensor]) -> Rows:
    """The rows of sets of losses, each as that of its first loss that has none of a smaller set, or of its first."""
    found: Rows = {}
    for losses in sorted(rows, key=lambda losses: (len(losses), sum(1 << i for i in losses))):
        i = min(losses.difference(found) or losses)
        found[i] = found[i] + rows[losses] if i in found else rows[losses]
    return found


def _hang_together(rows: Rows) -> bool:
    group, *others = ({i} for i in rows)
    union = rows[next(iter(group))] != 0
    waiting = [next(iter(other)) for other in others]
    while waiting:
        near = [i for i in waiting if bool((union & (rows[i] != 0)).any())]
        if not near:
            return False
        for i in near:
            union = union | (rows[i] != 0)
            waiting.remove(i)
    return True


def _overlap(rows: Rows) -> bool:
    return bool((sum((row != 0).int() for row in rows.values()) > 1).any())


def _times_number(node: Node) -> bool:
    factors = [getattr(node, name, None) for name in ("_saved_self", "_saved_other")]
    return node.name() in ("MulBackward0", "DivBackward0") and all(f is None or f.numel() == 1 for f in factors)
