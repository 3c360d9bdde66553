"""The settings of methods, checked at the door: numbers, and numbers per loss. No method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from .._transform import Losses

Setting = float | Sequence[float] | Mapping[str, float]
"""One number for all losses, one for each, or a dict by loss name."""


def check_setting(value: Setting, label: str, check: Callable[[float, str], float]) -> Setting:
    """A setting whose every number passes `check(number, label)`."""
    if isinstance(value, Mapping):
        return {name: check(number, f"{label}[{name!r}]") for name, number in value.items()}
    if isinstance(value, (int, float)):
        return check(value, label)
    return tuple(check(number, f"{label}[{i}]") for i, number in enumerate(value))


def by_loss(value: Setting, losses: Losses, label: str, unnamed: float) -> list[float]:
    """A setting's number for each of the losses; `unnamed` for those that a dict does not name.

    Raises:
        ValueError: If the setting has another number of values, or names a loss that is not there.
    """
    if isinstance(value, Mapping):
        if losses.names is None:
            raise ValueError(f"`{label}` is a dict by loss name, but the losses have no names. Give them as a dict.")
        unknown = sorted(value.keys() - set(losses.names))
        if unknown:
            raise ValueError(f"`{label}` names {unknown}, but the losses are {list(losses.names)}.")
        return [value.get(losses.names[i], unnamed) for i in losses.indices]
    if isinstance(value, (int, float)):
        return [value] * len(losses)
    if len(value) != losses.n_losses:
        raise ValueError(
            f"`{label}` has {len(value)} values for {losses.n_losses} losses. Give one number, or one number per loss."
        )
    return [value[i] for i in losses.indices]


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
    if not 0 <= check_number(value, label) <= 1:
        raise ValueError(f"`{label}` must be between 0 and 1, but it is {value}.")
    return float(value)


def check_count(value: int, label: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{label}` must be a whole number, but it is {type(value).__name__}.")
    if value < least:
        raise ValueError(f"`{label}` must be {least} or more, but it is {value}.")
    return value


def check_one_of(value: str, label: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"`{label}` must be one of {', '.join(map(repr, choices))}, but it is {value!r}.")
    return value


def check_values_positive(losses: Losses, method: str) -> None:
    """Refuse losses whose values a method cannot take."""
    for position, value in enumerate(losses.values.tolist()):
        if value <= 0:
            raise ValueError(
                f"`losses[{losses.label(position)}]` is {value:g}, but {method} needs losses above 0. Add a constant "
                f"to it, or leave it out of this step."
            )
