"""The three kinds of transform, and what they are told about the losses. No method and no engine."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from reprlib import recursive_repr
from typing import Any, Protocol

import torch
from torch import Tensor

from ._draws import Part
from ._dtypes import wide_dtype
from ._history import History
from ._ranks import ALONE, Ranks

LossesLike = Sequence[Tensor | None] | Mapping[str, Tensor | None] | Tensor
"""Losses as a user gives them: a list, a dict of named ones, or a 1-D tensor; `None` is absent in this step."""


@dataclass(frozen=True)
class Losses:
    """The losses present in a step, or those of them that meet at a site, in the order of the rows.

    A loss has an index, its place in the user's list, and a position, its place among those present.

    Attributes:
        indices: Index of each loss.
        n_losses: Length of the user's list, absent losses included.
        names: Names of the whole list, where it was given as a dict.
        scalars: The losses themselves; `None` inside a `MultiLossLayer`, which sees no loss.
        scale: What a GradScaler has multiplied them by.
        ranks: The processes over which the values are averaged.
        sizes: The largest and the mean absolute value of each row, shape `(T, 2)`, for a transform that `reads_sizes`.
    """

    indices: tuple[int, ...]
    n_losses: int
    names: tuple[str, ...] | None = None
    scalars: tuple[Tensor, ...] | None = None
    scale: float | None = None
    ranks: Ranks = ALONE
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def label(self, position: int) -> str:
        """What the user calls a loss: its name, else its index."""
        index = self.indices[position]
        return self.names[index] if self.names else str(index)

    def at(self, positions: Sequence[int]) -> Losses:
        """The losses at some positions of this one."""
        scalars = None if self.scalars is None else tuple(self.scalars[p] for p in positions)
        sizes = None if self.sizes is None else self.sizes[list(positions)]
        return replace(self, indices=tuple(self.indices[p] for p in positions), scalars=scalars, sizes=sizes)

    def only(self, indices: Sequence[int]) -> Losses:
        """The losses with some indices."""
        return self.at([self.indices.index(i) for i in indices])

    @property
    def device(self) -> torch.device:
        """Where the values are: with the first loss, or on the CPU where that is on MPS, which has no float64."""
        device = torch.device("cpu") if self.scalars is None else self.scalars[0].device
        return torch.device("cpu") if device.type == "mps" else device

    @property
    def values(self) -> Tensor:
        """Detached loss values, shape `(len(self),)`, on `device`, in the widest of their dtypes.

        A GradScaler's factor is taken out again. Over several ranks they are the means.

        Raises:
            RuntimeError: Inside a `MultiLossLayer`, which sees no loss.
        """
        if self.scalars is None:
            raise RuntimeError("A MultiLossLayer sees no loss values. Give this transform to a MultiLossOptimizer.")
        dtype = reduce(torch.promote_types, (scalar.dtype for scalar in self.scalars))
        values = torch.stack([scalar.detach().reshape(()).to(self.device, dtype) for scalar in self.scalars])
        return values if self.scale is None else values.to(wide_dtype(values.dtype)) / self.scale


@dataclass(frozen=True)
class Site:
    """Where rows meet: an activation or a shared parameter.

    Attributes:
        losses: The loss of each row.
        activation: The activation itself, where the site was named (`at=module`) or is a `MultiLossLayer`.
        ranks: The processes that hold other parts of these rows: other examples of an activation, or other shards of a
            parameter. `ranks.sum(x)` adds a tensor up over them, and is `x` where there is only this one.
        part: Which part of a sharded parameter this is.
        counts_alone: Whether a row counts in the Gramian where it is the only one here: the others are zero.
    """

    losses: Losses
    activation: Tensor | None = None
    ranks: Ranks = ALONE
    part: Part | None = None
    counts_alone: bool = False


class State(Protocol):
    """A part of a transform that a resumed run needs."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class Transform(ABC):  # noqa: B024  (its kinds have the abstract methods)
    """A step between the losses and the sum of their gradients."""

    scale_equivariant = False
    """Whether out(c g) = c out(g). If not, the factor of a GradScaler is taken out before this transform."""

    uses_values = True
    """Whether it reads `losses.values`, on whose mean several ranks must then agree in each step."""

    sums_over_ranks = False
    """Whether all ranks must come to each activation site together, because it calls `site.ranks.sum` there."""

    non_conflicting = False
    """Whether the result never points against the gradient of any loss: out · g_i ≥ 0."""

    def check(self, losses: Losses) -> None:  # noqa: B027  (most methods take any losses)
        """Raise `ValueError` if the settings do not fit these losses; called before anything changes."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors and plain Python values: that of all attributes with a `state_dict`."""
        return {name: part.state_dict() for name, part in self._parts()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave: all of it, or nothing where it does not fit.

        Raises:
            ValueError: If it is no such dict, or its numbers are of other types, shapes or losses.
        """
        kind, parts = type(self).__name__, dict(self._parts())
        if not isinstance(state_dict, Mapping) or state_dict.keys() != parts.keys():
            found = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else repr(state_dict)
            raise ValueError(f"`state_dict` of {kind} must be a dict with {sorted(parts)}, but it has {found}")
        before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        counts = self._counts_of_losses()
        name = ""
        try:
            for name, part in parts.items():
                part.load_state_dict(state_dict[name])
                counts |= self._counts_of_losses()
                if len(counts) > 1:
                    raise ValueError(f"it is of {max(counts)} losses, but there are {min(counts)}")
        except Exception as error:
            for other, part in parts.items():
                part.load_state_dict(before[other])
            raise ValueError(f"`state_dict[{name!r}]` does not fit {kind}: {_reason(error)}") from error

    def check_losses(self, losses: Losses) -> None:
        """Raise `ValueError` if the state is of more losses or fewer; called before anything changes."""
        for count in self._counts_of_losses():
            check_as_many(losses, count)

    def _counts_of_losses(self) -> set[int]:
        """Of how many losses the state is; empty before the first step."""
        return {n for _, part in self._parts() if isinstance(n := getattr(part, "n_losses", None), int)} - {0}

    def _parts(self) -> Iterator[tuple[str, State]]:
        return ((name, part) for name, part in vars(self).items() if hasattr(part, "state_dict"))

    @recursive_repr()
    def __repr__(self) -> str:
        """The settings that are kept under their own names, and differ from the usual ones."""
        settings = [s for s in inspect.signature(type(self)).parameters.values() if s.name in vars(self)]
        given = [(s.name, getattr(self, s.name)) for s in settings if not _same(getattr(self, s.name), s.default)]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given)})"


def check_as_many(losses: Losses, before: int) -> None:
    if before != losses.n_losses:
        raise ValueError(
            f"`losses` has {losses.n_losses} entries, but {before} in the steps before. Give None for a loss that is "
            f"absent, and load no checkpoint of other losses."
        )


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else repr(error)


def _same(value: object, usual: object) -> bool:
    try:
        return bool(value == usual)
    except Exception:  # tensors and arrays of several numbers have no one answer
        return False


class LossWeighting(Transform):
    """From the loss values to one weight per loss. It scales the losses, so it costs no backward pass.

    Example:
        >>> class Inverse(LossWeighting):
        ...     def weights(self, losses):
        ...         return 1 / losses.values
    """

    @abstractmethod
    def weights(self, losses: Losses) -> Tensor:
        """Weights, shape `(T,)`, for the losses present."""


class GramianTransform(Transform):
    """From the T×T Gramian of the rows to T weights, or to a T×T matrix that mixes the rows.

    Example:
        >>> class UnitRows(GramianTransform):
        ...     def weights(self, gramian, losses):
        ...         return gramian.diagonal().rsqrt()
    """

    sums_over_ranks = True  # the Gramian is summed, before this is asked for weights

    reads_sizes = False
    """Whether it reads `losses.sizes`, for which the rows are looked at once more."""

    @abstractmethod
    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        """Weights `(T,)`, or a mixing matrix `(T, T)` with one new row per row of it.

        Args:
            gramian: $G_{ij} = g_i \\cdot g_j$ over all ranks, shape `(T, T)`, finite, float64, on the CPU.
            losses: The losses of its rows.
        """


class Stream(Protocol):
    """A row transform that takes the rows one by one, so that it need not hold them all."""

    needs_lone_rows: bool
    """Whether it must see a row that is alone here, because other ranks may have more."""

    def add(self, position: int, row: Tensor) -> None: ...

    def result(self) -> Tensor: ...


class RowTransform(Transform):
    """Coordinate by coordinate, from the rows `(T, *S)` at a site to rows of the same shape.

    Example:
        >>> class Clamp(RowTransform):
        ...     def transform(self, rows, site):
        ...         return rows.clamp(-1, 1)
    """

    marginalize: tuple[int, ...] | None = None
    """Dims of the activation over which a decision is joint; such a transform needs `Site.activation`."""

    @abstractmethod
    def transform(self, rows: Tensor, site: Site) -> Tensor:
        """New rows, shape `(T, *S)`. `rows` are not to be changed in place."""

    def shares(self, rows: Tensor, site: Site) -> Tensor:
        """How much of each number of the rows is kept, shape `(T, *S)`, for a transform that only scales them.

        `Whitening` needs it. `rows * shares` must be what `transform` returns.
        """
        raise NotImplementedError

    def stream(self, site: Site) -> Stream | None:
        """The same transform and its sum over rows that come one by one, or `None` where it needs them all.

        `site.losses` are all the losses that may come; a stream is told the position among them.
        """
        return None


class HistoryTransform(Transform):
    """Keeps numbers of each parameter for each loss from step to step: at parameters alone."""

    uses_values = False

    def __init__(self) -> None:
        self.history = History()

    def fit(self, parameters: Sequence[Tensor]) -> None:
        """Bring what was loaded to where the parameters are.

        Raises:
            ValueError: If it is of other parameters.
        """
        try:
            self.history.fit(parameters)
        except ValueError as error:
            raise ValueError(f"`state_dict` does not fit {type(self).__name__}: {error}.") from None
