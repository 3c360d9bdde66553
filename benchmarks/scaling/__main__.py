"""How the cost of a step grows with losses, parameters, batch and ranks: measures it, fills docs/scaling.md."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from markdown_tables import three
from report import about
from rich.console import Console
from rich.table import Table

from scaling import processes, sweeps
from scaling.page import publish
from scaling.theory import BASE, SWEEPS, Size

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"
SECTIONS = (*SWEEPS, "ranks")
RANKS = (1, 2, 4)
WIDE = 160  # columns, where the tables go to a file
QUICK = Size(losses=4, width=64, batch=32)
QUICK_SWEEPS = {
    "losses": [Size(n, QUICK.width, QUICK.batch) for n in (2, 4, 8)],
    "parameters": [Size(QUICK.losses, w, QUICK.batch) for w in (32, 64, 128)],
    "batch": [Size(QUICK.losses, QUICK.width, n) for n in (16, 32, 64)],
}


def main() -> None:
    args = _arguments()
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    if args.publish:
        publish(json.loads(args.output.read_text(encoding="utf-8")), args.docs)
        console.print(f"Written to {args.docs}")
        return
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    if args.output is not None and args.output.exists():
        results = json.loads(args.output.read_text(encoding="utf-8"))
    settings = {name: getattr(args, name) for name in ("repeats", "budget", "threads", "timeout", "quick")}
    settings["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    command = " ".join(["python benchmarks/scaling", *sys.argv[1:]])
    for name in args.only:
        results[name] = {**about(command, settings), "points": _measure(name, args, console)}
        _show(name, results[name]["points"], console)
        if args.output is not None:  # after each section, so that an interrupted run keeps the others
            args.output.parent.mkdir(exist_ok=True)
            args.output.write_text(as_text(results), encoding="utf-8")


def _measure(name: str, args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    if name == "ranks":
        size, numbers = (QUICK, RANKS[:2]) if args.quick else (BASE, RANKS)
        return processes.measure(
            numbers, size, repeats=args.repeats, threads=args.threads, timeout=args.timeout, advance=console.print
        )
    sizes = QUICK_SWEEPS[name] if args.quick else SWEEPS[name]
    return sweeps.measure(sizes, repeats=args.repeats, budget=args.budget, advance=console.print)


def _show(name: str, points: list[dict[str, Any]], console: Console) -> None:
    table = Table("", *(str(p.get("ranks", p["size"].get(name, p["size"]["width"]))) for p in points), title=name)
    found = [p["methods"] if isinstance(p["methods"], dict) else _by_name(p["methods"]) for p in points]
    for method in found[0]:
        table.add_row(method, *(f"{f[method]['ms'][1]:.1f} ms {three(f[method]['ratio'][1])}" for f in found))
    console.print(table)


def _by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{row['method']}, {row['wrapper']}": row for row in rows}


def as_text(results: dict[str, Any]) -> str:
    """JSON with each list of numbers on one line."""
    ordered = {name: results[name] for name in SECTIONS if name in results}
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(ordered, indent=1)) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="some parts; the others stay")
    parser.add_argument("--repeats", type=int, default=15, help="rounds in which every method takes its turn")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds after which a method sits out later rounds")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on each rank")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for each number of ranks")
    parser.add_argument("--output", type=Path, help="JSON to add to; if not --quick, benchmarks/results/scaling.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where --publish writes to")
    parser.add_argument("--quick", action="store_true", help="a smoke test: small sizes, 3 rounds, 1 and 2 ranks")
    parser.add_argument("--publish", action="store_true", help="measure nothing: fill the tables of the page")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.budget = 3, 0.5
    if args.output is None and (args.publish or not args.quick):
        args.output = RESULTS
    return args


if __name__ == "__main__":
    # That vmap has no rule for some operation shows in the table.
    warnings.filterwarnings("ignore", message="There is a performance drop")
    main()
