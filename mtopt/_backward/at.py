"""What `at` may be, and which way through a backward it stands for: a new kind of site is named here. Takes no rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from torch import nn

from .._checks import is_listed, near_names, type_of
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
            hint = near_names(at, list(NAMED)) or " Name a module by itself, e.g. at=model.trunk."
            raise ValueError(f"`at` must be {choices}, but it is {at!r}.{hint}")
        return at
    if isinstance(at, nn.Module):
        _check_called(at, "at")
        return [at]
    if not is_listed(at):
        raise TypeError(f"`at` must be {choices}, but it is {type_of(at)}.")
    modules: list[nn.Module] = []
    for i, module in enumerate(at):
        if not isinstance(module, nn.Module):
            hint = ' For the shared parameters, at="parameters".' if isinstance(module, nn.Parameter) else ""
            raise TypeError(f"`at[{i}]` must be a module, but it is {type_of(module)}.{hint}")
        if module in modules:
            raise ValueError(f"`at[{i}]` is the same module as `at[{modules.index(module)}]`. Name each once.")
        _check_called(module, f"at[{i}]")
        modules.append(module)
    if not modules:
        raise ValueError(f"`at` is empty: it must be {choices}.")
    return modules


def _check_called(module: nn.Module, label: str) -> None:
    """Refuse a mere container: it is found by the outputs of its forward, and has none."""
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        way = {nn.ModuleList: "at=list(modules)", nn.ModuleDict: "at=list(modules.values())"}
        hint = way.get(type(module), "at=[first, second]")
        raise ValueError(
            f"`{label}` is a {type(module).__name__}, whose forward is never called, so that it has no outputs. Name "
            f"the modules in it: {hint}."
        )
