"""The random numbers of a transform: a seed, how often it was drawn from, and uniform draws. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ._checks import check_count, check_seed, is_whole
from ._scratch import Scratch
from ._torch import last_seeding


class Draws:
    """Private random numbers whose whole state is two integers: draw n is the same wherever it is made.

    Args:
        seed: `None` derives one from the state of torch's global generator, which is left as it was: another each time,
            and the same ones again after `torch.manual_seed`.
    """

    def __init__(self, seed: int | None = None) -> None:
        checked = check_seed(seed)
        self.seed = _seed_from_global_state() if checked is None else checked
        self.count = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def next(self, device: torch.device, rank: int = 0) -> torch.Generator | None:
        """The generator for the next draw. Ranks that draw apart give their own rank, those that draw alike give 0."""
        self.count += 1
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None  # only the global generator moves on when a CUDA graph is replayed (untested: no GPU at hand)
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(_mix(_mix(self.seed) + self.count + (rank << 48)))

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        seed, count = state_dict["seed"], state_dict["count"]
        if not is_whole(seed):
            raise ValueError(f"`seed` must be a whole number, but it is {seed!r}")
        self.seed, self.count = seed, check_count(count, "count", 0)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_generators": {}}


@dataclass(frozen=True)
class Part:
    """Where a shard lies in its whole tensor.

    Attributes:
        shape: Shape of the whole.
        start: Where the shard starts, along each dim.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]

    def of(self, whole: Tensor, shape: Sequence[int]) -> Tensor:
        """The shard of a given shape."""
        return whole[tuple(slice(start, start + size) for start, size in zip(self.start, shape, strict=True))]


def uniform(
    like: Tensor, generator: torch.Generator | None, *, part: Part | None = None, scratch: Scratch | None = None
) -> Tensor:
    """U ~ Uniform[0, 1) in the shape and dtype of a tensor; where that is a shard, its part of the whole's draws.

    `like` must be float32 or wider: in half precision draws are coarse, and may be 1, which drops all.
    """
    if part is not None:
        return part.of(uniform(like.new_empty(part.shape), generator), like.shape)
    scratch = Scratch() if scratch is None else scratch
    drawn = scratch.take(like)
    if drawn.dtype != torch.float32 or not scratch.keeps(drawn) or drawn.numel() % 2:
        return drawn.uniform_(generator=generator)
    # On a CPU, 24 bits of each half of 64-bit draws are the same grid in three quarters of the time.
    bits = scratch.take(drawn)
    bits.as_strided((bits.numel(),), (1,)).view(torch.int64).random_(generator=generator)
    drawn.copy_(bits.view(torch.int32).bitwise_and_(0xFFFFFF)).mul_(2**-24)
    scratch.give(bits)
    return drawn


def _mix(number: int) -> int:
    """SplitMix64 (Steele, Lea, Flood 2014): numbers next to each other get seeds that have nothing in common."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


@dataclass
class _Made:
    """The seeds made since torch's global generator was seeded or drawn from."""

    state: Tensor  # of the generator
    seeding: object
    count: int


_made: list[_Made] = []  # the newest alone
_lock = Lock()


def _seed_from_global_state() -> int:
    """Another one in each call, and the same ones again after `torch.manual_seed`. The global state stays as it is."""
    state, seeding = torch.get_rng_state(), last_seeding()
    with _lock:
        last = _made[0] if _made else None
        since = last is not None and last.seeding == seeding and torch.equal(last.state, state)
        count = last.count + 1 if last is not None and since else 0
        _made[:] = [_Made(state, seeding, count)]
    generator = torch.Generator()
    generator.set_state(state)
    seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
    return seed if count == 0 else _mix(seed + count) >> 2
