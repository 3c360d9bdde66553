"""What `promise.py` found, as tables of docs/physics.md. Trains nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from blocks_of_a_page import fill
from markdown_tables import table
from promise import Cell, finished, times_of_steps
from promise_found import NAMES, Found, all_sums, cell_of
from promise_ways import (
    AS_ONE,
    AS_PEOPLE_RUN_IT,
    AT_EACH_MEMORY,
    BETAS,
    DECAY,
    DECAYS,
    EQUAL_TIME,
    IN_TURN,
    METHODS,
    MORE_WEIGHTS,
    NORMS,
    ON_MOMENTA,
    OTHERS,
    PAIRS,
    PROBLEMS,
    SELDOM,
    SOAP,
    SOAP_BETAS,
    SOAP_WEIGHTS,
    WHITENED,
    WITH_SOAP,
    decay_of,
    kind_of_sum,
    sum_of,
    ways,
    weight_of,
)
from scipy import stats

from mtopt._comparison.statistics import SIGNIFICANCE, estimate, holm, paired_p

UNSWEPT = AS_PEOPLE_RUN_IT[0]
DECAYED = "sum, all swept, weight decay"


def publish(results: Path, docs: Path) -> None:
    found = Found(finished(results))
    blocks = {"recipe": recipe_table(found), "ratios": ratios_table(found, "recipe")}
    blocks |= {"summary": summary_table(found), "seldom": ratios_table(found, SELDOM), "times": times_table()}
    blocks |= {"seldom with SOAP": ratios_table(found, SELDOM + AS_ONE + SOAP)}
    blocks |= {"as one": as_one_table(found), "methods": methods_table(found), "in time": in_time_table(found)}
    blocks |= {"soap": soap_table(found), "harm": harm_table(found), "endings": endings_table(found)}
    blocks |= {"whitening": whitening_table(found), "pairs": pairs_table(found)}
    blocks |= {f"promise {problem}": errors_table(found, problem) for problem in found.problems()}
    fill(docs / "physics.md", blocks)


def recipe_table(found: Found) -> str:
    """The errors of the sums and the recipe on each problem, and of how many trainings each is the best."""
    head = ["", "sum, weights 1, β₂ 0.999", "sum, weights 1, β₂ swept", "sum, all swept", "its weight, rate, β₂"]
    rows = []
    for problem in found.problems():
        unswept, swept = (problem, *AS_PEOPLE_RUN_IT), found.swept(problem)
        one = _some(found.best(problem, [UNSWEPT]))
        cells = [f"{found.error(unswept):.4f} ({found.tried[unswept]})"]
        cells.append(f"{found.error(one):.4f} ({found.runs(problem, [UNSWEPT])})")
        cells.append(f"{found.error(swept):.4f} ({found.runs(problem, all_sums())})")
        cells.append(f"{weight_of(swept[1]):g}, {found.rates[swept]:g}, {swept[2]:g}")
        for recipe in ("recipe", "recipe" + EQUAL_TIME):
            ours = cell_of(problem, recipe)
            cells.append(f"{found.error(ours):.4f} ({found.tried[ours]})")
        rows.append([NAMES[problem], *cells])
    return table([*head, "recipe, equal steps", "recipe, equal time"], rows)


def ratios_table(found: Found, way: str) -> str:
    """A way over the sums, in as many steps and in as much time; p of the latter, corrected for the problems."""
    head = ["", "equal steps, / all swept", "/ weights 1, β₂ 0.999", "steps in equal time", "equal time, / all swept"]
    rows, missed, reached = [], [], []
    for problem in found.problems():
        both = [_where_apart(problem, way + ending) for ending in ("", EQUAL_TIME)]
        if not all(map(found.tested, both)):
            continue
        swept, unswept = (found.scores(cell) for cell in _swept_and_unswept(found, problem))
        in_steps, in_time = map(found.scores, both)
        missed.append(_p(in_time, swept, 1.2, "greater"))
        reached.append(_p(in_time, unswept, 0.5, "less"))
        steps = str(found.steps(both[1]))
        rows.append([NAMES[problem], *(interval(in_steps, other) for other in (swept, unswept)), steps])
        rows[-1] += [interval(in_time, swept), "", interval(in_time, unswept), ""]
    for row, *ps in zip(rows, holm(missed), holm(reached), strict=True):
        row[5], row[7] = (f"{p:.2g}" for p in ps)
    return table([*head, "p > 1.2", "/ weights 1, β₂ 0.999", "p < 0.5"], rows)


def summary_table(found: Found) -> str:
    """On how many of the problems that nothing was chosen on a way is near the swept sum, or far below the unswept."""
    head = ["", "settings", "equal steps: ≤ 1.2 × all swept", "mean ratio", "≤ 0.5 × weights 1, β₂ 0.999"]
    head += ["equal time: ≤ 1.2 × all swept", "mean ratio", "≤ 0.5 × weights 1, β₂ 0.999"]
    rows = []
    with_soap = (way + ending + SOAP for way in (SELDOM, NORMS) for ending in ("", AS_ONE))
    for way in (UNSWEPT, SELDOM, SELDOM + AS_ONE, "recipe", "recipe" + AS_ONE, *with_soap):
        row: list[str] = []
        tried: set[int] = set()
        for ending in ("",) if way == UNSWEPT else ("", EQUAL_TIME):
            cells = [_where_apart(problem, way + ending) for problem in OTHERS]
            if not all(map(found.tested, cells)):
                break
            tried |= {found.tried[cell] for cell in cells}
            others = [_swept_and_unswept(found, problem) for problem in OTHERS]
            over_swept = [
                found.error(cell) / found.error(swept) for cell, (swept, _) in zip(cells, others, strict=True)
            ]
            over_unswept = [found.error(cell) / found.error(one) for cell, (_, one) in zip(cells, others, strict=True)]
            near, low = sum(ratio <= 1.2 for ratio in over_swept), sum(ratio <= 0.5 for ratio in over_unswept)
            row += [f"{near} of {len(cells)}", f"{_geometric(over_swept):.2f}", f"{low} of {len(cells)}"]
        if row:
            settings = f"{min(tried)} to {max(tried)}" if len(tried) > 1 else str(*tried)
            rows.append([way, settings, *row, *[""] * (len(head) - 2 - len(row))])
    return table(head, rows)


def _where_apart(problem: str, way: str) -> Cell:
    """One residual is one loss already."""
    several = (PROBLEMS | OTHERS)[problem].n_residuals > 1
    return cell_of(problem, way if several else way.replace(AS_ONE, ""))


def _swept_and_unswept(found: Found, problem: str) -> tuple[Cell, Cell]:
    return found.swept(problem), (problem, *AS_PEOPLE_RUN_IT)


def _p(ours: Sequence[float], others: Sequence[float], limit: float, side: str) -> float:
    """Of Student's t on the paired logarithms: that the ratio is beyond the limit."""
    return float(stats.ttest_1samp(_differences(ours, others), math.log10(limit), alternative=side).pvalue)


def methods_table(found: Found) -> str:
    """Each way at β₂ = 0.9 over the swept sum; a star where the two differ."""
    decayed = [f"{way}{DECAY} {decay:g}" for way in all_sums() for decay in DECAYS]
    rows = {DECAYED: _best(found, decayed, BETAS)}
    rows |= {way: _cells(found, way) for way in (UNSWEPT, *_of_methods(), *_rest())}
    return _over_swept(found, rows)


def in_time_table(found: Found) -> str:
    """Those that were trained for as long as the swept sum, over it."""
    names = [way for way in ways() if way.endswith(EQUAL_TIME) and SOAP not in way]
    return _over_swept(found, {way.removesuffix(EQUAL_TIME): _cells(found, way) for way in names})


def soap_table(found: Found) -> str:
    """Each way with SOAP over Adam's swept sum; a star where the two differ."""
    rows = {UNSWEPT: _cells(found, UNSWEPT + SOAP)}
    for ending in ("", EQUAL_TIME):
        sums = [sum_of(weight) + SOAP + ending for weight in (*SOAP_WEIGHTS, *MORE_WEIGHTS)]
        rows[f"sum, weights and rates swept{ending}"] = _best(found, sums, SOAP_BETAS[1:])
    for way, ending in itertools.product((*WITH_SOAP, NORMS + AS_ONE, SELDOM + AS_ONE), ("", EQUAL_TIME)):
        rows[way + ending] = _cells(found, way + SOAP + ending)
    return _over_swept(found, rows)


def _cells(found: Found, way: str) -> dict[str, Cell]:
    """A way on each problem."""
    return {problem: cell_of(problem, way) for problem in found.problems()}


def _best(found: Found, names: Sequence[str], betas: Sequence[float]) -> dict[str, Cell]:
    """The best of some ways on each problem that has any of them."""
    return {problem: cell for problem in found.problems() if (cell := found.best(problem, names, betas))}


def _over_swept(found: Found, rows: Mapping[str, Mapping[str, Cell]]) -> str:
    """The ratios of errors, and a star where p < 0.05 after Holm's correction for all of the table."""
    problems = found.problems()
    cells = {(name, p): own[p] for name, own in rows.items() for p in problems if p in own and found.tested(own[p])}
    swept = {problem: found.scores(found.swept(problem)) for problem in problems}
    pairs = {key: (found.scores(cell), swept[key[1]]) for key, cell in cells.items()}
    differ = dict(zip(pairs, holm([paired_p(_differences(*pair)) for pair in pairs.values()]), strict=True))
    shown = {key: _ratio(*pair) + "\\*" * (differ[key] < SIGNIFICANCE) for key, pair in pairs.items()}
    lines = [[name, *(shown.get((name, problem), "") for problem in problems)] for name in rows]
    return table(["", *(NAMES[problem] for problem in problems)], (line for line in lines if any(line[1:])))


def times_table() -> str:
    """The time of a step over that of the plain sum's, of each way, as it was measured."""
    measured = times_of_steps()
    problems = [problem for problem in NAMES if problem in measured]
    ways_there = dict.fromkeys(way for problem in problems for way in measured[problem] if way != "plain sum")
    times = {way: [measured[problem].get(way) for problem in problems] for way in ways_there}
    rows = [[way, *("" if time is None else f"{time:.2f}" for time in own)] for way, own in times.items()]
    return table(["", *(NAMES[problem] for problem in problems)], rows)


def _differences(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(ours, others, strict=True)]


def _ratio(ours: Sequence[float], others: Sequence[float]) -> str:
    ratio = 10 ** (fmean(ours) - fmean(others))
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _some(cell: Cell | None) -> Cell:
    assert cell is not None
    return cell


def _of_methods() -> list[str]:
    return [NORMS, SELDOM, *(name + ending for name in METHODS for ending in ("", WHITENED, ON_MOMENTA))]


def _rest() -> list[str]:
    peers = (way for way in ways() if way.startswith("conflictfree"))
    return ["ConFIG" + IN_TURN, *peers, "recipe"]


def as_one_table(found: Found) -> str:
    """Each way over the swept sum, with each residual as a loss, and with all as one."""
    head, rows = ["", "problem", "each residual", "residuals as one"], []
    for problem, way in itertools.product(found.problems(), [*_of_methods(), "recipe"]):
        for ending in ("", EQUAL_TIME):
            both = cell_of(problem, way + ending), cell_of(problem, way + AS_ONE + ending)
            if all(map(found.tested, both)):
                swept = found.scores(found.swept(problem))
                rows.append([way + ending, NAMES[problem], *(interval(found.scores(cell), swept) for cell in both)])
    return table(head, rows)


def endings_table(found: Found) -> str:
    """Each method with whitening, and on momenta, over the same without, at β₂ = 0.9."""
    problems, rows = found.problems(), []
    for ending, method in itertools.product((WHITENED, ON_MOMENTA), METHODS):
        pairs = {p: (cell_of(p, method + ending), cell_of(p, method)) for p in problems}
        both = {p: pair for p, pair in pairs.items() if all(map(found.tested, pair))}
        ratios = {p: found.error(one) / found.error(other) for p, (one, other) in both.items()}
        if ratios:
            cells = (f"{ratios[p]:.2f}" if p in ratios else "" for p in problems)
            rows.append([method + ending, *cells, f"{_geometric(ratios.values()):.2f}"])
    return table(["over the same without", *(NAMES[problem] for problem in problems), "geometric mean"], rows)


def harm_table(found: Found) -> str:
    """In which share of the looks each way's step raised the loss that it raised most often, at β₂ = 0.9."""
    head = ["", *(NAMES[problem] for problem in found.problems())]
    with_soap = (way + SOAP for way in (UNSWEPT, *WITH_SOAP))
    names = UNSWEPT, *_of_methods(), "ConFIG" + IN_TURN, "recipe", *with_soap
    swept = {problem: found.swept(problem) for problem in found.problems()}
    rows = []
    for name, cells in {"sum, all swept": swept, **{way: _cells(found, way) for way in names}}.items():
        harms = [found.harm(cell) if found.tested(cell) else None for cell in cells.values()]
        if any(harm is not None for harm in harms):
            rows.append([name, *("" if harm is None else f"{harm:.0%}" for harm in harms)])
    return table(head, rows)


def whitening_table(found: Found) -> str:
    """Each method whitened over the same without: at each memory, and both at their best one."""
    head = ["whitened / without", *(f"{p.capitalize()}, β₂ {b:g}" for p in PROBLEMS for b in BETAS), "at their best β₂"]
    columns: list[list[float]] = []
    for method in AT_EACH_MEMORY:
        pairs = [((p, method + WHITENED, b), (p, method, b)) for p in PROBLEMS for b in BETAS]
        best = [tuple(_some(found.best(p, [method + ending])) for ending in (WHITENED, "")) for p in PROBLEMS]
        ratios = [found.error(one) / found.error(other) for one, other in pairs]
        columns.append([*ratios, _geometric(found.error(one) / found.error(other) for one, other in best)])
    mean = [_geometric(of_all) for of_all in zip(*columns, strict=True)]
    rows = [[name, *(f"{ratio:.2f}" for ratio in ratios)] for name, ratios in zip(AT_EACH_MEMORY, columns, strict=True)]
    return table(head, [*rows, ["geometric mean", *(f"{ratio:.2f}" for ratio in mean)]])


def pairs_table(found: Found) -> str:
    """Whitening by pairs over whitening by the diagonal."""
    by_pairs = [way for way in ways() if way.endswith(PAIRS)]
    head = ["by pairs / diagonal", *(f"{p.capitalize()}, β₂ {b:g}" for p in PROBLEMS for b in BETAS)]
    rows = []
    for way in by_pairs:
        cells = [((p, way, b), (p, way.removesuffix(PAIRS), b)) for p in PROBLEMS for b in BETAS]
        ratios = [found.error(one) / found.error(other) for one, other in cells]
        rows.append([way.split(",")[0], *(f"{ratio:.2f}" for ratio in ratios)])
    return table(head, rows)


def errors_table(found: Found, problem: str) -> str:
    """Every way that was tested: its error, its rate, its harm."""
    betas = (*BETAS, SOAP_BETAS[1])
    head = ["way", *(f"β₂ {beta:g}" for beta in betas)]
    trained = {way for of, way, _ in found.rates if of == problem}
    sums = [way for way in trained if kind_of_sum(way) is not None]
    in_order = dict.fromkeys([*_by_weight(sums), *ways(problem), *sorted(trained)])
    rows = []
    for way in filter(trained.__contains__, in_order):
        cells = [_error(found, (problem, way, beta)) for beta in betas]
        if any(cells):
            rows.append([way, *cells])
    return table(head, rows)


def _by_weight(sums: Sequence[str]) -> list[str]:
    return sorted(sums, key=lambda way: (kind_of_sum(way), weight_of(way), decay_of(way)))


def _error(found: Found, cell: Cell) -> str:
    if not found.tested(cell):  # a sum whose weight was not the best one in the tuning
        return ""
    harm = found.harm(cell)
    return f"{found.error(cell):.4f} (rate {found.rates[cell]:g}{'' if harm is None else f', harm {harm:.0%}'})"


def interval(scores: Sequence[float], others: Sequence[float]) -> str:
    """The ratio of two errors with its 95 % interval, by Student's t on the paired logarithms."""
    found = estimate(_differences(scores, others))
    assert found is not None
    assert found.half is not None  # there are several seeds
    low, high = found.mean - found.half, found.mean + found.half
    return f"{10**found.mean:.2f} ({10**low:.2f} to {10**high:.2f})"


def _geometric(ratios: Iterable[float]) -> float:
    return math.exp(fmean(map(math.log, ratios)))
