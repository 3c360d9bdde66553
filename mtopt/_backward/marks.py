"""Named sites: a mark that a module's forward leaves on the graph, and how a backward pass finds it. No rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._graph.loss_graph import LossGraph, edge_of
from .._graph.supports import Edge
from .._signs import dims_of
from .._torch import not_compiled, notes_on, version

_KEY = "mtopt"


@dataclass(frozen=True)
class Mark:
    """One output tensor of one call of a named module."""

    owner: str
    module: int  # number of the module in `at`
    output: int  # number of the tensor in the module's output
    number: int  # output number of the node that made it
    activation: Tensor | None  # known where a transform needs it
    version: int  # of the activation then


@dataclass(frozen=True)
class MarkSite:
    """A forward hook: marks the graph nodes of a module's outputs.

    The mark lives on the graph, so a forward without a backward pass leaves nothing behind.
    """

    owner: str
    module: int
    marginalize: tuple[int, ...] | None

    @not_compiled  # a compiled model is interrupted here: inside one graph no activation could be marked
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        tensors = [tensor for tensor in _tensors_in(output) if tensor.is_floating_point()]
        if not tensors:
            raise TypeError(
                f"`at` names {type(module).__name__}, but its output has no floating-point tensor: it is "
                f"{type(output).__name__}. Name a module that returns tensors, or tuples, lists or dicts of them."
            )
        for output, tensor in enumerate(tensors):
            if tensor.grad_fn is None:
                continue
            activation = None
            if self.marginalize is not None:
                dims_of(self.marginalize, tensor.ndim)
                activation = tensor.detach()  # shares storage and version counter
            node, number = edge_of(tensor)
            mark = Mark(self.owner, self.module, output, number, activation, version(tensor))
            notes_on(node).setdefault(_KEY, []).append(mark)


def _tensors_in(output: object) -> Iterator[Tensor]:
    """All tensors in a module's output: in tuples, lists, mappings and dataclasses, as trainers' models return them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors_in(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors_in(value)
    elif is_dataclass(output):
        for field in fields(output):
            yield from _tensors_in(getattr(output, field.name))


def marked_edges(graph: LossGraph, owner: str, *, shared_only: bool = False) -> dict[Edge, Mark]:
    """The edges that one optimizer's hooks have marked, among all nodes or those that several losses reach.

    Raises:
        RuntimeError: If a marked activation was since changed in place, so that its sign is lost.
    """
    marked: dict[Edge, Mark] = {}
    for node in graph.edges:
        if shared_only and not graph.shared(node):
            continue
        for mark in notes_on(node).get(_KEY, ()):
            if mark.owner == owner:
                if mark.activation is not None and version(mark.activation) != mark.version:
                    raise RuntimeError(
                        "The activation at the site named by `at` was changed in place, so `marginalize` cannot use "
                        "its sign. Name the module that changes it, or make that one not in-place."
                    )
                marked[node, mark.number] = mark
    return marked


def joint_groups(marked: dict[Edge, Mark], dim: int) -> list[list[Edge]]:
    """The calls on which a decision marginalized over `dim` is joint: one output of one module, alike but for `dim`."""
    groups: dict[tuple[object, ...], list[Edge]] = {}
    for edge, mark in marked.items():
        assert mark.activation is not None
        shape = list(mark.activation.shape)
        del shape[dim]
        groups.setdefault((mark.module, mark.output, *shape), []).append(edge)
    return list(groups.values())
