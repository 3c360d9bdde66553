"""What `at` may be, and which way through a backward it stands for: a new kind of site is named here. Takes no rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from torch import nn

from .activations import combine_at_activations, combine_nested
from .backward import Backward
from .explanation import Explanation
from .modules import combine_at_modules
from .parameters import combine_at_parameters

At = str | list[nn.Module]

NAMED: dict[str, Callable[[Backward], Explanation]] = {
    "activations": combine_at_activations,
    "nested": combine_nested,
    "parameters": combine_at_parameters,
    "all parameters": partial(combine_at_parameters, every=True),
}


def combine_at(at: At, backward: Backward) -> Explanation:
    """Take the backward with the rows combined there."""
    return NAMED[at](backward) if isinstance(at, str) else combine_at_modules(backward)


def check_at(at: str | nn.Module | Iterable[nn.Module]) -> At:
    choices = ", ".join(f'"{name}"' for name in NAMED) + ", a module or several modules"
    if isinstance(at, str):
        if at not in NAMED:
            raise ValueError(f"`at` must be {choices}, but it is {at!r}.")
        return at
    if isinstance(at, nn.Module):
        return [at]
    if not isinstance(at, Iterable):
        raise TypeError(f"`at` must be {choices}, but it is {type(at).__name__}.")
    modules = list(at)
    for i, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise TypeError(f"`at[{i}]` must be a module, but it is {type(module).__name__}.")
    if not modules:
        raise ValueError(f"`at` is empty: it must be {choices}.")
    return modules
