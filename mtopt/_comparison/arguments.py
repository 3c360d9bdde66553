"""The arguments of `compare`, checked at the door. No training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from .. import _methods
from .._checks import check_count, check_positive, kind_of, near_names
from .._transform import Transform

PLAIN = "plain sum"

MethodLike = Transform | Sequence[Transform] | Callable[[], Transform | Sequence[Transform]]
"""One transform, a list of them, or a function that makes these."""

MethodsLike = Mapping[str, MethodLike] | Iterable[str]
"""Methods by name, or the names of mtopt's own."""

BatchesLike = Iterable[Any] | Callable[[int], Iterable[Any]]
"""Batches that can be gone through again and again, or a function of the seed that gives those of one epoch."""

SiteLike = str | Callable[[nn.Module], nn.Module | Iterable[nn.Module]]
"""Where gradients are combined: "activations", "parameters", a submodule's name, or a function that picks modules."""

SitesLike = SiteLike | Mapping[str, SiteLike]
"""The same for all methods, or by method."""


def check_functions(make_model: object, make_losses: object, make_optimizer: object, make_metrics: object) -> None:
    needed = {
        "make_model": (make_model, "that returns a new model in each call, e.g. lambda: Net()"),
        "make_losses": (make_losses, "of a model and a batch that returns the losses"),
        "make_optimizer": (make_optimizer, "of parameters that returns a torch.optim.Optimizer"),
        "make_metrics": (make_metrics, "of a model that returns a dict of numbers"),
    }
    for name, (value, what) in needed.items():
        if value is None and name in ("make_optimizer", "make_metrics"):
            continue
        if not callable(value) or isinstance(value, nn.Module):
            raise TypeError(f"`{name}` must be a function {what}, but it is {kind_of(value)}.")


def check_batches(batches: BatchesLike) -> BatchesLike:
    if isinstance(batches, Iterator):
        raise TypeError(
            f"`batches` is {kind_of(batches)}, which is used up after one run. Give a list, a DataLoader, or "
            f"a function of the seed that makes it anew."
        )
    if isinstance(batches, str) or not (isinstance(batches, Iterable) or callable(batches)):
        raise TypeError(
            f"`batches` must be a list, a DataLoader or a function of the seed, but it is {kind_of(batches)}."
        )
    return batches


def check_methods(methods: MethodsLike) -> dict[str, MethodLike]:
    """The methods by name, the plain sum first."""
    if isinstance(methods, Mapping):
        given: dict[str, MethodLike] = dict(methods)
    elif isinstance(methods, Iterable) and not isinstance(methods, (str, Transform)):
        given = {name: public_method(name) for name in methods}
    else:
        raise TypeError(
            f"`methods` must be a dict of transforms by name, or a list of names, but it is {kind_of(methods)}. "
            f'For example ["GradDrop", "MGDA"].'
        )
    for name, method in given.items():
        if not isinstance(name, str):
            raise TypeError(f"`methods` must have strings as names, but one is {name!r}.")
        listed = isinstance(method, Sequence) and not isinstance(method, str)
        if not (listed or isinstance(method, Transform) or callable(method)):
            raise TypeError(
                f"`methods[{name!r}]` must be a transform, a list of transforms or a function that makes these, but it "
                f"is {kind_of(method)}."
            )
    plain = given.pop(PLAIN, ())
    if callable(plain) or isinstance(plain, Transform) or len(plain) > 0:
        raise ValueError(f"`methods[{PLAIN!r}]` is the name of the plain sum, which is always there. Take another.")
    if not given:
        raise ValueError(f'`methods` is empty: name what to compare with the {PLAIN}, e.g. ["GradDrop"].')
    return {PLAIN: (), **given}


def check_seeds(seeds: int | Iterable[int]) -> list[int]:
    if not isinstance(seeds, Iterable) or isinstance(seeds, str):
        return list(range(check_count(seeds, "seeds")))
    checked = [check_count(seed, f"seeds[{i}]", 0) for i, seed in enumerate(seeds)]
    if not checked:
        raise ValueError("`seeds` is empty: give at least one, or 3 and more for a test.")
    twice = sorted({seed for seed in checked if checked.count(seed) > 1})
    if twice:
        raise ValueError(f"`seeds` has {twice} more than once: the same run again tells nothing. Give each seed once.")
    return checked


def check_length(epochs: int, seconds: float | None) -> float | None:
    """`seconds`, as a number."""
    check_count(epochs, "epochs")
    if seconds is None:
        return None
    if epochs != 1:
        raise ValueError(f"`epochs` is {epochs} and `seconds` is {seconds}. Give one of them.")
    return check_positive(seconds, "seconds")


def check_sites(at: SitesLike, methods: Sequence[str]) -> SitesLike:
    if not isinstance(at, Mapping):
        return _check_site(at, "at")
    for name in at:
        if name not in methods:
            near = near_names(str(name), methods) or f" They are {', '.join(map(repr, methods))}."
            raise ValueError(f"`at` has {name!r}, which is none of the `methods`.{near}")
    return {name: _check_site(site, f"at[{name!r}]") for name, site in at.items()}


def _check_site(at: SiteLike, label: str) -> SiteLike:
    if not (isinstance(at, str) or callable(at)) or isinstance(at, nn.Module):
        raise TypeError(
            f"`{label}` is {kind_of(at)}, but each run has a model of its own. Give a submodule's name, e.g. "
            f'at="trunk", or a function, e.g. at=lambda model: model.trunk.'
        )
    return at


def public_method(name: object, others: Sequence[str] = ()) -> Callable[[], Transform] | tuple[()]:
    """One of mtopt's methods; `others` may be meant, too, where there is no such name."""
    if not isinstance(name, str):
        raise TypeError(
            f"`methods` must be a list of names, but it has {name!r}. Give transforms in a dict, by names of your own."
        )
    known: dict[str, type[Transform]] = {key: getattr(_methods, key) for key in _methods.__all__}
    if name == PLAIN:
        return ()
    if name not in known:
        near = near_names(name, [*others, *known]) or f" It has {', '.join(sorted(known, key=str.lower))}."
        raise ValueError(f"`methods` has {name!r}, which is no method of mtopt.{near}")
    needed = [s.name for s in inspect.signature(known[name]).parameters.values() if s.default is s.empty]
    if needed:
        raise ValueError(
            f"`methods` has {name!r}, which needs `{needed[0]}`. Give it in a dict: "
            f'{{"{name}": mtopt.{name}({needed[0]}=...)}}.'
        )
    return known[name]
