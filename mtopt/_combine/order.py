"""The order of a list of transforms: which kinds may stand where. No rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .. import _methods
from .._checks import is_listed, kind_of, nearest
from .._history import History
from .._methods.every import Every
from .._methods.holding import Holding
from .._methods.momentum import Momentum
from .._methods.whitening import Whitening
from .._transform import GramianTransform, LossWeighting, RowTransform, Transform


@dataclass
class Order:
    """The transforms by kind, in their order: weightings, a Momentum, those of the gradients, a Whitening."""

    weightings: list[LossWeighting] = field(default_factory=list)
    momentum: Momentum | None = None
    gradients: list[GramianTransform | RowTransform] = field(default_factory=list)
    whitening: Whitening | None = None

    @property
    def histories(self) -> list[History]:
        """What is kept of each parameter, from step to step."""
        return [transform.history for transform in (self.momentum, self.whitening) if transform is not None]

    @property
    def every(self) -> Every | None:
        return next((transform for transform in self.gradients if isinstance(transform, Every)), None)

    @property
    def holding(self) -> Holding | None:
        """What alone decides on the gradients, and so may let its weights hold in a step that does not see them."""
        if self.histories or len(self.gradients) != 1:
            return None
        (transform,) = self.gradients
        return transform if isinstance(transform, Holding) else None

    @property
    def at_parameters_alone(self) -> str:
        """The name of what works at parameters alone; "" where nothing does."""
        found = (transform for transform in (self.momentum, self.whitening, self.every) if transform is not None)
        return next((type(transform).__name__ for transform in found), "")


def ordered(transforms: Sequence[Transform]) -> Order:
    """The transforms by kind.

    Raises:
        TypeError: If one is no transform, or does not tell what another one needs.
        ValueError: If one stands in a wrong place, or two do not go together.
    """
    order = Order()
    for i, transform in enumerate(transforms):
        if not isinstance(transform, (LossWeighting, Momentum, Whitening, GramianTransform, RowTransform)):
            raise TypeError(
                f"`transforms[{i}]` must be a LossWeighting, GramianTransform or RowTransform, "
                f"but it is {_wrong_transform(transform)}"
            )
        before = [t for t in transforms[:i] if not isinstance(t, LossWeighting)]
        if isinstance(transform, LossWeighting):
            if before:
                raise ValueError(
                    f"`transforms[{i}]` weights the losses, so it must stand before every transform of their "
                    f"gradients, but {type(before[0]).__name__} comes first. Move it to the front."
                )
            order.weightings.append(transform)
        elif order.whitening is not None:
            raise ValueError(
                f"`transforms[{i}]` stands behind a Whitening, which must be the last, and stand once. Move the "
                f"Whitening to the end."
            )
        elif isinstance(transform, Momentum):
            if before:
                raise ValueError(
                    f"`transforms[{i}]` is a Momentum, which must stand before every other transform of the gradients, "
                    f"and once. Move it to the front, or leave it out."
                )
            order.momentum = transform
        elif isinstance(transform, Whitening):
            order.whitening = transform
        else:
            order.gradients.append(transform)
    _check_together(order)
    return order


def _check_together(order: Order) -> None:
    for transform in order.gradients:
        name = type(transform).__name__
        if order.whitening and isinstance(transform, RowTransform) and type(transform).shares is RowTransform.shares:
            raise TypeError(
                f"Whitening must know how much of each row {name} keeps. Give {name} a method `shares`, or leave "
                f"Whitening out."
            )
        if order.momentum and order.momentum.absent and transform.uses_values:
            raise ValueError(
                f"{name} reads the losses, and a loss that Momentum(absent=True) represents has no value. Take "
                f"Momentum(absent=False), or a method that reads gradients alone."
            )
    others = [t for t in (order.momentum, *order.gradients, order.whitening) if t not in (None, order.every)]
    if order.every is not None and others:
        raise ValueError(
            f"`transforms` has Every, whose weights hold in steps that see no single gradients, but "
            f"{type(others[0]).__name__} needs them in each. Leave one out."
        )


def listed(transforms: Transform | Iterable[Transform]) -> list[Transform]:
    if isinstance(transforms, Mapping):
        raise TypeError(
            "`transforms` must be one transform or a list of them, but it is a dict. Their order counts: give a list."
        )
    return list(transforms) if is_listed(transforms) else [transforms]  # type: ignore[arg-type, list-item]


def _wrong_transform(given: object) -> str:
    """What was given in place of a transform, and the way out."""
    if isinstance(given, str):
        name, *_ = *nearest(given, _methods.__all__), "GradDrop"
        return f"{given!r}. Give the transform itself, e.g. mtopt.{name}()."
    if isinstance(given, type):
        return f"{kind_of(given)}. Call it to make one: {given.__name__}()."
    if given is None:
        return "None. Leave it out; an empty list is the plain sum."
    return f"{kind_of(given)}." + (" Give one list, with none inside it." if is_listed(given) else "")
