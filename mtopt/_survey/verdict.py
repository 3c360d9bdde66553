"""What follows from a report's numbers, in sentences: all rules and thresholds are here. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite, isnan, log10, pow

from .._pictures.names import clipped

CONFLICT = -0.1
"""A cosine below: of two gradients of one length each takes a tenth off the other's descent; less is no matter."""

APART = 10.0
"""Times as long: then the sum points within 6 degrees of the longer gradient, wherever the shorter one points."""

CLEAR = 3.0
"""Standard errors: one pair comes so far by chance in one of 100 cases (Student's t with 7 degrees of freedom)."""

WEIGHTY = 0.1
"""Of the squared length of both gradients: a module that has less decides little of the step."""

LOOKED_AT = 8
"""Losses whose products are told from chance: each takes 9 backward passes."""

METHODS = "GradDrop, PCGrad or UPGrad"

Pair = tuple[int, int]


@dataclass(frozen=True)
class Measured:
    """What is known of the gradients at a module's parameters, or at all.

    Attributes:
        norms: The length of each.
        cosines: `(T, T)`.
        signals: `(T, T)`: how many standard errors the product of two is from 0; NaN where it is not known.
        name: Of a module.
        code: The module, as one writes it.
    """

    norms: Sequence[float]
    cosines: Sequence[Sequence[float]]
    signals: Sequence[Sequence[float]]
    name: str = ""
    code: str = ""


@dataclass(frozen=True)
class Numbers:
    """What a verdict is made from.

    Attributes:
        losses: Their names.
        total: At all shared parameters.
        modules: At those of each module.
    """

    losses: Sequence[str]
    total: Measured
    modules: Sequence[Measured] = ()

    @property
    def names(self) -> list[str]:
        return clipped(list(self.losses), 24)

    @property
    def present(self) -> list[int]:
        """The losses with a gradient, the shortest first."""
        norms = self.total.norms
        return sorted((i for i, norm in enumerate(norms) if norm > 0), key=lambda i: norms[i])

    @property
    def pairs(self) -> list[Pair]:
        """Of these, the one with the lowest cosine first."""
        return sorted(combinations(sorted(self.present), 2), key=lambda pair: _at(self.total.cosines, pair))

    @property
    def times_apart(self) -> float:
        """How much longer the longest gradient is than the shortest."""
        return self.total.norms[self.present[-1]] / self.total.norms[self.present[0]]

    @property
    def limit(self) -> float:
        """Standard errors that a conflict needs: more, the more products are looked at.

        A far tail of Student's t with 7 degrees of freedom falls as the 7th power does.
        """
        return CLEAR * pow(len(self.pairs) * (1 + len(self.modules)), 1 / 7)

    def conflicts(self, where: Measured, pair: Pair) -> bool:
        """Whether two gradients point apart, beyond the noise of the batch."""
        return _at(where.cosines, pair) < CONFLICT and _at(where.signals, pair) < -self.limit

    def weighty(self, pair: Pair) -> list[Measured]:
        """The modules that have their share of both gradients."""
        norms = self.total.norms
        return [m for m in self.modules if all((m.norms[i] / norms[i]) ** 2 >= WEIGHTY for i in pair)]

    def told(self, pair: Pair) -> str:
        return " and ".join(self.names[i] for i in pair)


def doubtful(numbers: Numbers) -> list[int]:
    """The losses whose gradients point apart from another one's: whether by chance, is to be measured."""
    found: dict[int, None] = {}
    for pair in numbers.pairs:
        if any(_at(where.cosines, pair) < CONFLICT for where in (numbers.total, *numbers.weighty(pair))):
            found |= dict.fromkeys(pair)
    return sorted(list(found)[:LOOKED_AT])


def verdict(numbers: Numbers) -> tuple[str, ...]:
    """What each rule that fits says, the most urgent first."""
    if not all(map(isfinite, numbers.total.norms)):
        return ("Nothing can be said: a gradient is not finite.",)
    if not numbers.pairs:
        return ("Nothing can be said yet: fewer than two losses have a gradient here. Train a few steps first.",)
    said = [rule(numbers) for rule in (lengths, agreement, chance, conflict, part)]
    return tuple(sentence for sentences in said for sentence in sentences)


def lengths(numbers: Numbers) -> Iterator[str]:
    """One gradient is much shorter than another one: weights come before directions."""
    if numbers.times_apart > APART:
        short, long = (numbers.names[numbers.present[i]] for i in (0, -1))
        longest = numbers.total.norms[numbers.present[-1]]
        others = sum(longest > APART * numbers.total.norms[i] for i in numbers.present) - 1
        more = f" ({others} more: over {APART:g} times)" if others else ""
        yield (
            f"The gradient of {short} is {_rounded(numbers.times_apart)} times shorter than that of {long}{more}, so "
            f"the plain sum hardly follows it. Weight or normalize first (ConstantWeights, GradientNorms), then look "
            f"again."
        )


def agreement(numbers: Numbers) -> Iterator[str]:
    """No two gradients point apart, neither at all parameters nor at some."""
    pair = numbers.pairs[0]
    cosine = _at(numbers.total.cosines, pair)
    if cosine < CONFLICT or _conflict_at_some(numbers) is not None:
        return
    of = "" if len(numbers.pairs) == 1 else f" ({numbers.told(pair)}, the lowest)"
    if cosine < -CONFLICT:
        yield f"Cosine {cosine:+z.2f}{of}: nearly unrelated. Expect no gain from a method against conflict."
    else:
        yield f"Cosine {cosine:+.2f}{of}: the gradients agree. Expect no gain from a method against conflict."


def chance(numbers: Numbers) -> Iterator[str]:
    """Two gradients point apart, but may do so by chance."""
    pair = numbers.pairs[0]
    cosine = _at(numbers.total.cosines, pair)
    if cosine >= CONFLICT or any(numbers.conflicts(numbers.total, pair) for pair in numbers.pairs):
        return
    if isnan(_at(numbers.total.signals, pair)):
        why = "this batch cannot be parted into eight, to see whether that is chance"
    else:
        why = "parts of the batch differ so much that this may be chance"
    yield (
        f"Cosine {cosine:+.2f} ({numbers.told(pair)}), but {why}. So it is not called a conflict: look again on a "
        f"larger batch, or over several steps with a Monitor."
    )


def conflict(numbers: Numbers) -> Iterator[str]:
    """Two gradients point apart."""
    there = [pair for pair in numbers.pairs if numbers.conflicts(numbers.total, pair)]
    if not there:
        return
    pair = there[0]
    cosine = _at(numbers.total.cosines, pair)
    short, long = sorted(pair, key=lambda i: numbers.total.norms[i])
    lost = -cosine * numbers.total.norms[long] / numbers.total.norms[short]
    effect = f"takes {100 * lost:.0f} % off the descent of" if lost < 1 else "goes uphill for"
    many = "" if len(numbers.pairs) == 1 else f" ({len(there)} of {len(numbers.pairs)} pairs conflict)"
    said = (
        f"{numbers.told(pair)} conflict: cosine {cosine:+.2f}, beyond chance{many}. Their plain sum {effect} "
        f"{numbers.names[short]}."
    )
    if numbers.times_apart > APART:
        yield f"{said} Weights may cure that, so look again with them before you try a method."
    else:
        yield f"{said} A method may help, such as {METHODS}; mtopt.compare decides whether it does."


def part(numbers: Numbers) -> Iterator[str]:
    """Two gradients point apart in some modules, and not in others."""
    found = _conflict_at_some(numbers)
    if found is not None:
        pair, modules = found
        names = ", ".join(f"{m.name or 'the model itself'} ({_at(m.cosines, pair):+.2f})" for m in modules[:3])
        more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
        of = "" if len(numbers.pairs) == 1 else f" of {numbers.told(pair)}"
        where = f"at={modules[0].code}.parameters()" if len(modules) == 1 else "at= a list of their parameters"
        yield (
            f"The conflict{of} is at {names}{more} only. Try a method there, {where}; the rest then gets the plain sum."
        )


def _conflict_at_some(numbers: Numbers) -> tuple[Pair, list[Measured]] | None:
    """Of the pairs that conflict in some modules, but not in others, the one with the lowest cosine there."""
    found: list[tuple[float, Pair, list[Measured]]] = []
    for pair in numbers.pairs:
        weighty = numbers.weighty(pair)
        there = [module for module in weighty if numbers.conflicts(module, pair)]
        if there and any(_at(module.cosines, pair) >= CONFLICT for module in weighty):
            found.append((min(_at(module.cosines, pair) for module in there), pair, there))
    return min(found, key=lambda one: one[0])[1:] if found else None


def _at(square: Sequence[Sequence[float]], pair: Pair) -> float:
    return square[pair[0]][pair[1]]


def _rounded(times: float) -> str:
    """To two digits."""
    return f"{round(times, 1 - int(log10(times))):,.0f}"
