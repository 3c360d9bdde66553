"""The list of transforms: its settings, its state, and what it makes of losses and sites. No rows."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from .._draws import Draws
from .._ranks import Ranks
from .._transform import GramianTransform, Losses, LossWeighting, RowTransform, Site, Transform
from .combination import Combination, Held, Streamed
from .watching import Watch, Watched


class Pipeline:
    """The transforms of one optimizer or layer, applied left to right; an empty one is the plain sum."""

    def __init__(self, transforms: Transform | Iterable[Transform]) -> None:
        self.transforms = [transforms] if isinstance(transforms, Transform) else list(transforms)
        self.weightings: list[LossWeighting] = []
        self.gradient_transforms: list[GramianTransform | RowTransform] = []
        self.watch: Watch | None = None
        self.names: tuple[str, ...] | None = None  # of the losses in the step before
        self.joined = False  # whether several ranks have compared them
        self.loaded = False  # whether a checkpoint was loaded since
        for i, transform in enumerate(self.transforms):
            if isinstance(transform, LossWeighting):
                if self.gradient_transforms:
                    first = type(self.gradient_transforms[0]).__name__
                    raise ValueError(
                        f"`transforms[{i}]` weights the losses, so it must stand before every transform of their "
                        f"gradients, but {first} comes first. Move it to the front."
                    )
                self.weightings.append(transform)
            elif isinstance(transform, (GramianTransform, RowTransform)):
                self.gradient_transforms.append(transform)
            else:
                hint = " Call it to make one." if isinstance(transform, type) else ""
                raise TypeError(
                    f"`transforms[{i}]` must be a LossWeighting, GramianTransform or RowTransform, "
                    f"but it is {transform!r}.{hint}"
                )

    @property
    def marginalized(self) -> tuple[int, ...] | None:
        """Dims of the activation over which a transform decides jointly, if one does."""
        for transform in self.gradient_transforms:
            if isinstance(transform, RowTransform) and transform.marginalize is not None:
                return transform.marginalize
        return None

    def check(self, losses: Losses) -> None:
        if None not in (losses.names, self.names) and losses.names != self.names and self.keeps_losses:
            raise ValueError(
                f"`losses` are named {list(losses.names or ())}, but {list(self.names or ())} in the step before, and "
                f"a transform keeps numbers of each. Give the same names in the same order; None for an absent loss."
            )
        for transform in self.transforms:
            transform.check(losses)

    def weights(self, losses: Losses) -> Tensor | None:
        """The product of all weightings, shape `(T,)`, or `None` where there is none."""
        weights = None
        for weighting in self.weightings:
            new = _weights_unless_skipped(weighting, losses)
            weights = new if weights is None else weights * new
        if self.watch is not None and self.watch.due:
            self.watch.weigh(losses, weights)
        return weights

    @property
    def uses_values(self) -> bool:
        return any(transform.uses_values for transform in self.transforms)

    @property
    def needs_scale(self) -> bool:
        """Whether the factor of a GradScaler must be known."""
        known = all(transform.scale_equivariant and not transform.uses_values for transform in self.transforms)
        return not known or (self.watch is not None and self.watch.due)

    @property
    def keeps_losses(self) -> bool:
        """Whether a transform keeps something of single losses from step to step: more than its random numbers."""
        parts = [part for transform in self.transforms for part in vars(transform).values()]
        return any(hasattr(part, "state_dict") and not isinstance(part, Draws) for part in parts)

    @property
    def sums_over_ranks(self) -> bool:
        return any(transform.sums_over_ranks for transform in self.gradient_transforms)

    def combination(self, losses: Losses, sites: Sequence[Site]) -> Combination:
        """A combination of the rows of `losses` over several sites. `site.losses` are those that any rank may have."""
        combination = self._combination(losses, sites)
        if self.watch is None or not self.watch.due:
            return combination
        return Watched(combination, self.gradient_transforms, losses, sites, self.watch)

    def _combination(self, losses: Losses, sites: Sequence[Site]) -> Combination:
        first = self.gradient_transforms[0] if len(self.gradient_transforms) == 1 else None
        if isinstance(first, RowTransform) and (first.scale_equivariant or losses.scale is None):
            streams = [first.stream(s if s.losses is losses else replace(s, losses=losses)) for s in sites]
            if all(stream is not None for stream in streams):
                return Streamed([stream for stream in streams if stream is not None])
        return Held(self.gradient_transforms, losses, sites)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """One backward, at which the watch looks, if it is due."""
        if self.watch is None:
            yield
            return
        self.watch.begin()
        yield
        if self.watch.due:
            self.watch.end()

    def join(self, ranks: Ranks, losses: Losses) -> None:
        """Once, all ranks compare their settings and start from rank 0's state.

        Raises:
            ValueError: If they have different transforms or losses.
        """
        if self.joined or ranks.size == 1:
            return
        names = list(losses.names) if losses.names else f"{losses.n_losses} losses"
        mine = f"{re.sub(r' at 0x[0-9a-f]+', '', repr(self))} of {names}"
        everywhere = ranks.gather_objects((mine, self.state()))
        for rank, (setting, _) in enumerate(everywhere):
            if setting != everywhere[0][0]:
                raise ValueError(f"Ranks differ: rank 0 has {everywhere[0][0]}, rank {rank} has {setting}.")
        self.load_state(everywhere[0][1])
        self.joined, self.loaded = True, False

    def state(self) -> list[dict[str, Any]]:
        return [transform.state_dict() for transform in self.transforms]

    def load_state(self, states: Sequence[dict[str, Any]]) -> None:
        """Take back what `state` gave; all transforms or none.

        Raises:
            ValueError: If it is the state of other transforms.
        """
        hint = 'To start the transforms anew, leave out the checkpoint\'s key "mtopt".'
        if len(states) != len(self.transforms):
            raise ValueError(
                f"`state_dict` has the state of {len(states)} transforms, but there are {len(self.transforms)}. {hint}"
            )
        before = copy.deepcopy(self.state())
        for i, (transform, state) in enumerate(zip(self.transforms, states, strict=True)):
            try:
                transform.load_state_dict(state)
            except Exception as error:
                for other, old in zip(self.transforms[: i + 1], before, strict=False):
                    other.load_state_dict(old)
                raise ValueError(
                    f"`state_dict` does not fit `transforms[{i}]`, {type(transform).__name__}: {error!r}. {hint}"
                ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "watch": None}  # nobody looks at a copy

    def __repr__(self) -> str:
        return repr(self.transforms[0] if len(self.transforms) == 1 else self.transforms)


def _weights_unless_skipped(weighting: LossWeighting, losses: Losses) -> Tensor:
    """A loss that is not finite leaves no trace in the state, as the step will be skipped (by a GradScaler)."""
    if not weighting.uses_values or losses.values.isfinite().all():
        return weighting.weights(losses)
    state = copy.deepcopy(weighting.state_dict())
    try:
        return weighting.weights(losses)
    finally:
        weighting.load_state_dict(state)
