"""What a step costs, in time and memory: mtopt, the plain sum and TorchJD side by side. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from cells import ACTIVATIONS, AGAIN, METHODS, PARAMETERS, PLAIN, TRUNK
from checks import Results
from cost_page import publish
from measure import Advance, Run, combination_cells, interleave, several
from memory import Key, measure_peaks
from methods import FROM_GRAMIAN, TORCHJD, gramian_cells, make_cell, names, transform_alone
from models import MODELS
from report import as_json, show
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cost.json"
TOY_STEPS = 100  # in one sample
ALONE = 5  # transforms in one sample
N_ROWS = 8  # in the bare combination
QUICK = 3  # methods whose memory a smoke test looks at
WIDE = 160  # columns, where the tables go to a file


def main() -> None:
    args = _arguments()
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    if args.publish:
        publish(json.loads((args.output or RESULTS).read_text(encoding="utf-8")), args.docs)
        console.print(f"Written to {args.docs}")
        return
    torch.set_num_threads(args.threads)
    # That vmap has no rule for some operation shows in the table.
    for message in ("There is a performance drop", "mtopt differentiates the losses one by one"):
        warnings.filterwarnings("ignore", message=message)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        console.print(f"[yellow]Other programs are running (load {load:.1f}): the times will not mean much.[/]")
    results = Results()
    complete = False
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with Progress(
            *columns, console=console, transient=True, auto_refresh=False
        ) as progress:  # no thread beside ours
            for part in PARTS:
                if args.only in (None, part):
                    PARTS[part](args, results, progress)
        complete = True
    except KeyboardInterrupt:
        console.print("Interrupted: this is what there is so far.")
    show(results, console)
    if args.output is not None:
        args.output.write_text(
            json.dumps(as_json(results, {**_settings(args), "load": load}, complete=complete), indent=1) + "\n"
        )
        console.print(f"Written to {args.output}")


def run_time(args: argparse.Namespace, results: Results, progress: Progress) -> None:
    """All methods by turns, for each model and number of losses."""
    pairs = [(model, n_losses) for model in args.models for n_losses in ([2] if model == "toy" else args.losses)]
    advance = _bar(progress, "time", len(pairs) * len(args.methods) * (args.repeats + 1))
    for model, n_losses in pairs:
        runs = {method: make_cell(model, n_losses, method).step for method in args.methods}
        if model == "toy":
            runs = {method: several(run, TOY_STEPS) for method, run in runs.items()}
        interleave(
            runs,
            results.time.setdefault((model, n_losses), {}),
            repeats=args.repeats,
            budget=args.budget,
            always=PLAIN,
            order=random.Random(args.seed),
            advance=partial(_advance_at, advance, model, n_losses),
        )


def run_memory(args: argparse.Namespace, results: Results, progress: Progress) -> None:
    """Each cell in a fresh process."""
    models = [model for model in args.models if model != "toy"]
    methods = [method for method in args.methods if method not in (TRUNK, AGAIN)]
    keys = [(model, n_losses, method) for model in models for n_losses in args.losses for method in methods]
    _peaks(keys, results, args.threads, _bar(progress, "memory", len(keys)))


def _peaks(keys: list[Key], results: Results, workers: int, advance: Advance) -> None:
    found = {}
    try:
        for key, peak in measure_peaks(keys, workers=workers):
            found[key] = peak
            _advance_at(advance, *key)
    finally:
        results.memory.update({key: found[key] for key in keys if key in found})


def run_combination(args: argparse.Namespace, results: Results, progress: Progress) -> None:
    """Rows that are there already, combined."""
    cells = combination_cells(N_ROWS, args.row_size)
    interleave(
        cells,
        results.combination,
        repeats=args.repeats,
        budget=args.budget,
        always=None,
        order=random.Random(args.seed),
        advance=_bar(progress, "combination", len(cells) * (args.repeats + 1)),
    )


def run_methods(args: argparse.Namespace, results: Results, progress: Progress) -> None:
    """The methods of the papers on the MLP: their steps, their transforms alone, their memory."""
    numbers = [n_losses for n_losses in args.losses if n_losses > 2]
    for n_losses in numbers:
        forms = (ACTIVATIONS, PARAMETERS, TORCHJD) if n_losses <= 8 else (PARAMETERS, TORCHJD)
        cells = [PLAIN, AGAIN, *(name for form in forms for name in names(form))]
        steps: dict[str, Run] = {name: make_cell("mlp", n_losses, name).step for name in cells}
        alone = {method: several(transform_alone(method, n_losses), ALONE) for method in FROM_GRAMIAN}
        for into, runs, always in (
            (results.methods.setdefault(("mlp", n_losses), {}), steps, PLAIN),
            (results.transforms.setdefault(n_losses, {}), alone, None),
        ):
            advance = _bar(progress, f"methods, T = {n_losses}", len(runs) * (args.repeats + 1))
            order = random.Random(args.seed)
            interleave(
                runs, into, repeats=args.repeats, budget=args.budget, always=always, order=order, advance=advance
            )
    advance = _bar(progress, "MGDA of rows that are there", 2 * (args.repeats + 1))
    interleave(
        gramian_cells(N_ROWS, args.row_size),
        results.traffic,
        repeats=args.repeats,
        budget=args.budget,
        always=None,
        order=random.Random(args.seed),
        advance=advance,
    )
    own = [f"{method} {PARAMETERS}" for method in FROM_GRAMIAN]
    theirs = names(TORCHJD)
    if args.quick:
        own, theirs = own[:QUICK], theirs[:QUICK]
    keys = [("mlp", n_losses, name) for n_losses in numbers for name in (PLAIN, *own, *theirs)]
    _peaks(keys, results, args.threads, _bar(progress, "memory of methods", len(keys)))


PARTS = {"time": run_time, "memory": run_memory, "combination": run_combination, "methods": run_methods}


def _bar(progress: Progress, part: str, total: int) -> Advance:
    task = progress.add_task(part, total=total)

    def advance(what: str) -> None:
        progress.update(task, advance=1, description=f"{part}: {what}", refresh=True)

    return advance


def _advance_at(advance: Advance, model: str, n_losses: int, method: str) -> None:
    advance(f"{model}, T = {n_losses}, {method}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    known = list(MODELS)
    parser.add_argument("--models", nargs="+", choices=known, default=known, help="what to train")
    parser.add_argument(
        "--methods", nargs="+", metavar="PART", help="those with a part of their name here, and the plain sum"
    )
    parser.add_argument("--losses", nargs="+", type=int, default=[2, 8, 40], help="numbers of losses T (the toy has 2)")
    parser.add_argument("--repeats", type=int, default=31, help="rounds in which every cell takes its turn")
    parser.add_argument("--budget", type=float, default=3.0, help="seconds after which a cell sits out the next rounds")
    parser.add_argument("--threads", type=int, default=2, help="of torch; as many processes at a time for memory")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the cells")
    parser.add_argument("--row-size", type=int, default=10_000_000, help="of the 8 rows of the bare combination")
    parser.add_argument("--only", choices=list(PARTS), help="one part of the measurements")
    parser.add_argument("--output", type=Path, help="where to write all results as JSON, or to read them from")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where --publish writes to")
    parser.add_argument("--publish", action="store_true", help="measure nothing: fill the tables of the page")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: the MLP and the toy, T = 2 and 8, 2 rounds, short rows"
    )
    args = parser.parse_args()
    parts = args.methods or [""]
    args.methods = [method for method in METHODS if method in (PLAIN, AGAIN) or any(part in method for part in parts)]
    if args.quick:
        args.models, args.losses, args.repeats, args.budget = ["mlp", "toy"], [2, 8], 2, 0.5
        args.row_size //= 10
    return args


def _settings(args: argparse.Namespace) -> dict[str, object]:
    """All that the numbers depend on: no paths."""
    return {name: value for name, value in vars(args).items() if name not in ("output", "docs", "publish")}


if __name__ == "__main__":
    main()
