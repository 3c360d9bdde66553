"""What all runs of a comparison have in common, and what of it is written down. No training."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._backward.at import NAMED
from .._checks import kind_of, near_names
from .._draws import Draws
from .._optimizer import MultiLossOptimizer
from .._transform import LossesLike, Transform
from .._version import __version__
from .arguments import (
    BatchesLike,
    MethodLike,
    MethodsLike,
    SiteLike,
    SitesLike,
    check_batches,
    check_functions,
    check_length,
    check_methods,
    check_seeds,
    check_sites,
)
from .randomness import RandomStream

SITES = tuple(NAMED)


@dataclass(frozen=True)
class Study:
    """What all runs have in common; checked."""

    make_model: Callable[[], nn.Module]
    make_losses: Callable[[nn.Module, Any], LossesLike]
    batches: BatchesLike
    methods: Mapping[str, MethodLike]
    seeds: Sequence[int]
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer] | None
    make_metrics: Callable[[nn.Module], Mapping[str, float | Tensor]] | None
    at: SitesLike
    epochs: int
    seconds: float | None

    def transforms(self, method: str, seed: int) -> list[Transform]:
        """New transforms for one run. Their private random numbers differ from seed to seed."""
        given = self.methods[method]
        made = given() if callable(given) and not isinstance(given, Transform) else given
        if not isinstance(made, (Transform, Sequence)):
            raise TypeError(
                f"`methods[{method!r}]` must make a transform or a list of them, but it made {kind_of(made)}."
            )
        transforms: list[Transform] = copy.deepcopy([made] if isinstance(made, Transform) else list(made))
        for transform in transforms:
            for draws in _draws_of(transform):
                draws.seed += seed << 32
        return transforms

    def site(self, method: str) -> SiteLike:
        """`at` of one method."""
        return self.at.get(method, SITES[0]) if isinstance(self.at, Mapping) else self.at

    def sites(self, method: str, model: nn.Module) -> str | nn.Module | Iterable[nn.Module]:
        """`at` of one method, for the model of one run."""
        at = self.site(method)
        if not isinstance(at, str):
            return at(model)
        if at in SITES:
            return at
        modules: dict[str, nn.Module] = dict(model.named_modules())
        if at not in modules:
            raise ValueError(
                f'`at` must be "activations", "parameters" or the name of a submodule, but the model has no '
                f"{at!r}.{near_names(at, list(modules))}"
            )
        return modules[at]

    def order(self) -> Iterator[tuple[str, int]]:
        """Method and seed of each run. Methods take turns in being first, so that slow hours hit all alike."""
        names = list(self.methods)
        for i, seed in enumerate(self.seeds):
            first = i % len(names)
            yield from ((name, seed) for name in names[first:] + names[:first])

    def description(self) -> dict[str, Any]:
        """What must be the same for runs to belong together, JSON-able.

        Raises:
            TypeError: If a method is none.
            ValueError: If a method's transforms do not fit each other or `at`.
        """
        length = {"epochs": self.epochs} if self.seconds is None else {"seconds": self.seconds}
        at = {m: _in_words(at) for m, at in self.at.items()} if isinstance(self.at, Mapping) else _in_words(self.at)
        with RandomStream(0):  # functions that make transforms may draw
            settings = {name: self._settings(name) for name in self.methods}
        return {
            "methods": settings,
            "seeds": list(self.seeds),
            **length,
            "at": at,
            "metrics": self.make_metrics is not None,
            "threads": torch.get_num_threads(),
            "versions": {"mtopt": __version__, "torch": torch.__version__},
        }

    def _settings(self, method: str) -> str:
        parameter = nn.Parameter(torch.zeros(()))
        at = self.site(method)
        try:
            transforms = self.transforms(method, 0)
            somewhere = at if at in SITES else nn.Identity()
            optimizer = MultiLossOptimizer(torch.optim.SGD([parameter]), transforms, at=somewhere)
        except Exception as error:
            error.add_note(f"In `methods[{method!r}]`.")
            raise
        return re.sub(r" at 0x[0-9a-f]+", "", repr(optimizer.pipeline))


def _in_words(at: SiteLike) -> str:
    return at if isinstance(at, str) else f"function {getattr(at, '__qualname__', type(at))}"


def checked_study(
    make_model: Callable[[], nn.Module],
    make_losses: Callable[[nn.Module, Any], LossesLike],
    batches: BatchesLike,
    methods: MethodsLike,
    seeds: int | Iterable[int] = 5,
    *,
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    make_metrics: Callable[[nn.Module], Mapping[str, float | Tensor]] | None = None,
    at: SitesLike = SITES[0],
    epochs: int = 1,
    seconds: float | None = None,
) -> Study:
    """The study that these arguments of `compare` ask for.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has a wrong value.
    """
    check_functions(make_model, make_losses, make_optimizer, make_metrics)
    by_name = check_methods(methods)
    return Study(
        make_model,
        make_losses,
        check_batches(batches),
        by_name,
        check_seeds(seeds),
        make_optimizer,
        make_metrics,
        check_sites(at, list(by_name)),
        epochs,
        check_length(epochs, seconds),
    )


def _draws_of(transform: Transform) -> Iterator[Draws]:
    """Its random numbers, and those of a method that it asks."""
    for part in vars(transform).values():
        if isinstance(part, Draws):
            yield part
        elif isinstance(part, Transform):
            yield from _draws_of(part)
