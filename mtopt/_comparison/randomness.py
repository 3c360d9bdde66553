"""Global random numbers, of torch, NumPy and Python: seeded for a while, and given back. No private generators."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import torch

_SEEDS_OF_NUMPY = 2**32


class RandomStream:
    """Global random numbers of its own: inside `with` they go on where they were left, outside all is as before.

    Args:
        seed: What they begin with.
    """

    def __init__(self, seed: int) -> None:
        before = _present_state()
        _seed_all(seed)
        self._own = _present_state()
        before()

    def __enter__(self) -> None:
        self._outer = _present_state()
        self._own()

    def __exit__(self, *_: object) -> None:
        self._own = _present_state()
        self._outer()


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")  # nobody draws from it before it is imported
    if numpy is not None:
        numpy.random.seed(seed % _SEEDS_OF_NUMPY)


def _present_state() -> Callable[[], None]:
    """A function that brings the present state back."""
    restore = _state_of_device()
    python, state = random.getstate(), torch.get_rng_state()
    numpy = sys.modules.get("numpy")
    legacy = None if numpy is None else numpy.random.get_state()

    def give_back() -> None:
        random.setstate(python)
        torch.set_rng_state(state)
        if numpy is not None:
            numpy.random.set_state(legacy)
        restore()

    return give_back


def _state_of_device() -> Callable[[], None]:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return lambda: None
    module = torch.get_device_module(accelerator)  # untested: no GPU at hand
    states = [module.get_rng_state(device) for device in range(module.device_count())]

    def give_back() -> None:
        for device, state in enumerate(states):
            module.set_rng_state(state, device)

    return give_back
