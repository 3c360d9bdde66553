"""The demo's physics: what is trained, its table, and the words that its numbers allow. No options."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._comparison.progress import progress_bar
from .._comparison.statistics import LEAST_SEEDS, NO_DIFFERENCE, SIGNIFICANCE, estimate, holm, paired_p
from .._demo.physics_picture import Learned, draw
from .._demo.training import (
    LEARNING_RATE,
    WEIGHTS,
    Way,
    exact_field,
    look_steps,
    recipe,
    step_ratio,
    train_recipe,
    train_sums,
)
from .screen import count, show

EXTRAS = ("scipy.special", "matplotlib.figure", "rich.progress")

EQUAL, SWEPT, RECIPE = "equal weights", "swept sum", "recipe"


@dataclass(frozen=True)
class Found:
    """What was trained.

    Attributes:
        sums: For each of the weights, on all seeds.
        recipe: On all seeds.
        ratio: Of the time of the recipe's step to that of a sum's.
    """

    sums: Sequence[Way]
    recipe: Way
    ratio: float

    @property
    def best(self) -> int:
        """Which of the sums has the least error."""
        means = [_mean(way) for way in self.sums]
        return means.index(min(means))

    @property
    def ways(self) -> dict[str, Way]:
        """The three that are shown, by name."""
        return {EQUAL: self.sums[0], SWEPT: self.sums[self.best], RECIPE: self.recipe}


def run(seeds: Sequence[int], steps: int, path: Path) -> bool:
    """Train, print and draw; returns that it is finished."""
    found = _trained(seeds, steps)
    show("Physics: a swinging string", _about(found, steps), HEADER, _rows(found), verdict(found))
    about = f"A swinging string: relative L2 errors; fields of seed {seeds[0]}, curves over {count(len(seeds), 'seed')}"
    curves = [_curve(way) for way in found.sums]
    draw(exact_field(), {n: _drawn(found, n) for n in found.ways}, curves, look_steps(steps), about, path)
    print(f"Picture: {path}")
    return True


def _trained(seeds: Sequence[int], steps: int) -> Found:
    n_sums = len(WEIGHTS) * len(seeds)
    with progress_bar(n_sums + len(seeds), True) as report:
        sums = train_sums(seeds, WEIGHTS, steps, lambda share: report(f"{n_sums} sums at once", n_sums * share))
        own = train_recipe(seeds, steps, lambda share: report("the recipe", n_sums + len(seeds) * share))
    return Found(sums, own, step_ratio(seeds[0]))


# -- words and numbers -------------------------------------------------------------------------------------------------

HEADER = ("", "runs", "error", "of single seeds", "time, in runs of a sum")


def verdict(found: Found) -> str:
    """How the recipe's error stands to those of equal weights and of the best sum, by paired t tests."""
    against = {EQUAL: found.sums[0], f"the best of {len(found.sums)} weights": found.sums[found.best]}
    differences = [_log_ratios(found.recipe, way) for way in against.values()]
    tested = len(differences[0]) >= LEAST_SEEDS
    ps = holm([paired_p(logs) for logs in differences]) if tested else [None] * len(differences)
    told = [_told(name, logs, p) for name, logs, p in zip(against, differences, ps, strict=True)]
    return f"the recipe, in one run: {', '.join(told)}."


def _told(name: str, logs: Sequence[float], p: float | None) -> str:
    if p is None:
        what = "too few seeds for a test against"
    elif p >= SIGNIFICANCE:
        what = f"{NO_DIFFERENCE} to"
    else:
        what = "better than" if sum(logs) < 0 else "worse than"
    return f"{what} {name} ({_ratio(logs)})"


def _about(found: Found, steps: int) -> list[str]:
    n_seeds = found.recipe.errors.shape[1]
    sums = ", ".join(f"{weight}: {_mean(way):.2g}" for weight, way in zip(WEIGHTS, found.sums, strict=True))
    return [
        "A small network learns how a string swings from four losses: the wave equation, the string's shape and "
        f"velocity at the start, and its fixed ends. {count(n_seeds, 'seed')}, {steps} steps. All have the same Adam, "
        f"whose learning rate, {LEARNING_RATE:g}, was tuned on other seeds.",
        f"The recipe is {recipe()}, at the parameters. It was chosen on other equations.",
        f"The sums weight all losses but the equation's. Relative L2 error by weight: {sums}. The best is picked by "
        "this very error, which favours it.",
    ]


def _rows(found: Found) -> Iterator[tuple[str, ...]]:
    runs = {EQUAL: 1, SWEPT: len(found.sums), RECIPE: 1}
    for name, way in found.ways.items():
        last = way.errors[-1]
        label = f"{name}, weight {WEIGHTS[found.best]}" if name == SWEPT else name
        of_seeds = f"{float(last.min()):.2g} to {float(last.max()):.2g}"
        time = runs[name] * (found.ratio if name == RECIPE else 1)
        yield label, str(runs[name]), f"{_mean(way):.2g}", of_seeds, f"{time:.2g}"


def _drawn(found: Found, name: str) -> Learned:
    way = found.ways[name]
    note = f"best of {len(found.sums)} weights" if name == SWEPT else "1 run"
    return Learned(f"{name}, {note}\nerror {float(way.errors[-1, 0]):.2g}", way.field, _curve(way))


def _curve(way: Way) -> list[float]:
    """Geometric means over the seeds."""
    curve: list[float] = way.errors.log().mean(1).exp().tolist()
    return curve


def _mean(way: Way) -> float:
    """The geometric mean of the last errors."""
    return math.exp(float(way.errors[-1].log().mean()))


def _log_ratios(one: Way, other: Way) -> list[float]:
    """Of the last errors, seed by seed."""
    return [float(log) for log in one.errors[-1].log() - other.errors[-1].log()]


def _ratio(logs: Sequence[float]) -> str:
    """The geometric mean, and its 95 % interval if there is one."""
    found = estimate(logs)
    assert found is not None
    low, high = (math.exp(found.mean + sign * (found.half or 0)) for sign in (-1, 1))
    return f"{math.exp(found.mean):.2g} × the error" + ("" if found.half is None else f", {low:.2g} to {high:.2g}")
