"""Does the promise survive the optimizer? Whitened methods against the same without, a recipe against the swept sum.

`python benchmarks/promise.py` tunes and tests everything, and goes on where it was stopped. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from batched import Adams, Decided, Decision, Networks, Trainings, WeightedSums, n_parameters
from peers_of_physics import PEERS, Peer
from problems.physics import (
    AllenCahn,
    Burgers,
    Convection,
    Heat,
    Helmholtz,
    Kovasznay,
    Physics,
    Poisson,
    SharpBurgers,
    Wave,
)
from resumable import beside, read_runs
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import mtopt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "promise.jsonl"
COSTS = RESULTS.with_name("promise_cost.json")
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
STEPS = 1500
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
FIRST_RATES = (3e-3, 1e-2, 3e-2)  # then outwards, until the best is not at an edge
FIRST_OF_SUMS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BETAS = (0.9, 0.99, 0.999)
WEIGHTS = (0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)  # of all losses but the residuals; more where the last is the best
MORE_WEIGHTS = (1e4, 3e4, 1e5, 3e5)
TUNING, TESTING = range(100, 103), range(10)  # seeds
ALL = ("",)  # each name has this in it
TOGETHER = 45  # trainings in one pass through their networks
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
ON_MOMENTA, IN_TURN, EQUAL_TIME = ", on momenta", ", one loss a step", ", equal time"
BY_PAIRS = ("ConFIG", "UPGrad")  # what the diagonal alone costs is seen on these
NORMS = "gradient norms"
AS_PEOPLE_RUN_IT = (f"{SUM}, weight 1", 0.999)


@dataclass(frozen=True)
class Run:
    """One training."""

    problem: str
    way: str
    rate: float
    beta: float
    seed: int


Cell = tuple[str, str, float]
"""A problem, a way and a memory."""

Done = dict[Run, dict[str, Any]]
"""Finished trainings, each with its score and the shares of harm."""


def ways(problem: str = "") -> list[str]:
    """What is compared, by name."""
    sums = [f"{SUM}, weight {weight:g}" for weight in WEIGHTS]
    whitened = [name + ending for name in METHODS for ending in ("", WHITENED)]
    momenta = [name + ON_MOMENTA for name in METHODS]
    by_pairs = [name + WHITENED + PAIRS for name in BY_PAIRS]
    recipes = ["recipe", "recipe" + EQUAL_TIME]
    some = [*sums, NORMS, *whitened, *momenta, "ConFIG" + IN_TURN, *PEERS]
    return [*some, *recipes] if problem in OTHERS else [*some, *by_pairs, *recipes, "recipe, power 1.2"]


# Chosen on these two problems, of some thirty lists that were tried on them with two seeds (docs/physics.md). The one
# with a power was added when these had been tested, for its errors on new seeds of them.
RECIPES: dict[str, Callable[[float], list[mtopt.Transform]]] = {
    "recipe": lambda beta: [mtopt.GradientNorms(average=0.99, of="norms"), mtopt.Whitening(beta=beta)],
    "recipe, power 1.2": lambda beta: [
        mtopt.GradientNorms(average=0.99, of="norms", power=1.2),
        mtopt.Whitening(beta=beta),
    ],
}


def weight_of(way: str) -> float:
    return float(way.rsplit(maxsplit=1)[-1])


def transforms_of(way: str, beta: float) -> list[mtopt.Transform]:
    """A list of transforms for one run; its whitening has the inner optimizer's memory."""
    if (recipe := way.removesuffix(EQUAL_TIME)) in RECIPES:
        return RECIPES[recipe](beta)
    if way == NORMS:
        return [mtopt.GradientNorms(average=0.99, of="norms")]
    method = METHODS[way.split(",")[0]]()
    if way.endswith((ON_MOMENTA, IN_TURN)):
        return [mtopt.Momentum(absent=way.endswith(IN_TURN)), method]
    return [method, mtopt.Whitening(beta=beta, pairs=way.endswith(PAIRS))] if WHITENED in way else [method]


def steps_of(way: str, problem: str, steps: int) -> int:
    """Fewer than those of the sum, where a way has its time alone."""
    if not way.endswith(EQUAL_TIME):
        return steps
    times = json.loads(COSTS.read_text(encoding="utf-8"))["as trained"]
    return round(steps / float(times[problem][way.removesuffix(EQUAL_TIME)]))


def train(runs: Sequence[Run], steps: int = STEPS) -> list[dict[str, Any]]:
    """The errors of runs on one problem, as log10 of the relative L2 error on held-out points, and shares of harm."""
    torch.set_num_threads(1)
    problem = (PROBLEMS | OTHERS)[runs[0].problem]()
    networks, shares = trained(runs, problem, steps_of(runs[0].way, runs[0].problem, steps))
    records = []
    for i, (run, share) in enumerate(zip(runs, shares, strict=True)):
        with torch.no_grad():
            split = "validation" if run.seed in TUNING else "test"
            score = problem.metrics(networks.model(i), split)["solution"]
        raised = {name: round(float(of_loss), 3) for name, of_loss in share.items()}
        score = round(score, 4) if math.isfinite(score) else 2.0  # as good as no solution
        records.append({**asdict(run), "score": score, "raised": raised})
    return records


def trained(runs: Sequence[Run], problem: Physics, steps: int) -> tuple[Networks, list[dict[str, float]]]:
    """The networks of runs of one kind after their steps, and for each run how often a step raised each loss."""
    seeds = [run.seed for run in runs]
    if runs[0].way in PEERS:
        return trained_by_peers(runs, problem, steps), [{} for _ in runs]
    adams = Adams([(first_beta(run.way), run.beta) for run in runs], n_parameters(problem))
    others = torch.tensor([run.rate for run in runs]), adams, steps
    stepped: WeightedSums | Decided
    if runs[0].way.startswith(SUM):
        stepped = WeightedSums(problem, seeds, torch.tensor([weights_of(run.way, problem) for run in runs]), *others)
    else:
        stepped = Decided(problem, seeds, [decision_of(run) for run in runs], *others)
    for _ in range(steps):
        stepped.step()
    shares = {name: (raised / stepped.looks).tolist() for name, raised in stepped.raised.items()}
    return stepped, [{name: share[i] for name, share in shares.items()} for i in range(len(runs))]


def weights_of(way: str, problem: Physics) -> list[float]:
    ones, rest = [1.0] * problem.n_residuals, len(problem.tasks) - problem.n_residuals
    return ones + [weight_of(way)] * rest


def first_beta(way: str) -> float:
    """No momentum in Adam, where each loss has its own."""
    return 0.0 if way.endswith((ON_MOMENTA, IN_TURN)) else 0.9


def decision_of(run: Run) -> Decision:
    return Decision(transforms_of(run.way, run.beta), in_turn=run.way.endswith(IN_TURN))


def trained_by_peers(runs: Sequence[Run], problem: Physics, steps: int) -> Trainings:
    schedulers = []

    def make(i: int, parameter: Tensor) -> Peer:
        peer = PEERS[runs[i].way](parameter, runs[i].rate, runs[i].beta, problem.tasks)
        schedulers.append(torch.optim.lr_scheduler.CosineAnnealingLR(peer.inner, steps))
        return peer

    trainings = Trainings(problem, [run.seed for run in runs], make, [run.way.endswith(IN_TURN) for run in runs])
    for _ in range(steps):
        trainings.step()
        for scheduler in schedulers:
            scheduler.step()
    return trainings


def finished(path: Path) -> Done:
    return read_runs(path, Run)


def do(runs: Sequence[Run], path: Path, workers: int, steps: int, what: str) -> None:
    """Train what is not finished yet, many together; runs are written when they are."""
    done = finished(path)
    missing = [run for run in runs if run not in done]
    groups = [list(batch) for of_kind in _kinds(missing) for batch in _batched(of_kind)]
    with multiprocessing.get_context("forkserver").Pool(workers) as pool, path.open("a", encoding="utf-8") as file:
        found = pool.imap_unordered(partial(train, steps=steps), groups)
        for records in track(found, description=what, total=len(groups)):
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()


def _kinds(runs: Sequence[Run]) -> Iterable[Sequence[Run]]:
    """Those that can be trained together: of one problem, sums apart, peers apart, as many steps."""
    kinds: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        kinds[run.problem, run.way.startswith(SUM), run.way in PEERS, run.way.endswith(EQUAL_TIME)].append(run)
    return kinds.values()


def _batched(runs: Sequence[Run]) -> Iterator[Sequence[Run]]:
    return (runs[start : start + TOGETHER] for start in range(0, len(runs), TOGETHER))


def tuning(problems: Sequence[str], done: Done, parts: Sequence[str] = ALL) -> Iterator[Run]:
    """The runs of the first rates, and of the next one where the best of those that are finished is at an edge."""
    tried = scores_by_rate(done)
    for problem, way, beta in (*cells(problems), *heavier(problems, tried)):
        if not any(part in way for part in parts):
            continue
        rates = set(FIRST_OF_SUMS if way.startswith(SUM) else FIRST_RATES)
        if by_rate := tried.get((problem, way, beta)):
            rates |= by_rate.keys() | {beside(RATES, min(by_rate, key=by_rate.__getitem__), by_rate)}
        for rate, seed in itertools.product(sorted(rates), TUNING):
            yield Run(problem, way, rate, beta, seed)


def cells(problems: Sequence[str]) -> Iterator[Cell]:
    """Problem, way and memory. The sums have each memory; the recipe and most methods have, too, on the problems of
    the choice. All else has the shortest, which was the best there."""
    several = {"recipe", *(name + ending for name in AT_EACH_MEMORY for ending in ("", WHITENED, WHITENED + PAIRS))}
    for problem, way, beta in ((p, w, b) for p in problems for w in ways(p) for b in BETAS):
        if beta == BETAS[0] or way.startswith(SUM) or (problem in PROBLEMS and way in several):
            yield problem, way, beta


def heavier(problems: Sequence[str], tried: Mapping[Cell, Mapping[float, float]]) -> Iterator[Cell]:
    """Sums with more weight, as long as the heaviest that was tried is the best."""
    for problem in problems:
        sums = {cell: min(tried[cell].values()) for cell in tried if cell[0] == problem and cell[1].startswith(SUM)}
        for lighter, weight in itertools.pairwise((WEIGHTS[-1], *MORE_WEIGHTS)):
            if sums and weight_of(min(sums, key=sums.__getitem__)[1]) >= lighter:
                yield from ((problem, f"{SUM}, weight {weight:g}", beta) for beta in BETAS)


def tune(problems: Sequence[str], path: Path, workers: int, parts: Sequence[str] = ALL) -> None:
    """Train with one rate after the other, until no best rate is at an edge."""
    done = finished(path)
    while any(run not in done for run in tuning(problems, done, parts)):
        do(list(tuning(problems, done, parts)), path, workers, STEPS, "tuning")
        done = finished(path)


def scores_by_rate(done: Done) -> dict[Cell, dict[float, float]]:
    """For each problem, way and memory the mean score at each rate, over the seeds for tuning."""
    scores: dict[Cell, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run, record in done.items():
        if run.seed in TUNING:
            scores[run.problem, run.way, run.beta][run.rate].append(record["score"])
    return {key: {rate: fmean(of_rate) for rate, of_rate in rates.items()} for key, rates in scores.items()}


def best_rates(done: Done) -> dict[Cell, float]:
    """For each problem, way and memory the best rate."""
    return {key: min(rates, key=rates.__getitem__) for key, rates in scores_by_rate(done).items()}


def testing(problems: Sequence[str], done: Done, parts: Sequence[str]) -> Iterator[Run]:
    """The runs that are tested: of the sums at each memory those with weight 1 and with the best one."""
    scores = {key: min(rates.values()) for key, rates in scores_by_rate(done).items()}
    for (problem, way, beta), rate in best_rates(done).items():
        if problem not in problems or not any(part in way for part in parts):
            continue
        sums = [other for p, other, b in scores if (p, b) == (problem, beta) and other.startswith(SUM)]
        best = min(sums, key=lambda other: scores[problem, other, beta], default=None)
        if not way.startswith(SUM) or way in (best, AS_PEOPLE_RUN_IT[0]):
            for seed in TESTING:
                yield Run(problem, way, rate, beta, seed)


def tables(path: Path, console: Console) -> None:
    """The errors at each memory, and each way at its best one."""
    done = finished(path)
    rates = best_rates(done)
    for problem in dict.fromkeys(run.problem for run in done):
        shown = Table(
            title=f"{problem}: relative L2 error, geometric mean of {len(TESTING)} seeds (rate); share of harm"
        )
        for column in ("way", *(f"beta2 = {beta:g}" for beta in BETAS)):
            shown.add_column(column)
        for way in ways(problem):
            cells = []
            for beta in BETAS:
                rate = rates.get((problem, way, beta))
                key = (problem, way, rate, beta)
                records = [r for run, r in done.items() if (run.problem, run.way, run.rate, run.beta) == key]
                tested = [r for r in records if r["seed"] in TESTING] or records
                cells.append(_cell(tested, rate) if tested else "")
            shown.add_row(way, *cells)
        console.print(shown)


def _cell(records: Sequence[dict[str, Any]], rate: float | None) -> str:
    error = 10 ** fmean(record["score"] for record in records)
    harm = [max(record["raised"].values(), default=0.0) for record in records if record["raised"]]
    edge = "!" if rate in (RATES[0], RATES[-1]) else ""
    return f"{error:.4f} ({rate:g}{edge})" + (f" {fmean(harm):.0%}" if harm else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS | OTHERS, default=list(PROBLEMS))
    parser.add_argument("--ways", nargs="+", metavar="PART", default=ALL, help="those with a part of their name here")
    parser.add_argument("--output", type=Path, help="finished runs, one JSON object in a line")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--tables", action="store_true", help="train nothing: print what is finished")
    parser.add_argument("--publish", action="store_true", help="train nothing: fill the tables of the docs")
    parser.add_argument("--quick", action="store_true", help="a trial of the procedure in a minute, no evidence")
    args = parser.parse_args()
    if args.publish:
        from promise_page import publish  # which knows this module

        publish(args.output or RESULTS, ROOT / "docs")
        return
    console = Console()
    with tempfile.TemporaryDirectory() as trial:
        output = args.output or (Path(trial) / RESULTS.name if args.quick else RESULTS)
        _run(args, output)
        tables(output, console)


def _run(args: argparse.Namespace, output: Path) -> None:
    if args.quick:
        both = TUNING[0], TESTING[0]
        some = [Run(problem, way, 1e-2, 0.9, seed) for problem in args.problems for way in ways() for seed in both]
        do(some, output, args.workers, 20, "a trial")
    elif not args.tables:
        tune(args.problems, output, args.workers, args.ways)
        do(list(testing(args.problems, finished(output), args.ways)), output, args.workers, STEPS, "testing")


if __name__ == "__main__":
    main()
