"""What `at` may be, and which way through a backward pass it stands for: new kinds of sites go here. Takes no rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import Tensor, nn

from .._checks import is_listed, near_names, type_of
from .activations import combine_at_activations, combine_nested
from .backward import Backward
from .explanation import Explanation
from .modules import combine_at_modules
from .parameters import combine_at_parameters

At = str | list[nn.Module] | list[Tensor]

NAMED: dict[str, Callable[[Backward], Explanation]] = {
    "activations": combine_at_activations,
    "nested": combine_nested,
    "parameters": combine_at_parameters,
    "all parameters": partial(combine_at_parameters, every=True),
}


def combine_at(at: At, backward: Backward) -> Explanation:
    """Take the backward pass with the rows combined there."""
    if isinstance(at, str):
        return NAMED[at](backward)
    chosen = of_parameters(at)
    return combine_at_modules(backward) if chosen is None else combine_at_parameters(backward, chosen=chosen)


def of_parameters(at: At) -> list[Tensor] | None:
    """The parameters that were chosen, if some were."""
    return None if isinstance(at, str) else [each for each in at if isinstance(each, Tensor)] or None


def takes_parameters(at: At) -> bool:
    """Whether rows are taken at parameters."""
    return of_parameters(at) is not None or at in ("parameters", "all parameters")


def in_words(at: At) -> str:
    if isinstance(at, str):
        return f'"{at}"'
    chosen = of_parameters(at)
    return str([type(module).__name__ for module in at]) if chosen is None else f"{len(chosen)} parameters"


def check_at(at: str | nn.Module | Tensor | Iterable[nn.Module | Tensor], parameters: Sequence[Tensor]) -> At:
    choices = ", ".join(f'"{name}"' for name in NAMED) + ", a module or several modules, or parameters"
    if isinstance(at, str):
        if at not in NAMED:
            hint = near_names(at, list(NAMED)) or " Name a module by itself, e.g. at=model.trunk."
            raise ValueError(f"`at` must be {choices}, but it is {at!r}.{hint}")
        return at
    if isinstance(at, nn.Module):
        _check_called(at, "at")
        return [at]
    if isinstance(at, Tensor):
        return _checked_parameters([at], parameters)
    if not is_listed(at):
        raise TypeError(f"`at` must be {choices}, but it is {type_of(at)}.")
    given = list(at)
    if not given:
        raise ValueError(f"`at` is empty: it must be {choices}.")
    if isinstance(given[0], Tensor):
        return _checked_parameters(given, parameters)
    modules: list[nn.Module] = []
    for i, module in enumerate(given):
        if not isinstance(module, nn.Module):
            raise TypeError(f"`at[{i}]` must be a module, but it is {type_of(module)}.")
        if module in modules:
            raise ValueError(f"`at[{i}]` is the same module as `at[{modules.index(module)}]`. Name each once.")
        _check_called(module, f"at[{i}]")
        modules.append(module)
    return modules


def _checked_parameters(given: Sequence[object], parameters: Sequence[Tensor]) -> list[Tensor]:
    known = set(map(id, parameters))
    chosen: dict[int, Tensor] = {}
    for i, parameter in enumerate(given):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"`at[{i}]` must be a parameter, as the first is, but it is {type_of(parameter)}.")
        if id(parameter) not in known:
            raise ValueError(
                f"`at[{i}]`, of shape {tuple(parameter.shape)}, is no parameter of the inner optimizer, so no step "
                f"would take what is combined there. Leave it out, or give it to the optimizer."
            )
        chosen[id(parameter)] = parameter
    return list(chosen.values())


def _check_called(module: nn.Module, label: str) -> None:
    """Refuse a mere container: it is found by the outputs of its forward, and has none."""
    if type(module).forward is nn.Module.forward and "forward" not in vars(module):
        way = {nn.ModuleList: "at=list(modules)", nn.ModuleDict: "at=list(modules.values())"}
        hint = way.get(type(module), "at=[first, second]")
        raise ValueError(
            f"`{label}` is a {type(module).__name__}, whose forward is never called, so that it has no outputs. Name "
            f"the modules in it: {hint}."
        )
