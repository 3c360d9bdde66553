"""The batches of a run: the same for every method, whatever a method or a model draws. No training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from .arguments import BatchesLike
from .randomness import RandomStream

_OTHER = 0x5DEECE66  # Batches draw other numbers than weights do from the same seed.


class Batches:
    """The user's batches, made with global random numbers that are not the training's.

    Args:
        given: Batches, or a function of the seed that gives those of one epoch.
        seed: What their random numbers begin with.
    """

    def __init__(self, given: BatchesLike, seed: int) -> None:
        self._given = given
        self._seed = seed
        self._stream = RandomStream(seed ^ _OTHER)
        self.n_batches: int | None = None
        """How many are in the present epoch, where that is known."""

    def epoch(self) -> Iterator[Any]:
        """Those of one more epoch."""
        with self._stream:
            batches = self._given if isinstance(self._given, Iterable) else self._given(self._seed)
            if not isinstance(batches, Iterable):
                raise TypeError(
                    f"`batches` must return batches to go through, but it returned {type(batches).__name__}. "
                    f"Return a list, a DataLoader or a generator."
                )
            self.n_batches = _length(batches)
            iterator = iter(batches)
        # A list draws nothing, and taking turns costs as much as a very small step.
        turn = nullcontext() if isinstance(batches, (list, tuple)) else self._stream
        end = object()
        n_drawn = 0
        while True:
            with turn:
                batch = next(iterator, end)
            if batch is end:
                break
            n_drawn += 1
            yield batch
        if n_drawn == 0:
            raise ValueError("`batches` has no batch. Give at least one for each epoch.")

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """A DataLoader's own generator begins with the seed, too, and is left as it was."""
        loader = self._given
        samplers = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        samplers.append(getattr(samplers[-1], "sampler", None))
        generators = {getattr(sampler, "generator", None) for sampler in samplers}
        states = {own: own.get_state() for own in generators if isinstance(own, torch.Generator)}
        try:
            for own in states:
                own.manual_seed(self._seed ^ _OTHER)
            yield
        finally:
            for own, state in states.items():
                own.set_state(state)


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader of an iterable data set has a `__len__`, too, and raises
        return None
