"""What a GradScaler has multiplied the losses by, found in their graph. Takes nothing out again."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from weakref import WeakSet

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.autograd.graph import Node
from torch.utils.weak import WeakTensorKeyDictionary

from .graph import Edge, metadata_of
from .methods.base import Losses

_SCALERS: WeakSet[GradScaler] = WeakSet()  # those seen so far
_CONSTANTS = WeakTensorKeyDictionary()  # factors that were none of theirs


def scale_of(losses: Losses, roots: Sequence[Edge]) -> float | None:
    """What `GradScaler.scale` has multiplied the losses by, whatever else multiplies them before or after it.

    Raises:
        ValueError: If it has not scaled all of them, or not the whole of one.
    """
    scales = _Scales()
    found = [_scales_above(root, scales) for root in roots]
    scale = next((scale for mine in found for scale in mine if scale != 1), None)
    for position, mine in enumerate(found if scale else ()):
        if mine != {scale}:
            raise ValueError(
                f"`losses[{losses.label(position)}]` is not, or not as a whole, scaled by the GradScaler that scales "
                f"others. Scale every loss, after all else: `scaler.scale(losses)`."
            )
    return scale


def _scales_above(root: Edge, scales: _Scales) -> set[float]:
    """The scale on each way from a loss down to where it is no number or list of numbers; 1 for none."""
    found = set()
    stack = [root]
    seen = set()
    while stack:
        edge = stack.pop()
        if edge in seen:
            continue
        seen.add(edge)
        node = edge[0]
        factor = _constant_factor(node)
        below = [child for child in node.next_functions if child[0] is not None]
        if factor is not None and factor in scales:
            found.add(float(factor))
        elif not below or len(metadata_of(edge).shape) > 1:
            found.add(1.0)
        else:
            stack.extend(below)  # type: ignore[arg-type]
    return found


def _constant_factor(node: Node) -> Tensor | None:
    """What this node multiplies by, if it may be a scale."""
    if node.name() != "MulBackward0" or node.next_functions[1][0] is not None:
        return None
    factor: Tensor | None = node._saved_other  # type: ignore[attr-defined]
    return factor if factor is not None and factor.ndim == 0 and factor.dtype == torch.float32 else None


class _Scales:
    """The scales of all GradScalers. One multiplies by its own tensor or by a copy, so they are told by their value."""

    def __init__(self) -> None:
        self.known: set[float] | None = None
        self.looked_around = False

    def __contains__(self, factor: Tensor) -> bool:
        if factor in _CONSTANTS:
            return False
        value = float(factor)
        if self.known is None:
            self.known = _values()
        if value not in self.known and not self.looked_around:
            _look_around()
            self.known = _values()
            self.looked_around = True
        if value not in self.known:
            _CONSTANTS[factor] = None
        return value in self.known


def _values() -> set[float]:
    return {scaler.get_scale() for scaler in _SCALERS if getattr(scaler, "_scale", None) is not None}


def _look_around() -> None:
    """See all GradScalers there are. None but the garbage collector knows them, and it takes 10 ms or more."""
    classes = [GradScaler]
    for cls in classes:
        classes.extend(cls.__subclasses__())
    _SCALERS.update(holder for holder in gc.get_referrers(*classes) if isinstance(holder, GradScaler))
