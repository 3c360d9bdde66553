"""What whitening, momentum per loss and weights every k steps cost: times as ratios in one run, memory in numbers kept.

`python benchmarks/promise_cost.py` prints the tables, and writes them with `--output`. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pytorch_optimizer
import torch
from cells import Sample
from measure import Series, interleave, quartiles, several
from models import MODELS
from problems.physics import Field, Helmholtz
from promise_ways import (
    AS_ONE,
    METHODS,
    NORMS,
    ON_MOMENTA,
    OTHERS,
    PROBLEMS,
    SELDOM,
    SOAP,
    SOAP_BETAS,
    SUM_WITH_SOAP,
    WHITENED,
    first_beta,
    problem_of,
    transforms_of,
)
from rich.console import Console
from rich.table import Table

import mtopt

PLAIN = "plain sum"
TIMES = 5  # steps in one sample
Transforms = Callable[[], list[mtopt.Transform]]


def every(k: int) -> list[mtopt.Transform]:
    return [mtopt.Every(mtopt.ConFIG(), steps=k)]


ON_MLP: dict[str, tuple[Transforms, str | None]] = {
    "UPGrad": (lambda: [mtopt.UPGrad()], None),
    "UPGrad, whitened": (lambda: [mtopt.UPGrad(), mtopt.Whitening()], None),
    "UPGrad, whitened by pairs": (lambda: [mtopt.UPGrad(), mtopt.Whitening(pairs=True)], None),
    "UPGrad on momenta": (lambda: [mtopt.Momentum(), mtopt.UPGrad()], None),
    "UPGrad in Adam's metric": (lambda: [mtopt.UPGrad()], "inner"),
}
ON_PHYSICS: dict[str, Transforms] = {
    "ConFIG": lambda: [mtopt.ConFIG()],
    "ConFIG, whitened": lambda: [mtopt.ConFIG(), mtopt.Whitening()],
    **{f"ConFIG every {k} steps": partial(every, k) for k in (1, 5, 10, 50)},
}
ONE_LOSS = "ConFIG on momenta, one loss a step"
TIMED = (
    SUM_WITH_SOAP,
    "recipe",
    NORMS,
    SELDOM,
    "recipe" + AS_ONE,
    SELDOM + AS_ONE,
    *(way + ending + SOAP for ending in ("", AS_ONE) for way in (NORMS, SELDOM)),
    *(name + ending for name in METHODS for ending in ("", WHITENED, ON_MOMENTA)),
)


def on_mlp(transforms: Transforms | None, metric: str | None = None) -> Callable[[], Sample]:
    """A step of an MLP with two losses."""
    torch.manual_seed(0)
    problem = MODELS["mlp"](2)
    inner = torch.optim.Adam(problem.parameters(), betas=(0.0, 0.999))
    optimizer = None if transforms is None else _wrapped(inner, transforms(), metric)

    def step() -> Sample:
        start = perf_counter()
        inner.zero_grad()
        _, losses = problem.forward()
        if optimizer is None:
            torch.autograd.backward(losses)
            inner.step()
        else:
            optimizer.step(losses)
        return Sample(perf_counter() - start, 0.0)

    return step


class Large(Helmholtz):
    """As large as such networks are in practice."""

    width = 64
    n_points = 1024


def on_physics(
    transforms: Transforms | None, kind: type[Helmholtz] = Helmholtz, *, one_loss: bool = False
) -> Callable[[], Sample]:
    """A step of Helmholtz' equation: the residual has a forward with second derivatives, the boundary its own."""
    torch.manual_seed(0)
    problem = kind()
    model = problem.make_model()
    assert isinstance(model, Field)
    inner = torch.optim.Adam(model.parameters(), betas=(0.0, 0.999))
    optimizer = None if transforms is None else _wrapped(inner, transforms(), None)
    batch = next(problem.batches(0))
    if isinstance(problem, Large):
        batch = tuple(points.repeat(problem.n_points // len(batch[0]), 1) for points in batch)
    count = 0

    def losses_of_turn() -> dict[str, torch.Tensor | None]:
        """The losses of this step: one by turns, whose forward alone is run."""
        nonlocal count
        count += 1
        if count % 2:
            value, _, second = model.jet(batch[0])
            residual = second.sum(0) + value - problem.source(batch[0])
            return {"residual": residual.square().mean(), "boundary": None}
        return {"residual": None, "boundary": model(batch[1]).square().mean()}

    def step() -> Sample:
        start = perf_counter()
        inner.zero_grad()
        if optimizer is None:
            torch.autograd.backward(list(problem.losses(model, batch).values()))
            inner.step()
        else:
            optimizer.step(losses_of_turn() if one_loss else problem.losses(model, batch))
        return Sample(perf_counter() - start, 0.0)

    return step


def _wrapped(
    inner: torch.optim.Optimizer, transforms: list[mtopt.Transform], metric: str | None
) -> mtopt.MultiLossOptimizer:
    return mtopt.MultiLossOptimizer(inner, transforms, at="parameters", metric=metric)


def as_trained(name: str) -> dict[str, Callable[[], Sample]]:
    """Steps of a problem of promise.py, as it is trained there: the plain sum, and ways that take longer."""

    def cell(way: str) -> Callable[[], Sample]:
        problem = problem_of(name, way)
        batch = next(problem.batches(0))
        torch.manual_seed(0)
        model = problem.make_model()
        inner: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), betas=(first_beta(way), 0.9))
        if SOAP in way:
            inner = pytorch_optimizer.SOAP(model.parameters(), betas=SOAP_BETAS, weight_decay=0.0)
        optimizer = None if way in (PLAIN, SUM_WITH_SOAP) else _wrapped(inner, transforms_of(way, 0.9), None)

        def step() -> Sample:
            start = perf_counter()
            inner.zero_grad()
            losses = problem.losses(model, batch)
            if optimizer is None:
                torch.autograd.backward(torch.stack(list(losses.values())).sum())
                inner.step()
            else:
                optimizer.step(losses)
            return Sample(perf_counter() - start, 0.0)

        return several(step, TIMES)

    is_system = (PROBLEMS | OTHERS)[name].n_residuals > 1
    return {way: cell(way) for way in (PLAIN, *TIMED) if is_system or AS_ONE not in way}


def kept(transforms: Transforms, n_losses: int) -> float:
    """How many numbers are kept for each of the shared parameters'."""
    torch.manual_seed(0)
    problem = MODELS["toy"](n_losses)
    optimizer = _wrapped(torch.optim.SGD(problem.parameters(), lr=0.1), transforms(), None)
    optimizer.step(problem.forward()[1])
    shared = {id(p) for p in problem.trunk.parameters()}
    numbers = [i for i, p in enumerate(problem.parameters()) if id(p) in shared]
    histories = [t.history for t in optimizer.transforms if isinstance(t, (mtopt.Momentum, mtopt.Whitening))]
    means = [average.mean for history in histories for i in numbers for average in history.of(i).values()]
    return sum(mean.numel() for mean in means) / sum(p.numel() for p in problem.trunk.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31, help="rounds in which every cell takes its turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="where to write the ratios as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console, found = Console(), {}
    mlp = {name: several(on_mlp(make, metric), TIMES) for name, (make, metric) in ON_MLP.items()}
    found["mlp, T = 2"] = _ratios({PLAIN: several(on_mlp(None), TIMES), **mlp}, args.repeats)
    for title, kind in (("Helmholtz, 3 x 32, 192 points", Helmholtz), ("Helmholtz, 3 x 64, 1536 points", Large)):
        physics = {name: several(on_physics(make, kind), TIMES) for name, make in ON_PHYSICS.items()}
        one = on_physics(lambda: [mtopt.Momentum(absent=True), mtopt.ConFIG()], kind, one_loss=True)
        cells = {PLAIN: several(on_physics(None, kind), TIMES), **physics, ONE_LOSS: several(one, 2 * TIMES)}
        found[title] = _ratios(cells, args.repeats)
    for name in PROBLEMS | OTHERS:
        ratios = _ratios(as_trained(name), args.repeats)
        found.setdefault("as trained", {})[name] = {
            way: of_way["times the plain step"] for way, of_way in ratios.items()
        }
    found["numbers kept"] = {
        f"T = {n}": {"Whitening": kept(lambda: [mtopt.UPGrad(), mtopt.Whitening()], n),
                     "Whitening, pairs": kept(lambda: [mtopt.UPGrad(), mtopt.Whitening(pairs=True)], n),
                     "Momentum": kept(lambda: [mtopt.Momentum(), mtopt.UPGrad()], n)}
        for n in (2, 8)
    }  # fmt: skip
    for title, numbers in found.items():
        table = Table("", *next(iter(numbers.values())), title=title)
        for name, row in numbers.items():
            table.add_row(name, *(f"{value:.3g}" for value in row.values()))
        console.print(table)
    if args.output is not None:
        args.output.write_text(json.dumps({"threads": args.threads, "torch": torch.__version__, **found}, indent=1))


def _ratios(cells: dict[str, Callable[[], Sample]], repeats: int) -> dict[str, dict[str, Any]]:
    series: dict[str, Series] = {}
    order = random.Random(0)
    interleave(cells, series, repeats=repeats, budget=1e9, always=PLAIN, order=order, advance=lambda name: None)
    found = {}
    for name in cells:
        low, middle, high = quartiles(series[name].ratios(series[PLAIN]))
        found[name] = {"times the plain step": middle, "lower quartile": low, "upper quartile": high}
    return found


if __name__ == "__main__":
    main()
