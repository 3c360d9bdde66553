"""The command: `python benchmarks/evidence`. Says what is done, writes results, fills the page's tables."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sinusoids
import torch
from checks import Results
from data import FOLDER, DataError
from problems import PROBLEMS, QUICK
from problems.physics import Physics
from report import as_json
from rich.console import Console

from evidence.page import EQUAL_STEPS, publish, read
from evidence.runs import Job, workers
from evidence.study import STEPS, TIME, Study
from evidence.table import show
from evidence.variants import FAMILIES
from evidence.words import SINUSOIDS
from mtopt._comparison.progress import progress_bar

BENCHMARKS = Path(__file__).parents[1]
NAMES = [SINUSOIDS, *PROBLEMS]
# promise.py has those of physics at equal steps, with wider sweeps.
IN_STEPS = [name for name, kind in PROBLEMS.items() if not issubclass(kind, Physics)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--equal", choices=(TIME, STEPS), default=TIME, help="what all methods have as much of")
    parser.add_argument(
        "--problems", nargs="+", choices=NAMES, help="all; with --equal steps those that are not of physics"
    )
    parser.add_argument(
        "--beside",
        nargs="*",
        default=FAMILIES,
        help="with --equal steps: what stands beside the methods, or some of it",
    )
    parser.add_argument("--methods", nargs="+", default=[], help="these alone, beside the plain sum; all, if not given")
    parser.add_argument("--seeds", type=int, default=0, help="of the tested runs; 0: 5, or 10 where runs differ more")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--folder", type=Path, default=FOLDER / "runs", help="where finished runs are kept")
    parser.add_argument("--results", type=Path, help="where to write; benchmarks/results, or in --folder if --quick")
    parser.add_argument(
        "--quick", action="store_true", help="tiny problems that need no fetching: a trial, no evidence"
    )
    parser.add_argument("--peer-costs", action="store_true", help="train nothing: measure the steps of peers anew")
    parser.add_argument("--docs", type=Path, default=BENCHMARKS.parent / "docs", help="where --publish writes to")
    parser.add_argument("--publish", action="store_true", help="run nothing: fill the tables of the page")
    args = parser.parse_args(arguments)
    if args.equal == STEPS and SINUSOIDS in (args.problems or ()):
        parser.error("the sinusoids have equal steps already: leave --equal out")
    torch.set_num_threads(1)
    known = args.results or (args.folder / "quick" if args.quick else BENCHMARKS / "results")
    if args.publish:
        publish(read(known), args.docs, read(known / EQUAL_STEPS))
        print(f"Written to {args.docs}")
        return 0
    if args.peer_costs:
        _measure_peers(known, args)
        return 0
    results = known / EQUAL_STEPS if args.equal == STEPS else known
    results.mkdir(parents=True, exist_ok=True)
    for name in _problems(args):
        start = time.monotonic()
        try:
            found = _sinusoids(args.quick) if name == SINUSOIDS else _study(name, args)
        except DataError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("Stopped. What is finished is kept: the same command goes on from there.", file=sys.stderr)
            return 130
        (results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        Console().print(show(found))
        print(f"{name}: {time.monotonic() - start:.0f} s, written to {results / f'{name}.json'}")
    return 0


def _problems(args: argparse.Namespace) -> list[str]:
    """Those that were asked for, or all; the sinusoids have equal steps on the page of equal time."""
    toy = [] if args.equal == STEPS else [SINUSOIDS]
    if args.quick:
        return [*QUICK, *toy]
    return args.problems or [*toy, *(IN_STEPS if args.equal == STEPS else PROBLEMS)]


def _measure_peers(results: Path, args: argparse.Namespace) -> None:
    """Of the problems that have peers' trainings, in the files of their results."""
    for name, found in read(results).items():
        if found.get("peers") and name in (args.problems or NAMES):
            study = Study(name, (), 0, args.folder)
            anew = study.peer_costs_anew(found) | {"peer_costs": _header(study.described())}
            (results / f"{name}.json").write_text(json.dumps(anew, indent=1) + "\n", encoding="utf-8")
            print(f"{name}: measured anew")


def _study(name: str, args: argparse.Namespace) -> dict[str, Any]:
    study = Study(name, tuple(args.methods), args.seeds, args.folder, args.equal, tuple(args.beside))
    done = 0
    with workers(args.workers) as pool, progress_bar(study.n_jobs(), shown=True) as report:

        def advance(job: Job) -> None:
            nonlocal done
            done += 1
            report(f"{job.problem}: {job.kind}, {job.method}", done)

        report(f"{name}: the costs of a step", 0)
        found = study.results(pool, advance)
    return {"name": name, **_header(study.described()), **found}


def _sinusoids(quick: bool) -> dict[str, Any]:
    found = sinusoids.measure(50, 300) if quick else sinusoids.measure()
    return {"name": SINUSOIDS, **_header(found.pop("settings")), **found}


def _header(settings: dict[str, Any]) -> dict[str, Any]:
    """When, on what and with what."""
    known = as_json(Results(), settings, complete=True)
    command = shlex.join(["python", "benchmarks/evidence", *sys.argv[1:]])
    return {**{key: known[key] for key in ("date", "machine", "versions", "settings")}, "command": command}
