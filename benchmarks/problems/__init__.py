"""The problems by name; each is made when it is asked for, with its data."""

from __future__ import annotations

from functools import cache

from .base import Problem
from .census import Census
from .physics import Burgers, Helmholtz, QuickHelmholtz
from .pictures import MultiDigits, MultiFashion, MultiFashionMNIST
from .transfer import Transfer
from .yeast import Yeast

PROBLEMS: dict[str, type[Problem]] = {
    "multi_fashion": MultiFashion,
    "multi_fashion_mnist": MultiFashionMNIST,
    "yeast": Yeast,
    "census": Census,
    "transfer": Transfer,
    "helmholtz": Helmholtz,
    "burgers": Burgers,
}
QUICK: dict[str, type[Problem]] = {"quick_digits": MultiDigits, "quick_helmholtz": QuickHelmholtz}


@cache
def problem(name: str) -> Problem:
    """The problem of a name, made once in a process."""
    return {**PROBLEMS, **QUICK}[name]()
