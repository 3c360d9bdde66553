"""What stands beside the methods in equal steps: each at one length, and some whitened. No method of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from problems.base import Problem

from mtopt import GradDrop, LossWeighting, Transform, Whitening

from .methods import OTHERS, PLAIN, Method, methods_of

FAMILIES = ONE_LENGTH, WHITENED = "one length", "whitened"
TO_WHITEN: dict[str, Callable[[int], Transform]] = {
    "GradDrop": lambda seed: GradDrop(seed=seed),
    **{name: OTHERS[name] for name in ("AlignedMTL", "ConFIG", "IMTLG", "PCGrad", "UPGrad")},
}


def methods_and_variants(problem: Problem) -> dict[str, Method]:
    """All methods that the problem allows, the plain sum first, and what stands beside them."""
    return {**methods_of(problem), **at_one_length(problem), **whitened(problem)}


def at_one_length(problem: Problem) -> dict[str, Method]:
    """As long as the plain sum, with its setting: what needs gradients, not weights of the losses alone."""
    return {
        f"{name}, {ONE_LENGTH}": replace(method, length="sum", setting_of=PLAIN, family=ONE_LENGTH, partner=name)
        for name, method in methods_of(problem).items()
        if any(not isinstance(transform, LossWeighting) for transform in method.make(0))
    }


def whitened(problem: Problem) -> dict[str, Method]:
    """At parameters, with a partner there that is tuned alike."""
    known = methods_of(problem)
    found: dict[str, Method] = {}
    for name, make in TO_WHITEN.items():
        there = (other for other in (f"{name}, at parameters", name) if other in known)
        partner = next((other for other in there if known[other].at == "parameters"), f"{name}, at parameters")
        if partner not in known:
            found[partner] = Method(_list(make), "parameters", family=WHITENED)
        behind = _list(make, Whitening)
        found[f"{name}, {WHITENED}"] = Method(behind, "parameters", family=WHITENED, partner=partner)
    return found


def _list(make: Callable[[int], Transform], *behind: type[Transform]) -> Callable[[int], list[Transform]]:
    return lambda seed: [make(seed), *(kind() for kind in behind)]
