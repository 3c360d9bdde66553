"""The modules of a model, seen from the graph: what they share, in which order, and how they are named. No rows."""

from __future__ import annotations

from torch import nn
from torch.autograd.graph import Node

from .._graph.loss_graph import LossGraph
from .._graph.supports import Edge
from .._torch import sequence_number, variable_of
from .rows import is_leaf, is_parameter


class Modules:
    """The modules of a model whose parameters are below some losses.

    Attributes:
        shared: For the name of each module its own parameters that several losses reach, as leaves of the graph, each
            once; in the order in which the forward pass used them.
        outside: How many shared parameters the model does not have.

    Raises:
        RuntimeError: If the losses share nothing, or nothing of this model.
    """

    def __init__(self, graph: LossGraph, model: nn.Module) -> None:
        self.graph = graph
        self.model = model
        self.leaf_of = {id(variable_of(leaf)): leaf for leaf in graph.leaves()}
        used = graph.leaves_as_used()
        self._find_shared(used)
        everyone = (1 << len(graph.roots)) - 1
        mine = {id(parameter) for parameter in model.parameters()}
        everyones = [leaf for leaf in used if graph.reach[leaf] == everyone and id(variable_of(leaf)) in mine]
        self.order = {leaf: i for i, leaf in enumerate(everyones)}
        self.below, self.fed = self._below()

    def _find_shared(self, used: list[Node]) -> None:
        several = {key: leaf for key, leaf in self.leaf_of.items() if self.graph.shared(leaf)}
        several = {key: leaf for key, leaf in several.items() if is_parameter(leaf)}
        if not several:
            raise RuntimeError(
                "The `losses` share no parameter, so there is nothing to combine. If they should, see that they come "
                "from one model, and that what it shares has requires_grad=True."
            )
        found: dict[str, list[Node]] = {}
        for name, module in self.model.named_modules():
            for parameter in module.parameters(recurse=False):
                leaf = several.pop(id(parameter), None)
                if leaf is not None:
                    found.setdefault(name, []).append(leaf)
        self.outside = len(several)
        if not found:
            raise RuntimeError(
                f"`model` has none of the {self.outside} parameters that the `losses` share. Give the model that made "
                f"the losses."
            )
        place = {leaf: i for i, leaf in enumerate(used)}
        first = {name: min(place.get(leaf, len(place)) for leaf in leaves) for name, leaves in found.items()}
        self.shared = dict(sorted(found.items(), key=lambda item: first[item[0]]))

    def _below(self) -> tuple[dict[Node, int], set[Node]]:
        """For each node the parameters below it, as a bit mask of their order; and the nodes below which is data."""
        below: dict[Node, int] = {}
        fed: set[Node] = set()
        for node, children in reversed(self.graph.edges.items()):
            below[node] = 1 << self.order[node] if node in self.order else 0
            for child, _ in children:
                below[node] |= 0 if child is None else below[child]
                if child is None or child in fed:
                    fed.add(node)
            of_data = is_leaf((node, 0)) and not is_parameter(node)  # an input that needs a gradient
            if of_data or node.name().startswith("Embedding"):  # whose data are whole numbers: the graph has them not
                fed.add(node)
        return below, fed

    def funnels(self) -> list[Edge]:
        """Activations through which all losses come to all parameters used before, the last of the forward first."""
        everyone = (1 << len(self.graph.roots)) - 1
        found = [
            edge
            for edge, mask in self.graph.reach_of_edges().items()
            if mask == everyone and not is_leaf(edge) and edge[0] in self.fed and self._all_before(edge[0])
        ]
        return sorted(found, key=lambda edge: sequence_number(edge[0]), reverse=True)

    def _all_before(self, node: Node) -> bool:
        mask = self.below[node]
        return mask != 0 and mask & (mask + 1) == 0

    def ending_with_last(self, edge: Edge | None = None) -> str | None:
        """The largest module that can be named, and has the last parameter below an edge and none used later.

        All losses share all its parameters, but for those that no loss reaches.
        """
        allowed = (1 << len(self.order)) - 1 if edge is None else self.below[edge[0]]
        for name, module in self.model.named_modules():
            leaves = [self.leaf_of[id(p)] for p in module.parameters() if id(p) in self.leaf_of]
            mask = 0
            for leaf in leaves:
                mask |= 1 << self.order[leaf] if leaf in self.order else 0
            called = type(module).forward is not nn.Module.forward and "parametrizations" not in name.split(".")
            if called and all(leaf in self.order for leaf in leaves) and mask.bit_length() == allowed.bit_length() > 0:
                return str(name)
        return None

    def written(self, name: str) -> str:
        """A module as one writes it: `model.trunk[0]`."""
        text, module = "model", self.model
        for part in name.split(".") if name else ():
            if isinstance(module, nn.ModuleDict):
                text += f'["{part}"]'
            else:
                text += f"[{part}]" if part.isdigit() else f".{part}"
            module = module.get_submodule(part)
        return text
