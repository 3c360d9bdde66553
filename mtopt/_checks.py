"""Settings checked at the door: numbers, shares, whole numbers, names, choices. Knows no losses and no method."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any, TypeGuard

import torch
from torch import Tensor


def type_of(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def kind_of(value: object) -> str:
    return type_of(value) if isinstance(value, type) else f"a {type_of(value)}"


def nearest(name: str, known: Sequence[str]) -> list[str]:
    """Those that may have been meant, the nearest first."""
    by_lower = {key.lower(): key for key in known if key}
    return [by_lower[key] for key in difflib.get_close_matches(name.lower(), by_lower)]


def near_names(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, NumPy's included, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, NumPy's included, and not a truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_listed(value: object) -> TypeGuard[Iterable[object]]:
    """Whether it has values in an order: no string, no set, no tensor."""
    unfit = isinstance(value, (str, bytes, Mapping, set, frozenset, Tensor)) or getattr(value, "ndim", 1) == 0
    return isinstance(value, Iterable) and not unfit


def check_number(value: float, label: str) -> float:
    if not is_number(value):
        raise TypeError(f"`{label}` must be a number, but it is {type_of(value)}.{_to_number(value)}")
    if not math.isfinite(value):
        raise ValueError(f"`{label}` must be finite, but it is {value}.")
    return float(value)


def _to_number(value: object) -> str:
    """How it would be one."""
    if isinstance(value, str):
        return " Call float() on it."
    if hasattr(value, "tolist"):
        return f" Call .{'tolist' if getattr(value, 'ndim', 0) else 'item'}() on it."
    return " Write 1.0 or 0.0." if isinstance(value, bool) else ""


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
    if is_number(value) and not 0 <= value <= 1:
        raise ValueError(f"`{label}` must be between 0 and 1, but it is {value}.")
    return check_number(value, label)


def check_beta(value: float, label: str) -> float:
    """A weight of the past: a number in [0, 1)."""
    if is_number(value) and not 0 <= value < 1:
        raise ValueError(f"`{label}` must be between 0 and 1, and below 1, but it is {value}.")
    return check_number(value, label)


def check_count(value: int, label: str, least: int = 1) -> int:
    if not is_whole(value):
        raise TypeError(f"`{label}` must be a whole number, but it is {type(value).__name__}.")
    if value < least:
        raise ValueError(f"`{label}` must be {least} or more, but it is {value}.")
    return int(value)


def check_flag(value: bool, label: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"`{label}` must be True or False, but it is {value!r}.")
    return value


def check_seed(seed: int | None) -> int | None:
    if seed is None:
        return None
    if not is_whole(seed):
        raise TypeError(f"`seed` must be a whole number or None, but it is {type(seed).__name__}.")
    return int(seed)


def check_chunk_size(chunk_size: int | None) -> int | None:
    if chunk_size is None:
        return None
    if not (is_whole(chunk_size) and chunk_size > 0):
        raise ValueError(f"`chunk_size` must be None or a whole number above 0, but it is {chunk_size!r}.")
    return int(chunk_size)


def check_state_dict(state_dict: object) -> None:
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"`state_dict` must be what `state_dict()` gave, a dict, but it is {type_of(state_dict)}.")


def check_one_of(value: str, label: str, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        near = near_names(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"`{label}` must be one of {', '.join(map(repr, choices))}, but it is {value!r}.{near}")
    return value


def check_loss_names(losses: int | Iterable[str]) -> tuple[int, tuple[str, ...] | None]:
    """How many losses there are, and their names, if these are given."""
    names = tuple(losses) if is_listed(losses) else None
    if not (is_whole(losses) if names is None else all(isinstance(name, str) for name in names)):
        hint = f" Give a list, [{losses!r}]." if isinstance(losses, str) else ""
        raise TypeError(f"`losses` must be how many losses there are, or a list of names, but it is {losses!r}.{hint}")
    n_losses = int(losses) if is_whole(losses) else len(names or ())
    if n_losses < 1:
        raise ValueError(f"`losses` must be at least 1 loss, or one name or more, but it is {losses!r}.")
    if names is not None and len(set(names)) < n_losses:
        raise ValueError(f"`losses` names one loss twice: {list(names)}.")
    return n_losses, names  # type: ignore[return-value]  # strings, by now


Keep = float | Callable[[Tensor], Tensor]
"""The slope of GradDrop's keep function, or the function itself."""


def check_keep(keep: Keep) -> Keep:
    if callable(keep) and not isinstance(keep, type):
        return keep
    if not is_number(keep):
        hint = " Call it to make a function." if isinstance(keep, type) else _to_number(keep)
        raise TypeError(f"`keep` must be a number or a function of the purity, but it is {type_of(keep)}.{hint}")
    if not 0 <= keep < math.inf:
        raise ValueError(f"`keep` must be 0 or a finite number above it, but it is {keep}.")
    return float(keep)


def try_keep(keep: Keep) -> Keep:
    """Try a keep function on three purities: a wrong type shall not come up in the middle of a backward pass."""
    if not callable(keep):
        return keep
    try:
        shares = keep(torch.tensor([0.0, 0.5, 1.0], device="cpu"))
    except Exception:  # it may need another shape or device
        return keep
    needed = "`keep` must return one share for each purity, in a tensor of the same shape, but"
    if not isinstance(shares, Tensor) and not is_number(shares):
        raise TypeError(f"{needed} it returned {type_of(shares)}.")
    if isinstance(shares, Tensor) and shares.is_complex():
        raise TypeError(f"{needed} it returned a tensor of dtype {shares.dtype}.")
    return keep


def check_leaks(leak: float | Sequence[float], n_losses: int) -> tuple[float, ...]:
    """The leak of each loss."""
    if not is_listed(leak):
        return (check_share(leak, "leak"),) * n_losses  # type: ignore[arg-type]
    leaks = tuple(check_share(value, f"leak[{i}]") for i, value in enumerate(leak))  # type: ignore[arg-type]
    if len(leaks) != n_losses:
        raise ValueError(
            f"`leak` has {len(leaks)} values for {n_losses} losses. Give one number, or one number per loss."
        )
    return leaks


def check_marginalize(marginalize: int | Iterable[int] | None) -> tuple[int, ...] | None:
    if marginalize is None:
        return None
    dims = tuple(marginalize) if is_listed(marginalize) or isinstance(marginalize, (set, frozenset)) else (marginalize,)
    if not dims or not all(map(is_whole, dims)):
        raise ValueError(f"`marginalize` must be a dim or several dims of the activation, but it is {marginalize!r}.")
    return tuple(map(int, dims))


@cache
def needs_closure(step: Callable[..., Any]) -> bool:
    """Whether an optimizer's step cannot do without one."""
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
