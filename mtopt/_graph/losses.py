"""The user's losses, checked at the door: names, presence, values, edges. No gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .._checks import is_listed
from .._torch import ADDING, PASSING, STACK, multiplied_by
from .._transform import Losses, LossesLike
from .loss_graph import LossGraph, edge_of, metadata_of
from .supports import Edge


def read_losses(losses: LossesLike) -> tuple[Losses, list[Edge]]:
    """The losses that are present, and the graph edge of each.

    Raises:
        TypeError: If `losses` is not a list, a dict or a 1-D tensor, or a loss is not a real tensor.
        ValueError: If there is no loss, or a loss is not a scalar, needs no gradient, or stands twice.
    """
    names: tuple[str, ...] | None = None
    if isinstance(losses, Tensor):
        if losses.ndim != 1:
            raise ValueError(
                f"`losses` must be a list, a dict or a 1-D tensor with one loss per entry, but it is a tensor of "
                f"shape {tuple(losses.shape)}. Give the losses themselves, e.g. [seg_loss, depth_loss], not their "
                f"sum. A single loss needs no mtopt: call its .backward()."
            )
        if not _is_differentiable(losses):
            raise _not_differentiable(losses, "losses")
        if len(losses) == 0:
            raise ValueError("`losses` is empty: give at least one loss.")
        return _losses_of_vector(losses)
    if isinstance(losses, Mapping):
        names = tuple(losses)
        entries = list(losses.values())
    elif isinstance(losses, Sequence) and not isinstance(losses, (str, bytes)):
        entries = list(losses)
    else:
        hint = " Give list(losses)." if isinstance(losses, Iterable) and not isinstance(losses, (str, bytes)) else ""
        raise TypeError(f"`losses` must be a list, a dict or a 1-D tensor, but it is {type(losses).__name__}.{hint}")
    if names is not None and not all(isinstance(name, str) for name in names):
        raise TypeError(f"`losses` must have strings as names, but they are {list(names)}.")
    present = [i for i, loss in enumerate(entries) if loss is not None]
    if not present:
        raise ValueError(f"`losses` is empty: {'every loss is None' if entries else 'give at least one loss'}.")
    edges: dict[Edge, int] = {}
    scalars = []
    for i in present:
        loss = entries[i]
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not _is_differentiable(loss):
            raise _wrong(loss, _label(i, names))
        edge = edge_of(loss)
        if edge in edges:
            raise ValueError(
                f"`{_label(i, names)}` is the same tensor as `{_label(edges[edge], names)}`. Give each loss once; to "
                f"weight one, use a LossWeighting."
            )
        edges[edge] = i
        scalars.append(loss)
    return Losses(tuple(present), len(entries), names, tuple(scalars)), list(edges)


def check_declared(names: object) -> tuple[str, ...] | None:
    """The names of all losses that will ever come.

    Raises:
        TypeError: If they are no list of strings.
        ValueError: If there is none, or one stands twice.
    """
    if names is None:
        return None
    listed = tuple(names) if is_listed(names) else ()
    given = tuple(name for name in listed if isinstance(name, str))
    if not is_listed(names) or len(given) < len(listed):
        raise TypeError(f"`losses` must be a list of the losses' names, but it is {names!r}.")
    if len(set(given)) < len(given) or not given:
        raise ValueError(f"`losses` must have one name or more, and each once, but it is {list(given)}.")
    return given


def with_absent(losses: LossesLike, names: tuple[str, ...] | None) -> LossesLike:
    """The losses, and `None` for each of the names that is not there.

    Raises:
        TypeError: If names were declared, and the losses have none.
        ValueError: If a loss has another name.
    """
    if names is None:
        return losses
    if not isinstance(losses, Mapping):
        raise TypeError(f"`losses` must be a dict, as the optimizer was given names, {list(names)}.")
    unknown = [name for name in losses if name not in names]
    if unknown:
        raise ValueError(f"`losses` has {unknown[0]!r}, which is none of the optimizer's names, {list(names)}.")
    return {name: losses.get(name) for name in names}


def _label(index: int, names: Sequence[str] | None) -> str:
    return f"losses[{index}]" if names is None else f"losses[{names[index]!r}]"


def _wrong(loss: object, label: str) -> Exception:
    """What is wrong with a loss."""
    if not isinstance(loss, Tensor):
        return TypeError(f"`{label}` must be a tensor, but it is {type(loss).__name__}.")
    if loss.numel() != 1:
        return ValueError(
            f"`{label}` must be a scalar, but it has shape {tuple(loss.shape)}. Reduce it first, e.g. with .mean()."
        )
    return _not_differentiable(loss, label)


def _not_differentiable(loss: Tensor, label: str) -> Exception:
    if not loss.is_floating_point():
        return TypeError(f"`{label}` must be a real floating-point tensor, but its dtype is {loss.dtype}.")
    return ValueError(_without_gradient(label))


def check_reaching(graph: LossGraph, losses: Losses) -> None:
    """Raise if an entry of a vector of losses depends on nothing, which only its graph tells."""
    for position in graph.reaching_nothing():
        raise ValueError(_without_gradient(f"losses[{losses.label(position)}]"))


def check_one_list(more: Sequence[object], method: str) -> None:
    """Refuse losses that were given one by one."""
    if more:
        raise TypeError(
            f"`losses` must be one list, a dict or a 1-D tensor, but `{method}` got {1 + len(more)} arguments. Write "
            f"`{method}([seg_loss, depth_loss])`, and other settings by name."
        )


def common_scale(roots: Sequence[Edge]) -> float | None:
    """What `GradScaler.scale` has multiplied the losses by: a tensor of one float32 number, the same for all.

    A constant tensor of the user's own by which every loss is multiplied looks the same, and is taken for a scale, too.
    """
    return max(set.intersection(*(_factors(node) for node, _ in roots)), default=None)


def _factors(node: Node | None) -> set[float]:
    """The single float32 numbers, tensors, that a loss is multiplied by in the end."""
    factors = set()
    while node is not None and node.name() in PASSING:
        below = [child for child, _ in node.next_functions if child is not None]
        if len(below) != 1:
            break
        constant = multiplied_by(node)
        if constant is not None and constant.dtype == torch.float32 and constant.numel() == 1:
            factors.add(float(constant))
        node = below[0]
    return factors


FEW_TERMS = 64  # nodes to look at for what a loss is a sum of


def totals(roots: Sequence[Edge]) -> dict[int, list[int]]:
    """The losses that are a sum in which two others or more stand, scaled or not: for each the others' positions."""
    bare: dict[Edge, int] = {}
    for position, root in enumerate(roots):
        bare.setdefault(_unscaled(root), position)
    found = {}
    for position, root in enumerate(roots):
        parts = {bare[term] for term in _terms(_unscaled(root)) if term in bare} - {position}
        if len(parts) > 1:
            found[position] = sorted(parts)
    return found


def _unscaled(edge: Edge) -> Edge:
    """What a loss is a multiple of: one number, as it is itself."""
    while edge[0].name() in PASSING:
        below = _inputs(edge[0])
        if len(below) != 1 or prod(metadata_of(below[0]).shape) != 1:
            break
        edge = below[0]
    return edge


def _terms(total: Edge) -> list[Edge]:
    """What a loss is a sum of, without their factors, however the sum is nested."""
    terms: list[Edge] = []
    waiting = [total]
    while waiting and len(terms) < FEW_TERMS:
        edge = waiting.pop()
        if edge[0].name() in ADDING or edge[0].name() == STACK:
            below = [_unscaled(term) for term in _inputs(edge[0])]
            below = [term for term in below if prod(metadata_of(term).shape) == 1 or term[0].name() == STACK]
            terms += below
            waiting += below
    return terms


def _inputs(node: Node) -> list[Edge]:
    return [edge for edge in node.next_functions if edge[0] is not None]  # type: ignore[misc]


def cotangents(roots: Sequence[Edge], weights: Tensor | None) -> list[Tensor]:
    """The gradient that each loss starts with: 1, or its weight."""
    ones: dict[object, Tensor] = {}
    starts = []
    for i, edge in enumerate(roots):
        metadata = metadata_of(edge)
        key = (tuple(metadata.shape), metadata.dtype, metadata.device)
        if key not in ones:
            ones[key] = torch.ones(key[0], dtype=metadata.dtype, device=metadata.device)
        starts.append(ones[key] if weights is None else ones[key] * weights[i].to(ones[key]))
    return starts


def _losses_of_vector(losses: Tensor) -> tuple[Losses, list[Edge]]:
    known = Losses(tuple(range(len(losses))), len(losses), None, losses.detach().unbind())
    node = losses.grad_fn
    if node is not None and node.name() == STACK:  # torch.stack of scalars: look at the scalars themselves
        edges = [edge for edge in node.next_functions if edge[0] is not None]
        if len(edges) < len(losses):
            missing = [edge[0] is None for edge in node.next_functions].index(True)
            raise ValueError(f"`losses[{missing}]` does not require grad: nothing it depends on can be trained.")
        if len(set(edges)) < len(edges):
            raise ValueError("`losses` holds the same loss twice. Give each loss once.")
        return known, edges  # type: ignore[return-value]
    with torch.enable_grad():
        return known, [edge_of(loss) for loss in losses.unbind()]


def _is_differentiable(loss: Tensor) -> bool:
    return loss.is_floating_point() and loss.requires_grad


def _without_gradient(label: str) -> str:
    return f"`{label}` does not require grad: nothing it depends on can be trained. Leave it out, or give None for it."
