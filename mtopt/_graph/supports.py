"""Which loss reaches which coordinates of a tensor, as far as the structure of the graph tells. No gradients are taken.

Nodes that only move parts of a tensor (slices, `cat`, `stack`, `unbind`, in-place filling, views) are asked where ones
go. Through nodes that work number by number a part stays that part. All others spread what reaches them everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .._torch import COVERING, CUTTING, ELEMENTWISE, HOOKS_CAN_BE_SEEN, may_be_used_once, outputs_of

Edge = tuple[Node, int]
Children = tuple[tuple[Node | None, int], ...]

State = dict[int, Tensor | None]
"""For each loss, by position, where it reaches a tensor: a mask, or `None` for everywhere. Other losses do not."""


def supports(roots: Sequence[Edge], edges: Mapping[Node, Children]) -> tuple[dict[Edge, State], dict[Edge, int]]:
    """The state of each tensor that a loss reaches; and where less losses go on to an input of a node than reach it,
    a bit mask of these.

    `edges` are in topological order.
    """
    states: dict[Edge, State] = {}
    fewer: dict[Edge, int] = {}
    for position, root in enumerate(roots):
        states.setdefault(root, {})[position] = None
    everyone = set(range(len(roots)))
    for node, children in edges.items():
        n_outputs = len(outputs_of(node))
        arrived = {k: states[node, k] for k in range(n_outputs) if (node, k) in states}
        positions = set().union(*arrived.values())
        if not positions:
            continue
        alike = len(arrived) == n_outputs and all(
            set(s.values()) == {None} and len(s) == len(everyone) for s in arrived.values()
        )
        passed = _passed_on(node, children, arrived, positions, alike=alike)
        for k, (edge, state) in enumerate(zip(children, passed, strict=True)):
            if edge[0] is not None and state:
                _join(states.setdefault(edge, {}), state)  # type: ignore[arg-type]
            if edge[0] is not None and len(state) < len(positions):
                fewer[node, k] = sum(1 << position for position in state)
    return states, fewer


def connected(state: State) -> list[set[int]]:
    """The losses in groups: within one each overlaps with another, and no two groups share a coordinate."""
    groups: list[tuple[set[int], Tensor | None]] = []
    for position, support in state.items():
        members, union = {position}, support
        apart = []
        for others, where in groups:
            if union is None or where is None or bool((union & where).any()):
                members |= others
                union = None if union is None or where is None else union | where
            else:
                apart.append((others, where))
        groups = [*apart, (members, union)]
    return [members for members, _ in groups]


def _join(state: State, new: State) -> None:
    for position, support in new.items():
        if position not in state:
            state[position] = support
        elif (before := state[position]) is not None:
            state[position] = None if support is None else before | support


def _passed_on(
    node: Node, children: Children, arrived: Mapping[int, State], positions: set[int], *, alike: bool
) -> list[State]:
    """What of each loss goes on to each input."""
    name = node.name()
    moving = name in CUTTING or name in COVERING
    if alike or not (moving or name in ELEMENTWISE):  # alike: wherever they go on to, all of them do
        return [dict.fromkeys(positions) for _ in children]
    passed: list[State] = [{} for _ in children]
    done: dict[tuple[object, ...], list[State]] = {}
    for position in sorted(positions):
        here = {k: state[position] for k, state in arrived.items() if position in state}
        key = tuple((k, None if support is None else id(support)) for k, support in here.items())
        if key not in done:
            below = _moved(node, children, here) if moving else _spread(children, *here.values())
            done[key] = [{} if support is False else {0: support} for support in below]  # type: ignore[dict-item]
        for state, one in zip(passed, done[key], strict=True):
            if one:
                state[position] = one[0]
    return passed


def _moved(node: Node, children: Children, here: Mapping[int, Tensor | None]) -> list[Tensor | bool | None]:
    """Where ones go that stand where a loss reaches the outputs; False where none does."""
    if node.name() in COVERING and all(support is None for support in here.values()):
        return [None] * len(children)
    if HOOKS_CAN_BE_SEEN and may_be_used_once(node):
        return [None] * len(children)
    gradients: list[Tensor | None] = [None] * len(outputs_of(node))
    for k, support in here.items():
        made = outputs_of(node)[k]
        ones = torch.ones(tuple(made.shape), dtype=made.dtype, device=made.device)
        gradients[k] = ones if support is None else ones * support
    try:
        with torch.no_grad():
            found = node(*gradients)  # type: ignore[operator]
    except (RuntimeError, TypeError):  # it wants something else than a plain tensor
        return [None] * len(children)
    parts = found if isinstance(found, tuple) else (found,)
    return [False if part is None else _simple(part != 0) for part in parts]


def _spread(children: Children, support: Tensor | None) -> list[Tensor | bool | None]:
    """The same through a node that works number by number; what is broadcast there has the sum of its copies."""
    if support is None:
        return [None] * len(children)
    below: list[Tensor | bool | None] = []
    for child, number in children:
        shape = support.shape if child is None else outputs_of(child)[number].shape
        if tuple(shape) == tuple(support.shape):
            below.append(support)
        elif len(shape) <= support.ndim:
            below.append(_simple(support.float().sum_to_size(tuple(shape)) > 0))
        else:
            below.append(None)  # a reduction
    return below


def _simple(mask: Tensor) -> Tensor | bool | None:
    """None for everywhere, False for nowhere."""
    if bool(mask.all()):
        return None
    return mask if bool(mask.any()) else False
