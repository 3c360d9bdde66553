"""What the ranks tell each other before they combine gradients together, and what is refused on all of them then.

One process alone has nobody to tell; what it refuses in the same words is here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from types import TracebackType
from typing import Any

from .._ranks import Ranks
from .._transform import Losses

Owned = tuple[Any, int]  # a parameter (its number in the optimizer, else its shape) and a bit mask of its losses


@dataclass(frozen=True)
class Facts:
    """One rank's step. Losses are told by their indices.

    Attributes:
        joined: Whether the transforms' settings and state were compared already.
        loaded: Whether a checkpoint was loaded since.
        losses: Their names, or their number.
        present: Those that are not absent.
        nan: Those whose value is NaN.
        owned: The parameters that they reach, in the order in which the forward pass used them.
        may_differ: Whether the ranks may reach different parameters.
        sites: The activations at which all ranks decide together.
        combines: Whether two losses meet on this rank.
    """

    joined: bool
    loaded: bool
    losses: tuple[str, ...] | int
    present: tuple[int, ...]
    nan: tuple[int, ...]
    owned: tuple[Owned, ...]
    may_differ: bool
    sites: tuple[Any, ...]
    combines: bool


class Agreement:
    """One agreement of all ranks. An error on one of them before it is reached ends the step on every rank."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.reached = ranks.size == 1

    def reach(self, facts: Facts) -> list[Facts]:
        """The facts of each rank; where all are equal this takes one exchange of a single number.

        Raises:
            RuntimeError: If another rank raised, or the ranks do not do the same.
            ValueError: If they were given different losses, or a loss is NaN on one of them.
        """
        everywhere = self._exchange(facts)
        _check(everywhere)
        return everywhere

    def _exchange(self, mine: Facts | str) -> list[Facts]:
        self.reached = True
        digest = int.from_bytes(blake2b(repr(mine).encode(), digest_size=8).digest(), "big", signed=True)
        refused = isinstance(mine, str)
        numbers = self.ranks.gather([digest, refused])
        if isinstance(mine, Facts) and all(theirs == [digest, False] for theirs in numbers):
            return [mine] * self.ranks.size
        everywhere = self.ranks.gather_objects(mine)
        for rank, theirs in enumerate(everywhere):
            if isinstance(theirs, str) and not refused:
                raise RuntimeError(f"Rank {rank} refused this step, so it ends on every rank: {theirs}")
        return everywhere

    def __enter__(self) -> Agreement:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception) and not self.reached:
            with suppress(RuntimeError):  # the error itself is what the user shall see
                self._exchange(f"{type(error).__name__}: {error}")


def refuse_nan(losses: Losses) -> None:
    """Refuse a loss without a value, in one process: for transforms that read the values, and would pass it on to all.

    An overflow under a GradScaler is its affair: it skips the step.
    """
    if losses.scalars is None or losses.scale is not None:
        return
    for position, nan in enumerate(losses.values.isnan().tolist()):
        if nan:
            raise ValueError(
                f"`losses[{losses.label(position)}]` is NaN, which would make the gradients of all losses NaN. Give "
                f"None for a loss that is absent in this step (the mean over no examples is NaN), or find the cause "
                f"with torch.autograd.detect_anomaly()."
            )


def _check(everywhere: Sequence[Facts]) -> None:
    first = everywhere[0]
    for rank, facts in enumerate(everywhere):
        if facts.losses != first.losses:
            raise ValueError(
                f"`losses` differ between ranks: {_losses(first)} on rank 0, {_losses(facts)} on rank {rank}. Give the "
                f"same losses in the same order on all; None for one that is absent in this step."
            )
        if (facts.joined, facts.loaded) != (first.joined, first.loaded):
            with_it, without = (rank, 0) if facts.loaded else (0, rank)
            raise RuntimeError(
                f"`load_state_dict` was called on rank {with_it}, but not on rank {without}. Call it on every rank."
            )
        if facts.nan:
            label = first.losses[facts.nan[0]] if isinstance(first.losses, tuple) else facts.nan[0]
            raise ValueError(
                f"`losses[{label}]` is NaN on rank {rank}, which would make the gradients of all ranks NaN. Leave the "
                f"batch out on every rank, or find the cause with torch.autograd.detect_anomaly()."
            )
        if isinstance(facts.losses, int):
            _check_order(first, facts, rank)
        if not facts.may_differ and _parameters(facts) != _parameters(first):
            raise RuntimeError(
                f"The `losses` reach other parameters on rank {rank} than on rank 0 (a loss is absent there, or a part "
                f"of the model was left out), and the ranks would wait for each other's gradients. Give the loss times "
                f"0 instead of None; or leave its head out of the forward, with "
                f'DistributedDataParallel(find_unused_parameters=True); or use `at="parameters"`.'
            )
        uneven = (facts.present, facts.owned) != (first.present, first.owned)
        if facts.sites != first.sites or (len(facts.sites) > 1 and uneven):
            raise RuntimeError(
                f"The ranks must decide together, but the `losses` do not meet at the same places on rank {rank} as on "
                f'rank 0. Give all losses on every rank (times 0 instead of None), or use `at="parameters"`.'
            )
    if not any(facts.combines for facts in everywhere):
        raise RuntimeError(
            'On no rank do two `losses` meet, so there is nothing to combine. Use `at="parameters"`, or '
            "`GradDrop(marginalize=0)` at a module that all losses depend on."
        )


def _check_order(first: Facts, facts: Facts, rank: int) -> None:
    """Unnamed losses are told apart by what they alone reach."""
    if _parameters(facts) != _parameters(first):
        return
    both = sum(1 << loss for loss in set(facts.present) & set(first.present))
    for (_, a), (_, b) in zip(first.owned, facts.owned, strict=True):
        a, b = a & both, b & both
        if a != b and a.bit_count() == b.bit_count() == 1:
            raise ValueError(
                f"`losses` seem to be in another order on rank {rank}: a parameter that losses[{a.bit_length() - 1}] "
                f"alone reaches on rank 0 belongs to losses[{b.bit_length() - 1}] there. Give the same order on all "
                f"ranks. If that is as it should be, give the losses names, as a dict."
            )


def _parameters(facts: Facts) -> list[Any]:
    return sorted((owned[0] for owned in facts.owned), key=repr)


def _losses(facts: Facts) -> str:
    return f"{facts.losses} of them" if isinstance(facts.losses, int) else str(list(facts.losses))
