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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from batched import Adams, Decided, Decision, Networks, Trainings, WeightedSums, n_parameters
from peers_of_physics import PEERS, Peer
from problems.physics import Physics
from promise_ways import (
    AS_ONE,
    BETAS,
    DECAY,
    DECAYS,
    EQUAL_TIME,
    IN_TURN,
    OTHERS,
    PROBLEMS,
    SOAP,
    SOAP_BETAS,
    SUM,
    SUM_WITH_SOAP,
    decay_of,
    first_beta,
    heavier_than,
    kind_of_sum,
    memories,
    problem_of,
    sum_of,
    transforms_of,
    ways,
    weight_of,
    weights_of,
)
from resumable import beside, read_runs
from rich.console import Console
from rich.progress import track
from rich.table import Table
from soap import Soaps
from torch import Tensor

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "promise.jsonl"
COSTS = RESULTS.with_name("promise_cost.json")
STEPS = 1500
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
FIRST_RATES = (3e-3, 1e-2, 3e-2)  # then outwards, until the best is not at an edge
FIRST_OF_SUMS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TUNING, TESTING = range(100, 103), range(10)  # seeds
ALL = ("",)  # each name has this in it
TOGETHER = 45  # trainings in one pass through their networks


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

Tried = Mapping[Cell, Mapping[float, float]]
"""The mean score of each rate that was tried."""

Done = dict[Run, dict[str, Any]]
"""Finished trainings, each with its score and the shares of harm."""


def steps_of(way: str, problem: str, steps: int) -> int:
    """Fewer than those of the sum, where a way has its time alone."""
    if not way.endswith(EQUAL_TIME):
        return steps
    timed = SUM_WITH_SOAP if way.startswith(SUM) else way.removesuffix(EQUAL_TIME)
    return round(steps / times_of_steps()[problem][timed])


@cache
def times_of_steps() -> dict[str, dict[str, float]]:
    """Of each problem's ways, over the plain sum's, as `promise_cost.py` measured them."""
    times: dict[str, dict[str, float]] = json.loads(COSTS.read_text(encoding="utf-8"))["as trained"]
    return times


def train(runs: Sequence[Run], steps: int = STEPS) -> list[dict[str, Any]]:
    """The errors of runs on one problem, as log10 of the relative L2 error on held-out points, and shares of harm."""
    torch.set_num_threads(1)
    problem = problem_of(runs[0].problem, runs[0].way)
    steps = steps_of(runs[0].way, runs[0].problem, steps)
    networks, shares = trained(runs, problem, steps)
    records = []
    for i, (run, share) in enumerate(zip(runs, shares, strict=True)):
        with torch.no_grad():
            split = "validation" if run.seed in TUNING else "test"
            score = problem.metrics(networks.model(i), split)["solution"]
        raised = {name: round(float(of_loss), 3) for name, of_loss in share.items()}
        score = round(score, 4) if math.isfinite(score) else 2.0  # as good as no solution
        records.append({**asdict(run), "steps": steps, "score": score, "raised": raised})
    return records


def trained(runs: Sequence[Run], problem: Physics, steps: int) -> tuple[Networks, list[dict[str, float]]]:
    """The networks of runs of one kind after their steps, and for each run how often a step raised each loss."""
    seeds = [run.seed for run in runs]
    if runs[0].way in PEERS:
        return trained_by_peers(runs, problem, steps), [{} for _ in runs]
    others = torch.tensor([run.rate for run in runs]), inner_of(runs, problem), steps
    stepped: WeightedSums | Decided
    if runs[0].way.startswith(SUM):
        weights = torch.tensor([weights_of(run.way, problem) for run in runs])
        decays = torch.tensor([decay_of(run.way) for run in runs])
        stepped = WeightedSums(problem, seeds, weights, *others, decays=decays)
    else:
        stepped = Decided(problem, seeds, [decision_of(run) for run in runs], *others)
    for _ in range(steps):
        stepped.step()
    shares = {name: (raised / stepped.looks).tolist() for name, raised in stepped.raised.items()}
    return stepped, [{name: share[i] for name, share in shares.items()} for i in range(len(runs))]


def inner_of(runs: Sequence[Run], problem: Physics) -> Adams | Soaps:
    if SOAP in runs[0].way:
        return Soaps([p.shape for p in problem.make_model().parameters()], SOAP_BETAS)
    return Adams([(first_beta(run.way), run.beta) for run in runs], n_parameters(problem))


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
    """Those that can be trained together: of one problem and its losses, with as many steps, sums and peers apart."""
    kinds: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        steps = steps_of(run.way, run.problem, STEPS)
        apart = run.way.startswith(SUM), run.way in PEERS, SOAP in run.way, AS_ONE in run.way
        kinds[run.problem, steps, *apart].append(run)
    return kinds.values()


def _batched(runs: Sequence[Run]) -> Iterator[Sequence[Run]]:
    return (runs[start : start + TOGETHER] for start in range(0, len(runs), TOGETHER))


def tuning(problems: Sequence[str], done: Done, parts: Sequence[str] = ALL) -> Iterator[Run]:
    """The runs of the first rates, and of the next one where the best of those that are finished is at an edge."""
    tried = scores_by_rate(done)
    for problem, way, beta in (*cells(problems), *heavier(problems, tried), *decayed(problems, tried)):
        if not any(part in way for part in parts):
            continue
        rates = set(FIRST_OF_SUMS if kind_of_sum(way) == "" else FIRST_RATES)
        if by_rate := tried.get((problem, way, beta)):
            rates |= by_rate.keys() | {beside(RATES, min(by_rate, key=by_rate.__getitem__), by_rate)}
        for rate, seed in itertools.product(sorted(rates), TUNING):
            yield Run(problem, way, rate, beta, seed)


def cells(problems: Sequence[str]) -> Iterator[Cell]:
    """Problem, way and memory."""
    for problem in problems:
        for way in ways(problem):
            yield from ((problem, way, beta) for beta in memories(problem, way))


def heavier(problems: Sequence[str], tried: Tried) -> Iterator[Cell]:
    """Sums with more weight, as long as the heaviest that was tried is the best."""
    for problem, kind in itertools.product(problems, ("", SOAP, SOAP + EQUAL_TIME)):
        if best := best_sum(problem, kind, tried):
            for lighter, way in heavier_than(kind):
                if weight_of(best[1]) >= weight_of(lighter):
                    yield from ((problem, way, beta) for beta in memories(problem, way))


def decayed(problems: Sequence[str], tried: Tried) -> Iterator[Cell]:
    """The best sum with a decay of the weights."""
    for problem in problems:
        if best := best_sum(problem, "", tried):
            yield from ((problem, f"{best[1]}{DECAY} {decay:g}", best[2]) for decay in DECAYS)


def best_sum(problem: str, kind: str, tried: Tried) -> Cell | None:
    """The one with the lowest error of the tuning."""
    sums = [cell for cell in tried if cell[0] == problem and kind_of_sum(cell[1]) == kind]
    return min(sums, key=lambda cell: min(tried[cell].values()), default=None)


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
        kind = kind_of_sum(way)
        rivals = [other for p, other, b in scores if (p, b) == (problem, beta) and kind_of_sum(other) == kind]
        best = min(rivals, key=lambda other: scores[problem, other, beta])
        if kind is None or way in (best, sum_of(1) + kind):
            for seed in TESTING:
                yield Run(problem, way, rate, beta, seed)


def tables(path: Path, console: Console) -> None:
    """The errors at each memory, and each way at its best one."""
    done = finished(path)
    rates = best_rates(done)
    betas = (*BETAS, SOAP_BETAS[1])
    for problem in dict.fromkeys(run.problem for run in done):
        shown = Table(
            title=f"{problem}: relative L2 error, geometric mean of {len(TESTING)} seeds (rate); share of harm"
        )
        for column in ("way", *(f"beta2 = {beta:g}" for beta in betas)):
            shown.add_column(column)
        for way in ways(problem):
            cells = []
            for beta in betas:
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
        some = [cell for cell in cells(args.problems) if any(part in cell[1] for part in args.ways)]
        do(
            [Run(p, way, 1e-2, beta, seed) for p, way, beta in some for seed in both],
            output,
            args.workers,
            20,
            "a trial",
        )
    elif not args.tables:
        tune(args.problems, output, args.workers, args.ways)
        do(list(testing(args.problems, finished(output), args.ways)), output, args.workers, STEPS, "testing")


if __name__ == "__main__":
    main()
