"""The list of transforms: its settings, its state, and what it makes of losses and sites. No rows."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._draws import Draws
from .._methods.holding import Holding
from .._ranks import Ranks
from .._transform import GramianTransform, HistoryTransform, Losses, LossWeighting, RowTransform, Site, Transform
from .block import Metric
from .combination import Held, Streamed, Traced
from .length import Length
from .order import listed, ordered
from .returned import FirstBackwards, check_weights, stream_of
from .watching import Watch, Watched


class Pipeline:
    """The transforms of one optimizer or layer, applied left to right; an empty one is the plain sum."""

    def __init__(self, transforms: Transform | Iterable[Transform], length: str | None = None) -> None:
        self.transforms = listed(transforms)
        self.order = ordered(self.transforms)
        self.length = Length(length, self.order)
        self.weightings, self.gradient_transforms = self.order.weightings, self.order.gradients
        self.watch: Watch | None = None
        self._kept: dict[int, Tensor] | None = None
        self.names: tuple[str, ...] | None = None  # of the losses in the step before
        self.joined = False  # whether several ranks have compared them
        self.loaded = False  # whether a checkpoint was loaded since
        self.first_backwards = FirstBackwards(self.gradient_transforms)

    @property
    def reads_gradients(self) -> bool:
        """Whether a transform needs the gradient of each loss."""
        return bool(self.gradient_transforms or self.order.histories)

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
                f"a transform keeps numbers of each. Give the same names in the same order, None for an absent loss; "
                f"or declare all names, `MultiLossOptimizer(..., losses=[...])`."
            )
        for transform in self.transforms:
            transform.check_losses(losses)
            transform.check(losses)

    def weights(self, losses: Losses) -> Tensor | None:
        """The product of all weightings, shape `(T,)`, or `None` where there is none."""
        weights = None
        for weighting in self.weightings:
            new = check_weights(weighting, _weights_unless_skipped(weighting, losses), len(losses))
            weights = new if weights is None else weights * new
        if weights is not None and self._kept is not None:
            for index, weight in zip(losses.indices, weights, strict=True):
                self._kept.setdefault(index, weight)
            weights = torch.stack([self._kept[index] for index in losses.indices])
        if self.watch is not None and self.watch.due:
            self.watch.weigh(losses, weights)
        return weights

    @contextmanager
    def weighting_as(self, kept: dict[int, Tensor]) -> Iterator[None]:
        """Weight losses as in earlier backward passes with the same `kept`, by index; one that is new goes into it."""
        self._kept = kept
        try:
            yield
        finally:
            self._kept = None

    @property
    def uses_values(self) -> bool:
        return any(transform.uses_values for transform in self.transforms)

    @property
    def needs_scale(self) -> bool:
        """Whether the factor of a GradScaler must be known."""
        known = all(transform.scale_equivariant and not transform.uses_values for transform in self.transforms)
        return not known or (self.watch is not None and self.watch.due)

    @property
    def has_gramian(self) -> bool:
        """Whether a decision is one over all sites."""
        return any(isinstance(transform, GramianTransform) for transform in self.gradient_transforms)

    @property
    def holding(self) -> Holding | None:
        """Whose weights may hold in this step without a look at the gradients, if no Monitor looks."""
        looked_at = self.watch is not None and self.watch.due
        return None if looked_at or self.length.given is not None else self.order.holding

    @property
    def traced(self) -> bool:
        """Whether what a combination made of each row is asked for, by a Whitening behind it."""
        return self.order.whitening is not None

    @property
    def keeps_losses(self) -> bool:
        """Whether a transform keeps something of single losses from step to step: more than its random numbers."""
        parts = [part for transform in self.transforms for part in vars(transform).values()]
        return any(hasattr(part, "state_dict") and not isinstance(part, Draws) for part in parts)

    @property
    def sums_over_ranks(self) -> bool:
        return self.length.given is not None or any(t.sums_over_ranks for t in self.gradient_transforms)

    def combination(self, losses: Losses, sites: Sequence[Site], metric: Metric | None = None) -> Traced:
        """A combination of the rows of `losses` over several sites. `site.losses` are those that any rank may have."""
        combination = self.length.of(self._combination(losses, sites, metric), sites)
        if self.watch is None or not self.watch.due:
            return combination
        return Watched(combination, self.gradient_transforms, losses, sites, self.watch, metric)

    def _combination(self, losses: Losses, sites: Sequence[Site], metric: Metric | None) -> Traced:
        first = self.gradient_transforms[0] if len(self.gradient_transforms) == 1 else None
        if not self.traced and isinstance(first, RowTransform) and (first.scale_equivariant or losses.scale is None):
            streams = [stream_of(first, s if s.losses is losses else replace(s, losses=losses)) for s in sites]
            if all(stream is not None for stream in streams):
                return Streamed([stream for stream in streams if stream is not None])
        return Held(self.gradient_transforms, losses, sites, traced=self.traced, metric=metric)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """One backward pass, at which the watch looks, if it is due."""
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
        """The state of each, without what is kept of each parameter: as large as the model, and never half-changed."""
        return [{} if isinstance(t, HistoryTransform) else t.state_dict() for t in self.transforms]

    def copied_state(self) -> list[Any]:
        """A copy of the state, which `load_state` takes back."""
        return [_copied(state) for state in self.state()]

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, with the names of the classes."""
        return {
            "transforms": [transform.state_dict() for transform in self.transforms],
            "classes": [type(transform).__name__ for transform in self.transforms],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], parameters: Sequence[Tensor] = ()) -> None:
        """Take back what `state_dict` gave; all transforms or none. It may have no names.

        Raises:
            ValueError: If it is the state of other transforms, or spoiled.
        """
        given = state_dict if isinstance(state_dict, Mapping) else {}
        states, names = given.get("transforms"), given.get("classes", [])
        if not (isinstance(states, (list, tuple)) and isinstance(names, (list, tuple))):
            raise ValueError(
                f"`state_dict` has {state_dict!r} for the transforms, which is no state of theirs. {_ANEW}"
            )
        for i, (transform, name) in enumerate(zip(self.transforms, names, strict=False)):
            if len(states) == len(self.transforms) and name not in [cls.__name__ for cls in type(transform).__mro__]:
                raise ValueError(
                    f"`state_dict` does not fit `transforms[{i}]`, {type(transform).__name__}: it is of {name}. {_ANEW}"
                )
        with self.histories_unless_it_fails():
            self.load_state(states, whole=True)
            for transform in self.transforms:
                if isinstance(transform, HistoryTransform):
                    transform.fit(parameters)

    @contextmanager
    def histories_unless_it_fails(self) -> Iterator[None]:
        """While active, an error leaves what is kept of each parameter as it was."""
        before = [(history, history.averages) for history in self.order.histories]
        try:
            yield
        except Exception:
            for history, averages in before:
                history.averages = averages
            raise

    def load_state(self, states: Sequence[dict[str, Any]], *, whole: bool = False) -> None:
        """Take back what `state` gave, or `state_dict` on the `whole`; all transforms or none.

        Raises:
            ValueError: If it is the state of other transforms.
        """
        if len(states) != len(self.transforms):
            raise ValueError(
                f"`state_dict` has the state of {len(states)} transforms, but there are {len(self.transforms)}. {_ANEW}"
            )
        before = self.copied_state()
        for i, (transform, state) in enumerate(zip(self.transforms, states, strict=True)):
            if isinstance(transform, HistoryTransform) and not whole:
                continue
            try:
                transform.load_state_dict(state)
            except Exception as error:
                for other, old in zip(self.transforms[: i + 1], before, strict=False):
                    if not isinstance(other, HistoryTransform):
                        other.load_state_dict(old)
                reason = str(error) if isinstance(error, ValueError) else repr(error)
                raise ValueError(
                    f"`state_dict` does not fit `transforms[{i}]`, {type(transform).__name__}: {reason}. {_ANEW}"
                ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "watch": None}  # nobody looks at a copy

    def __repr__(self) -> str:
        return repr(self.transforms[0] if len(self.transforms) == 1 else self.transforms)


_ANEW = 'To start the transforms anew, leave out the checkpoint\'s key "mtopt".'


def _weights_unless_skipped(weighting: LossWeighting, losses: Losses) -> Tensor:
    """A loss that is not finite leaves no trace in the state, as the step will be skipped (by a GradScaler)."""
    if not weighting.uses_values or losses.values.isfinite().all():
        return weighting.weights(losses)
    state = copy.deepcopy(weighting.state_dict())
    try:
        return weighting.weights(losses)
    finally:
        weighting.load_state_dict(state)


def _copied(state: Any) -> Any:
    """A copy, in a fraction of the time that `deepcopy` takes for plain values."""
    if type(state) is dict:
        return {key: _copied(value) for key, value in state.items()}
    if type(state) is list:
        return [_copied(value) for value in state]
    return state if type(state) in (int, float, str, bool) else copy.deepcopy(state)
