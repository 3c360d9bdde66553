"""Settings of methods that are numbers per loss, checked at the door; and losses with unfit values. No method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from .._checks import is_listed, is_whole
from .._transform import Losses

Setting = float | Sequence[float] | Mapping[str, float]
"""One number for all losses, one for each, or a dict by loss name."""


def check_setting(value: Setting, label: str, check: Callable[[float, str], float]) -> Setting:
    """A setting whose every number passes `check(number, label)`."""
    if isinstance(value, Mapping):
        unnamed = [name for name in value if not isinstance(name, str)]
        if unnamed:
            raise TypeError(f"`{label}` must have names of losses as keys, but one is {unnamed[0]!r}. Or give a list.")
        return {name: check(number, f"{label}[{name!r}]") for name, number in value.items()}
    if is_listed(value):
        return tuple(check(number, f"{label}[{i}]") for i, number in enumerate(value))  # type: ignore[arg-type]
    return check(value, label)  # type: ignore[arg-type]


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


Which = int | str | tuple[int | str, ...]
"""A loss by index or name, or several."""


def check_which(value: int | str | Iterable[int | str], label: str) -> Which:
    """A loss by index or name, or a list of some.

    Raises:
        TypeError: If one is neither.
        ValueError: If the list is empty.
    """
    found: list[int | str] = []
    for each in tuple(value) if is_listed(value) else (value,):
        if not isinstance(each, str) and not (is_whole(each) and each >= 0):
            raise TypeError(f"`{label}` must be the index or name of a loss, or a list of these, but it is {each!r}.")
        found.append(each if isinstance(each, str) else int(each))
    if not found:
        raise ValueError(f"`{label}` must have one loss or more, but it is empty.")
    return tuple(found) if is_listed(value) else found[0]


def indices_of(which: Which, losses: Losses, label: str) -> set[int]:
    """The indices of those losses, whether they are present or not.

    Raises:
        ValueError: If one of them is not there.
    """
    names = losses.names or ()
    found = set()
    for each in which if isinstance(which, tuple) else (which,):
        if isinstance(each, str) and each not in names:
            known = f"the losses are {list(names)}" if names else "they have no names. Give them as a dict"
            raise ValueError(f"`{label}` names {each!r}, but {known}.")
        if not isinstance(each, str) and each >= losses.n_losses:
            raise ValueError(f"`{label}` is the loss with index {each}, but there are {losses.n_losses}.")
        found.add(names.index(each) if isinstance(each, str) else each)
    return found


def check_values_positive(losses: Losses, method: str) -> None:
    """Refuse losses whose values a method cannot take."""
    for position, value in enumerate(losses.values.tolist()):
        if value <= 0:
            raise ValueError(
                f"`losses[{losses.label(position)}]` is {value:g}, but {method} needs losses above 0. Add a constant "
                f"to it, or leave it out of this step."
            )
