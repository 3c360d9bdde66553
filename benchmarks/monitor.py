"""What a Monitor costs: a step that is looked at over one that is not, and from it the cost at `every=50`.

python benchmarks/monitor.py
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

import torch
from cells import Sample, sgd, wrapped
from measure import Series, interleave, quartiles
from models import make_problem
from rich.console import Console
from rich.table import Table

import mtopt
from mtopt import Monitor, MultiLossOptimizer, Transform

METHODS: dict[str, Callable[[], Transform]] = {"GradDrop": mtopt.GradDrop, "MGDA": mtopt.MGDA, "PCGrad": mtopt.PCGrad}
SITES = ("activations", "parameters")
EVERY, LIMIT = 50, 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--losses", nargs="+", type=int, default=[2, 8], help="numbers of losses; 2 and 8, if not given"
    )
    parser.add_argument("--models", nargs="+", default=["mlp", "resnet", "transformer"], help="all three, if not given")
    parser.add_argument("--repeats", type=int, default=31, help="rounds; 31, if not given")
    args = parser.parse_args()
    table = Table("model", "losses", "method", "at", "a look / a step", f"cost at every={EVERY}", "")
    for model in args.models:
        for n_losses in args.losses:
            for method, at in ((method, at) for method in METHODS for at in SITES):
                look = ratio(model, n_losses, method, at, args.repeats)
                cost = (look - 1) / EVERY
                verdict = "PASS" if cost <= LIMIT else "miss"
                table.add_row(model, str(n_losses), method, at, f"{look:.2f}", f"{cost:.1%}", verdict)
    Console().print(table)


def ratio(model: str, n_losses: int, method: str, at: str, repeats: int) -> float:
    """A step that is looked at over one that is not: the median over rounds of the ratio within one round."""
    cells: dict[str, Callable[[], Sample]] = {}
    for name in ("not looked at", "looked at"):
        problem = make_problem(model, n_losses)
        optimizer = MultiLossOptimizer(sgd(problem), METHODS[method](), at=at)
        if name == "looked at":
            Monitor(optimizer, every=1)
        cells[name] = wrapped(problem, optimizer).step
    series: dict[str, Series] = {}
    order = random.Random(0)
    interleave(cells, series, repeats=repeats, budget=60.0, always=None, order=order, advance=lambda name: None)
    return quartiles(series["looked at"].ratios(series["not looked at"]))[1]


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
