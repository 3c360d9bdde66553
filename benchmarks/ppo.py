"""Does any method help PPO, against a sum whose coefficients were swept? Tunes, tests, and prints what it found.

`python benchmarks/ppo.py` trains everything, and goes on where it was stopped. See docs/reinforcement.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from ppo_agent import Agent, Learner, Losses, Trainings
from ppo_tasks import TASKS
from resumable import beside, read_runs
from rich.progress import track

import mtopt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ppo.jsonl"
ROLLOUTS = {"CartPole-v1": 48, "Acrobot-v1": 16}  # of 1,024 steps
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
VALUES, ENTROPIES = tuple(2.0**power for power in range(-11, 9, 2)), (0.0, 0.003, 0.01, 0.03, 0.1)
FIRST_RATES, FIRST_VALUES, FIRST_ENTROPIES = RATES[3:6], VALUES[3:7], ENTROPIES[:3]  # then outwards
TUNING, DECIDING, TESTING = range(100, 103), range(103, 110), range(10)  # seeds
FINALISTS = 4  # settings of the sum, between which more seeds decide
TOGETHER = 15  # trainings at a time
LONGEST = 0.5  # gradient

DEFAULTS = {"sum, value 0.5, entropy 0.01": (0.5, 0.01), "sum, value 0.5, entropy 0": (0.5, 0.0)}
SUMS = {f"sum, value {v:g}, entropy {e:g}": (v, e) for v, e in itertools.product(VALUES, ENTROPIES)}
SHORT = "sum, value 0.5, entropy 0.01, β₂ 0.9"
RECIPE, TWO = "recipe", ", two losses"
METHODS: dict[str, Callable[[int], list[mtopt.Transform]]] = {
    "GradDrop": lambda seed: [mtopt.GradDrop(seed=seed)],
    "PCGrad": lambda seed: [mtopt.PCGrad(seed=seed)],
    "ConFIG": lambda _: [mtopt.ConFIG()],
    "UPGrad": lambda _: [mtopt.UPGrad()],
    "gradient norms": lambda _: [mtopt.GradientNorms()],
    RECIPE: lambda _: [mtopt.GradientNorms(average=0.99, of="norms"), mtopt.Whitening(beta=0.9)],
}
EVEN = [name for name in METHODS if name != "GradDrop"]  # to which a loss counts however small its coefficient is
OTHERS = [SHORT, *METHODS, *(name + TWO for name in EVEN)]  # than sums whose coefficients are swept


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    way: str
    rate: float
    seed: int


Done = dict[Run, dict[str, Any]]
"""Finished trainings, each with the mean of its learning curve, its final return, and the shares of harm."""
Cell = tuple[str, str]  # task, way


def learner_of(run: Run) -> Learner:
    """An agent that learns by a way: all but the swept sums have the first default coefficients."""
    torch.manual_seed(run.seed)
    agent = Agent(TASKS[run.task])
    name = run.way.removesuffix(TWO)
    transforms = METHODS[name](run.seed) if name in METHODS else []
    betas = (0.9, 0.9 if name in (SHORT, RECIPE) else 0.999)
    adam = torch.optim.Adam(agent.parameters(), lr=run.rate, betas=betas, eps=1e-5, fused=True)
    at = "activations" if name == "GradDrop" or not transforms else "parameters"
    optimizer = mtopt.MultiLossOptimizer(adam, transforms, at=at)
    value, entropy = SUMS.get(run.way, (0.5, 0.01))

    def handed(losses: Losses) -> Losses:
        policy, valued, evenness = losses["policy"], value * losses["value"], entropy * losses["entropy"]
        if run.way.endswith(TWO):
            return {"policy": policy + evenness, "value": valued}
        return {"policy": policy, "value": valued, "entropy": evenness}

    longest = math.inf if name == RECIPE else LONGEST  # what is whitened is longer by far
    return Learner(agent, optimizer, handed, longest, run.seed)


def train(runs: Sequence[Run], rollouts: int) -> list[dict[str, Any]]:
    """Runs in one task: the mean of each learning curve, the final return, how often a step raised each loss."""
    learners = [learner_of(run) for run in runs]
    watched = [learner.optimizer.at == "parameters" for learner in learners]
    monitors = [
        mtopt.Monitor(learner.optimizer, every=25) if watch else None
        for learner, watch in zip(learners, watched, strict=True)
    ]
    trainings = Trainings(TASKS[runs[0].task], learners, rollouts)
    trainings.run()
    records = []
    for run, monitor, area, final in zip(runs, monitors, trainings.areas(), trainings.finals(), strict=True):
        raised = {} if monitor is None else {name: round(share, 3) for name, share in monitor.raised.items()}
        records.append({**asdict(run), "area": round(area, 2), "final": round(final, 2), "raised": raised})
    return records


def finished(path: Path) -> Done:
    return read_runs(path, Run)


def do(runs: Sequence[Run], path: Path, what: str, rollouts: int | None = None) -> None:
    """Train what is not finished yet, some at a time; runs are written when they are."""
    done = finished(path)
    missing = [run for run in runs if run not in done]
    of_task = [[run for run in missing if run.task == task] for task in ROLLOUTS]
    groups = [some[i : i + TOGETHER] for some in of_task for i in range(0, len(some), TOGETHER)]
    with path.open("a", encoding="utf-8") as file:
        for group in track(groups, description=what):
            records = train(group, rollouts or ROLLOUTS[group[0].task])
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            file.flush()


def scores_by_rate(done: Done) -> dict[Cell, dict[float, float]]:
    """For each task and way the mean area at each rate, over the seeds for tuning; where all of these are finished."""
    areas: dict[tuple[Cell, float], list[float]] = defaultdict(list)
    for run, record in done.items():
        if run.seed in TUNING:
            areas[(run.task, run.way), run.rate].append(record["area"])
    scores: dict[Cell, dict[float, float]] = defaultdict(dict)
    for (cell, rate), of_rate in areas.items():
        if len(of_rate) == len(TUNING):
            scores[cell][rate] = fmean(of_rate)
    return scores


def best_rates(done: Done) -> dict[Cell, float]:
    return {cell: max(rates, key=rates.__getitem__) for cell, rates in scores_by_rate(done).items()}


def finalists(task: str, done: Done) -> list[tuple[str, float]]:
    """The sums and rates that were best in the tuning, the best one first."""
    found = [(cell, rates) for cell, rates in scores_by_rate(done).items() if cell[0] == task and cell[1] in SUMS]
    scores = {(way, rate): area for (_, way), rates in found for rate, area in rates.items()}
    return sorted(scores, key=scores.__getitem__, reverse=True)[:FINALISTS]


def deciding(tasks: Sequence[str], done: Done) -> list[Run]:
    """The runs that decide between the finalists."""
    return [Run(task, *setting, seed) for task in tasks for setting in finalists(task, done) for seed in DECIDING]


def best_sum(task: str, done: Done) -> tuple[str, float] | None:
    """The finalist with the best mean over all seeds that are not for testing."""
    found, seeds = finalists(task, done), [*TUNING, *DECIDING]
    areas = {each: [done[run]["area"] for seed in seeds if (run := Run(task, *each, seed)) in done] for each in found}
    return max(found, key=lambda each: fmean(areas[each]), default=None)


def sums_to_tune(task: str, done: Done) -> list[str]:
    """A grid of coefficients, that grows until the best ones are not at an edge."""
    tried = [SUMS[way] for of, way in scores_by_rate(done) if of == task and way in SUMS]
    values, entropies = {*FIRST_VALUES, *(v for v, _ in tried)}, {*FIRST_ENTROPIES, *(e for _, e in tried)}
    if best := finalists(task, done):
        value, entropy = SUMS[best[0][0]]
        values, entropies = (
            values | {beside(VALUES, value, values)},
            entropies | {beside(ENTROPIES, entropy, entropies)},
        )
    return [way for way, (value, entropy) in SUMS.items() if value in values and entropy in entropies]


def tuning(tasks: Sequence[str], ways: Sequence[str], done: Done) -> Iterator[Run]:
    """The runs of the first settings, and of the next one where the best of those that are finished is at an edge."""
    scores = scores_by_rate(done)
    for task in tasks:
        for way in [*sums_to_tune(task, done), *ways]:
            rates = set(FIRST_RATES)
            if by_rate := scores.get((task, way)):
                rates |= by_rate.keys()
                rates.add(beside(RATES, max(by_rate, key=by_rate.__getitem__), rates))
            for rate, seed in itertools.product(sorted(rates), TUNING):
                yield Run(task, way, rate, seed)


def tune(tasks: Sequence[str], ways: Sequence[str], path: Path) -> None:
    """Train with one rate after the other, until nothing that is best is at an edge."""
    done = finished(path)
    while any(run not in done for run in tuning(tasks, ways, done)):
        do(list(tuning(tasks, ways, done)), path, "tuning")
        done = finished(path)


def testing(tasks: Sequence[str], ways: Sequence[str], done: Done) -> Iterator[Run]:
    """The runs that are tested: the sums with default coefficients and with the best ones, and all others."""
    rates = best_rates(done)
    for task in tasks:
        settings = [(way, rates[task, way]) for way in (*DEFAULTS, *ways) if (task, way) in rates]
        settings += [best] if (best := best_sum(task, done)) is not None else []
        for (way, rate), seed in itertools.product(dict.fromkeys(settings), TESTING):
            yield Run(task, way, rate, seed)


def main() -> None:
    from ppo_page import publish, results_table  # which know this module

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=ROLLOUTS, default=list(ROLLOUTS))
    parser.add_argument("--ways", nargs="+", choices=OTHERS, default=OTHERS, help="some, and the sums")
    parser.add_argument("--output", type=Path, help="finished runs, one JSON object in a line")
    parser.add_argument("--tables", action="store_true", help="train nothing: print what is finished")
    parser.add_argument(
        "--publish", action="store_true", help="train nothing: fill the tables of docs/reinforcement.md"
    )
    parser.add_argument("--quick", action="store_true", help="a trial of the procedure in half a minute, no evidence")
    args = parser.parse_args()
    if args.publish:
        publish(args.output or RESULTS, ROOT / "docs" / "reinforcement.md")
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as trial:
        output = args.output or (Path(trial) / RESULTS.name if args.quick else RESULTS)
        if args.quick:
            cells = [(task, way) for task in args.tasks for way in (*DEFAULTS, *OTHERS)]
            seeds = [*TUNING, *TESTING[:2]]
            do([Run(*cell, FIRST_RATES[1], seed) for cell in cells for seed in seeds], output, "a trial", 1)
        elif not args.tables:
            tune(args.tasks, args.ways, output)
            do(deciding(args.tasks, finished(output)), output, "deciding")
            do(list(testing(args.tasks, args.ways, finished(output))), output, "testing")
        for task in dict.fromkeys(run.task for run in finished(output)):
            print(f"\n{task}\n\n{results_table(output, task)}")


if __name__ == "__main__":
    main()
