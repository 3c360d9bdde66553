"""What `promise.py` compares, by name: the problems, the sums, the methods, the recipe. Trains nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from peers_of_physics import PEERS
from problems.physics import (
    AllenCahn,
    Burgers,
    Convection,
    Heat,
    Helmholtz,
    Kovasznay,
    Physics,
    Poisson,
    ResidualsAsOne,
    SharpBurgers,
    Wave,
)

import mtopt

PROBLEMS: dict[str, type[Physics]] = {"helmholtz": Helmholtz, "burgers": Burgers}  # on which the recipe was chosen
OTHERS: dict[str, type[Physics]] = {
    "poisson": Poisson,
    "heat": Heat,
    "wave": Wave,
    "convection": Convection,
    "allen-cahn": AllenCahn,
    "kovasznay": Kovasznay,
    "sharp-burgers": SharpBurgers,
}
BETAS = (0.9, 0.99, 0.999)
SOAP_BETAS = (0.95, 0.95)  # its authors' β₁ and β₂
WEIGHTS = (0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)  # of all losses but the residuals
SOAP_WEIGHTS = (1, 10, 100, 1000)
MORE_WEIGHTS = (1e4, 3e4, 1e5, 3e5)  # where the last is the best
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the weights, behind the best of the sums
METHODS: dict[str, Callable[[], mtopt.Transform]] = {
    "ConFIG": mtopt.ConFIG,
    "IMTLG": mtopt.IMTLG,
    "AlignedMTL": mtopt.AlignedMTL,
    "UPGrad": mtopt.UPGrad,
    "GradDrop": mtopt.GradDrop,
    "PCGrad": mtopt.PCGrad,
}
AT_EACH_MEMORY = ("ConFIG", "IMTLG", "AlignedMTL", "UPGrad", "GradDrop")  # on the problems of the choice
SUM, WHITENED, PAIRS = "sum", ", whitened", " by pairs"
ON_MOMENTA, IN_TURN, EQUAL_TIME, SOAP, DECAY = ", on momenta", ", one loss a step", ", equal time", ", SOAP", ", decay"
AS_ONE = ", residuals as one"
BY_PAIRS = ("ConFIG", "UPGrad")  # what the diagonal alone costs is seen on these
NORMS, SELDOM = "gradient norms", "gradient norms, every 10 steps"
WITH_SOAP = (NORMS, SELDOM, "ConFIG", "UPGrad", "GradDrop")
SUM_WITH_SOAP = SUM + SOAP  # with any weight: its step takes as long
AS_PEOPLE_RUN_IT = (f"{SUM}, weight 1", 0.999)

# Chosen on these two problems, of some thirty lists that were tried on them with two seeds (docs/physics.md). The one
# with a power was added when these had been tested, for its errors on new seeds of them.
RECIPES: dict[str, Callable[[float], list[mtopt.Transform]]] = {
    "recipe": lambda beta: [mtopt.GradientNorms(average=0.99, of="norms"), mtopt.Whitening(beta=beta)],
    "recipe, power 1.2": lambda beta: [
        mtopt.GradientNorms(average=0.99, of="norms", power=1.2),
        mtopt.Whitening(beta=beta),
    ],
}


def ways(problem: str = "") -> list[str]:
    """All that is compared on a problem, but for the sums that are tried because of what others gave."""
    sums = [sum_of(weight) for weight in WEIGHTS]
    whitened = [name + ending for name in METHODS for ending in ("", WHITENED)]
    methods = [NORMS, SELDOM, *whitened]
    in_time = [way + EQUAL_TIME for way in methods]
    momenta = [name + ON_MOMENTA for name in METHODS]
    by_pairs = [name + WHITENED + PAIRS for name in BY_PAIRS]
    sums_with_soap = [sum_of(weight) + SOAP for weight in SOAP_WEIGHTS]
    with_soap = [*sums_with_soap, *(name + SOAP for name in WITH_SOAP)]
    with_soap += [way + EQUAL_TIME for way in (*sums_with_soap, NORMS + SOAP, SELDOM + SOAP)]
    recipes = ["recipe", "recipe" + EQUAL_TIME]
    some = [*sums, *methods, *in_time, *momenta, "ConFIG" + IN_TURN, *PEERS, *with_soap]
    if problem and (PROBLEMS | OTHERS)[problem].n_residuals > 1:
        recipes += [way + AS_ONE + ending for way in ("recipe", SELDOM) for ending in ("", EQUAL_TIME)]
        recipes += [way + AS_ONE for way in (NORMS, *whitened)]
        recipes += [way + AS_ONE + SOAP + ending for way in (NORMS, SELDOM) for ending in ("", EQUAL_TIME)]
    return [*some, *recipes] if problem in OTHERS else [*some, *by_pairs, *recipes, "recipe, power 1.2"]


def problem_of(name: str, way: str) -> Physics:
    """The problem as it is trained."""
    problem = (PROBLEMS | OTHERS)[name]()
    return ResidualsAsOne(problem) if AS_ONE in way else problem


def memories(problem: str, way: str) -> Sequence[float]:
    """The β₂ that are tried. The sums have each; the recipe and most methods have, too, on the problems of the choice.
    All else has the shortest, which was the best there, and SOAP its authors'."""
    if SOAP in way:
        return SOAP_BETAS[1:]
    several = {"recipe", *(name + ending for name in AT_EACH_MEMORY for ending in ("", WHITENED, WHITENED + PAIRS))}
    return BETAS if way.startswith(SUM) or (problem in PROBLEMS and way in several) else BETAS[:1]


def sum_of(weight: float) -> str:
    return f"{SUM}, weight {weight:g}"


def kind_of_sum(way: str) -> str | None:
    """Sums of one kind have rivals of that kind: the ending of the name; `None` if it is no sum."""
    if not way.startswith(SUM):
        return None
    if DECAY in way:
        return DECAY
    return way.removeprefix(sum_of(weight_of(way)))


def heavier_than(kind: str) -> list[tuple[str, str]]:
    """Pairs of sums: the second is tried where the best weight is the first's, or more."""
    last = (SOAP_WEIGHTS if SOAP in kind else WEIGHTS)[-1]
    names = [sum_of(weight) + kind for weight in (last, *MORE_WEIGHTS)]
    return list(itertools.pairwise(names))


def weight_of(way: str) -> float:
    """Of a sum's losses but the residuals."""
    return _number(way, "weight")


def decay_of(way: str) -> float:
    """Of AdamW."""
    return _number(way, "decay") if DECAY in way else 0.0


def _number(way: str, name: str) -> float:
    (found,) = (part for part in way.split(", ") if part.startswith(f"{name} "))
    return float(found.removeprefix(name))


def weights_of(way: str, problem: Physics) -> list[float]:
    """Of each loss of a sum."""
    ones, rest = [1.0] * problem.n_residuals, len(problem.tasks) - problem.n_residuals
    return ones + [weight_of(way)] * rest


def transforms_of(way: str, beta: float) -> list[mtopt.Transform]:
    """A list of transforms for one run; its whitening has the inner optimizer's memory."""
    way = way.removesuffix(EQUAL_TIME).removesuffix(SOAP).removesuffix(AS_ONE)
    if way in RECIPES:
        return RECIPES[way](beta)
    if way == NORMS:
        return [mtopt.GradientNorms(average=0.99, of="norms")]
    if way == SELDOM:
        return [mtopt.GradientNorms(average=0.9, period=10, of="norms")]  # as long a memory
    method = METHODS[way.split(",")[0]]()
    if way.endswith((ON_MOMENTA, IN_TURN)):
        return [mtopt.Momentum(absent=way.endswith(IN_TURN)), method]
    return [method, mtopt.Whitening(beta=beta, pairs=way.endswith(PAIRS))] if WHITENED in way else [method]


def first_beta(way: str) -> float:
    """Of Adam, which has no momentum where each loss has its own."""
    return 0.0 if way.endswith((ON_MOMENTA, IN_TURN)) else 0.9
