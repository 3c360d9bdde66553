"""Settings checked at the door: numbers, shares, whole numbers, choices. Knows no losses and no method."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeGuard

from torch import Tensor


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_number(value: float, label: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{label}` must be a number, but it is {type(value).__name__}.")
    if not math.isfinite(value):
        raise ValueError(f"`{label}` must be finite, but it is {value}.")
    return float(value)


def check_positive(value: float, label: str) -> float:
    if check_number(value, label) <= 0:
        raise ValueError(f"`{label}` must be above 0, but it is {value}.")
    return float(value)


def check_not_negative(value: float, label: str) -> float:
    if check_number(value, label) < 0:
        raise ValueError(f"`{label}` must be 0 or more, but it is {value}.")
    return float(value)


def check_share(value: float, label: str) -> float:
    """A share of something: a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{label}` must be a number, but it is {type(value).__name__}.")
    if not 0 <= value <= 1:
        raise ValueError(f"`{label}` must be between 0 and 1, but it is {value}.")
    return float(value)


def check_count(value: int, label: str, least: int = 1) -> int:
    if not is_whole(value):
        raise TypeError(f"`{label}` must be a whole number, but it is {type(value).__name__}.")
    if value < least:
        raise ValueError(f"`{label}` must be {least} or more, but it is {value}.")
    return value


def check_seed(seed: int | None) -> int | None:
    if seed is not None and not is_whole(seed):
        raise TypeError(f"`seed` must be a whole number or None, but it is {type(seed).__name__}.")
    return seed


def check_chunk_size(chunk_size: int | None) -> int | None:
    if chunk_size is not None and not (is_whole(chunk_size) and chunk_size > 0):
        raise ValueError(f"`chunk_size` must be None or a whole number above 0, but it is {chunk_size!r}.")
    return chunk_size


def check_one_of(value: str, label: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"`{label}` must be one of {', '.join(map(repr, choices))}, but it is {value!r}.")
    return value


Keep = float | Callable[[Tensor], Tensor]
"""The slope of GradDrop's keep function, or the function itself."""


def check_keep(keep: Keep) -> Keep:
    if callable(keep):
        return keep
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise TypeError(f"`keep` must be a number or a function of the purity, but it is {type(keep).__name__}.")
    if not 0 <= keep < math.inf:
        raise ValueError(f"`keep` must be 0 or a finite number above it, but it is {keep}.")
    return float(keep)


def check_leaks(leak: float | Sequence[float], n_losses: int) -> tuple[float, ...]:
    """The leak of each loss."""
    if isinstance(leak, (int, float)):
        return (check_share(leak, "leak"),) * n_losses
    leaks = tuple(check_share(value, f"leak[{i}]") for i, value in enumerate(leak))
    if len(leaks) != n_losses:
        raise ValueError(
            f"`leak` has {len(leaks)} values for {n_losses} losses. Give one number, or one number per loss."
        )
    return leaks


def check_marginalize(marginalize: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if marginalize is None:
        return None
    dims = (marginalize,) if isinstance(marginalize, int) else tuple(marginalize)
    if not dims or not all(map(is_whole, dims)):
        raise ValueError(f"`marginalize` must be a dim or several dims of the activation, but it is {marginalize!r}.")
    return dims


@cache
def needs_closure(step: Callable[..., Any]) -> bool:
    """Whether an optimizer's step cannot do without one."""
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
