"""One command for a GPU: the tests marked for CUDA, and what a step costs there, as JSON. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import torch
from cells import ACTIVATIONS, AGAIN, JD, LAYER, METHODS, MTL, PARAMETERS, PLAIN, Cell, Sample, sgd, wrapped
from measure import Series, interleave, quartiles
from models import MODELS, Problem, make_problem
from on_device import Clock, clock_of, peak_of, seconds_of, synchronizations
from report import about

from mtopt import MultiLossOptimizer

ROOT = Path(__file__).parents[1]
EMPTY = "transforms=[]"
CELLS: dict[str, Callable[[Problem], Cell]] = {
    **{name: METHODS[name] for name in (PLAIN, AGAIN)},
    EMPTY: lambda problem: wrapped(problem, MultiLossOptimizer(sgd(problem), [])),
    **{name: METHODS[name] for name in (LAYER, ACTIVATIONS, PARAMETERS, MTL, JD)},
}
STEPS_SEEN = 3  # before memory and waiting are looked at: mtopt looks at more in the first ones
NO_DEVICE = "torch finds no CUDA device here, so there is nothing to run. `--device cpu` tries out the command itself."
FAILED, NOTHING = 1, 2  # exit codes


def main() -> int:
    args = _arguments()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(NO_DEVICE)
        return NOTHING
    for message in ("There is a performance drop", "mtopt differentiates the losses one by one"):
        warnings.filterwarnings("ignore", message=message)
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    results = {**about(" ".join(sys.argv), settings), "device": describe(device), "tests": None, "cost": []}
    try:
        if args.only in (None, "tests"):
            results["tests"] = run_tests(args.tests)
            print({name: results["tests"][name] for name in ("passed", "failed", "skipped")})
        if args.only in (None, "cost"):
            run_cost(args, device, results["cost"])
    finally:  # what is there so far is kept
        if args.output is not None:
            args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"Written to {args.output}")
    return FAILED if results["tests"] and results["tests"]["exit_code"] else 0


def describe(device: torch.device) -> dict[str, Any]:
    """The card, and what drives it."""
    if device.type != "cuda":
        return {"name": device.type, "count": 0}
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "memory": torch.cuda.get_device_properties(device).total_memory,
        "count": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": _driver(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(run.stdout.split()), None)


def run_tests(paths: list[str]) -> dict[str, Any]:
    """The tests with the marker `cuda`, in a process of their own, and what came of each."""
    with TemporaryDirectory() as folder:
        report = Path(folder, "tests.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", *paths, f"--junitxml={report}"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        return outcomes(ElementTree.parse(report).getroot(), code)


def outcomes(report: ElementTree.Element, code: int) -> dict[str, Any]:
    """Counts, and the names of the tests that failed or were skipped with the first line of why."""
    found: dict[str, dict[str, str]] = {"passed": {}, "failed": {}, "skipped": {}}
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    for case in report.iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        why = next((child for child in case if child.tag in kinds), None)
        lines = "" if why is None else (why.get("message") or "").strip()
        found["passed" if why is None else kinds[why.tag]][name] = lines.split("\n")[0]
    return {
        "exit_code": code,
        **{kind: len(names) for kind, names in found.items()},
        "failures": found["failed"],
        "skips": found["skipped"],
    }


def run_cost(args: argparse.Namespace, device: torch.device, into: list[dict[str, Any]]) -> None:
    """All cells by turns, for each model and number of losses. A cell that fails is told, and sits out."""
    for model in args.models:
        for n_losses in [2] if model == "toy" else args.losses:
            place = {"model": model, "losses": n_losses}
            cells: dict[str, Cell] = {}
            for name, make in CELLS.items():
                try:
                    cell = make(make_problem(model, n_losses).to(device))
                    cell.step()
                except Exception as error:
                    into.append({**place, "method": name, "error": f"{type(error).__name__}: {error}"})
                    print(into[-1])
                else:
                    cells[name] = cell
            series: dict[str, Series] = {}
            interleave(
                {name: partial(sample, cell, clock_of(device), args.steps) for name, cell in cells.items()},
                series,
                repeats=args.repeats,
                budget=args.budget,
                always=PLAIN,
                order=random.Random(args.seed),
                advance=lambda name: None,
            )
            for name, cell in cells.items():
                numbers = {**summary(series[name], series[PLAIN]), **looked_at(cell, device)}
                cell.check()
                into.append({**place, "method": name, **numbers})
                print(_line(into[-1]))


def sample(cell: Cell, clock: Clock, steps: int) -> Sample:
    """Seconds of a step on the device; and of its backward's calls on the host, which may return before it is done."""
    calls: list[float] = []
    step = seconds_of(lambda: calls.append(cell.run()), clock, steps)
    return Sample(step, sum(calls) / steps)


def looked_at(cell: Cell, device: torch.device) -> dict[str, int | None]:
    """Peak memory of a step, and how often it waits for the device."""
    for _ in range(STEPS_SEEN):
        cell.run()
    cell.optimizer.zero_grad()
    peak = peak_of(cell.run, device)
    return {"peak_bytes": peak, "waits": synchronizations(cell.run, device)}


def summary(series: Series, plain: Series) -> dict[str, Any]:
    """Quartiles of the step and of its ratio to the plain sum's in the same round; all samples."""
    return {
        "ms": [1e3 * x for x in quartiles(series.steps())],
        "ratio": list(quartiles(series.ratios(plain))),
        "host_backward_ms": [1e3 * x for x in quartiles(series.backwards())],
        "rounds": list(series.samples),
        "samples_ms": [1e3 * x for x in series.steps()],
    }


def _line(row: dict[str, Any]) -> str:
    peak = "" if row["peak_bytes"] is None else f", peak {row['peak_bytes'] / 1e6:.1f} MB, waits {row['waits']}"
    place = f"{row['model']}, T = {row['losses']}, {row['method']}"
    return f"{place}: {row['ms'][1]:.3f} ms, / plain {row['ratio'][1]:.3f}{peak}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda", help="`cpu` tries out the command: the clock, and no memory")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="what to train")
    parser.add_argument("--losses", nargs="+", type=int, default=[2, 8, 40], help="numbers of losses T (the toy has 2)")
    parser.add_argument("--repeats", type=int, default=31, help="rounds in which every cell takes its turn")
    parser.add_argument("--steps", type=int, default=5, help="in one sample")
    parser.add_argument(
        "--budget", type=float, default=10.0, help="seconds after which a cell sits out the next rounds"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of the cells")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="where the tests are looked for")
    parser.add_argument("--only", choices=["tests", "cost"], help="one of the two parts")
    parser.add_argument("--output", type=Path, help="where to write all results as JSON")
    parser.add_argument("--quick", action="store_true", help="a smoke test: the MLP and the toy, T = 2 and 8, 2 rounds")
    args = parser.parse_args()
    if args.quick:
        args.models, args.losses, args.repeats, args.steps, args.budget = ["mlp", "toy"], [2, 8], 2, 1, 0.5
    return args


if __name__ == "__main__":
    raise SystemExit(main())
