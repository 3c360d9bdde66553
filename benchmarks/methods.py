"""The methods of the papers: their steps, their transforms alone, and TorchJD's steps with the same method."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
import torchjd.aggregation as peers
from cells import ACTIVATIONS, METHODS, PARAMETERS, Cell, Sample, sgd, torchjd_mtl, wrapped
from measure import timed
from models import Problem, make_problem

import mtopt
from mtopt import GramianTransform, Losses, MultiLossOptimizer, Site, Transform
from mtopt._combine.pipeline import Pipeline

TORCHJD = "TorchJD mtl_backward"
Make = Callable[[int], Transform]  # for a number of losses

OF_PAPERS: dict[str, Make] = {
    "ConstantWeights": lambda n: mtopt.ConstantWeights([1.0 + i / n for i in range(n)]),
    "DWA": lambda n: mtopt.DWA(),
    "FAMO": lambda n: mtopt.FAMO(),
    "GeometricMean": lambda n: mtopt.GeometricMean(),
    "IMTLL": lambda n: mtopt.IMTLL(),
    "RLW": lambda n: mtopt.RLW(seed=0),
    "ReLoBRaLo": lambda n: mtopt.ReLoBRaLo(seed=0),
    "STCH": lambda n: mtopt.STCH(),
    "SoftAdapt": lambda n: mtopt.SoftAdapt(),
    "UncertaintyWeighting": lambda n: mtopt.UncertaintyWeighting(),
    "AlignedMTL": lambda n: mtopt.AlignedMTL(),
    "CAGrad": lambda n: mtopt.CAGrad(),
    "ConFIG": lambda n: mtopt.ConFIG(),
    "DualProj": lambda n: mtopt.DualProj(),
    "FairGrad": lambda n: mtopt.FairGrad(),
    "GradNorm": lambda n: mtopt.GradNorm(),
    "GradVac": lambda n: mtopt.GradVac(seed=0),
    "IMTLG": lambda n: mtopt.IMTLG(),
    "MGDA": lambda n: mtopt.MGDA(),
    "NashMTL": lambda n: mtopt.NashMTL(),
    "PCGrad": lambda n: mtopt.PCGrad(seed=0),
    "UPGrad": lambda n: mtopt.UPGrad(),
    "GradDrop": lambda n: mtopt.GradDrop(seed=0),
}
PEERS: dict[str, Callable[[int], peers.Aggregator]] = {
    "AlignedMTL": lambda n: peers.AlignedMTL(),
    "CAGrad": lambda n: peers.CAGrad(0.4),
    "ConFIG": lambda n: peers.ConFIG(),
    "DualProj": lambda n: peers.DualProj(),
    "FairGrad": lambda n: peers.FairGrad(1.0),
    "GradVac": lambda n: peers.GradVac(),
    "IMTLG": lambda n: peers.IMTLG(),
    "MGDA": lambda n: peers.MGDA(),
    "NashMTL": lambda n: peers.NashMTL(n, max_norm=1.0, update_weights_every=1, optim_niter=20),
    "PCGrad": lambda n: peers.PCGrad(),
    "UPGrad": lambda n: peers.UPGrad(),
    "GradDrop": lambda n: peers.GradDrop(),
}


def make_cell(model: str, n_losses: int, name: str) -> Cell:
    """A method on a problem of its own, made alike for all: one of `cells`, or `method at form` here."""
    problem = make_problem(model, n_losses)
    if name in METHODS:
        return METHODS[name](problem)
    method, form = name.split(" ", 1)
    return FORMS[form](problem, method)


def _optimizer(at: str) -> Callable[[Problem, str], Cell]:
    def make(problem: Problem, method: str) -> Cell:
        transform = OF_PAPERS[method](len(problem.heads))
        return wrapped(problem, MultiLossOptimizer(sgd(problem), transform, at=at))

    return make


def _peer(problem: Problem, method: str) -> Cell:
    return torchjd_mtl(problem, PEERS[method](len(problem.heads)))


FORMS = {ACTIVATIONS: _optimizer("activations"), PARAMETERS: _optimizer("parameters"), TORCHJD: _peer}


FROM_GRAMIAN = [method for method, make in OF_PAPERS.items() if isinstance(make(2), GramianTransform)]


def names(form: str) -> list[str]:
    """The cells of a form."""
    methods = PEERS if form == TORCHJD else OF_PAPERS
    return [f"{method} {form}" for method in methods]


def transform_alone(method: str, n_losses: int) -> Callable[[], Sample]:
    """The weights of a method from the Gramian of gradients in conflict, a little different each time."""
    transform = OF_PAPERS[method](n_losses)
    assert isinstance(transform, GramianTransform)
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(n_losses, 4 * n_losses, generator=random, dtype=torch.float64)
    rows -= rows.mean(0) * 0.9
    losses = Losses(tuple(range(n_losses)), n_losses, None, tuple(torch.ones(n_losses)))

    def run() -> Sample:
        moved = rows + 0.1 * torch.randn(rows.shape, generator=random, dtype=torch.float64)
        gramian = moved @ moved.T
        start = perf_counter()
        transform.weights(gramian, losses)
        seconds = perf_counter() - start
        return Sample(seconds, seconds)

    return run


TRAFFIC, COMBINED = "reading twice, writing once", "MGDA of rows that are there"


def gramian_cells(n_rows: int, size: int) -> dict[str, Callable[[], Sample]]:
    """A method from the Gramian on rows that are there, and the memory traffic that it cannot do without."""
    rows = list(torch.randn(n_rows, size, generator=torch.Generator().manual_seed(0)).unbind())
    losses = Losses(tuple(range(n_rows)), n_rows)

    def combined() -> None:
        combination = Pipeline(mtopt.MGDA()).combination(losses, [Site(losses)])
        for i, row in enumerate(rows):
            combination.add(0, i, row)
        combination.result()

    def traffic() -> None:
        for _ in range(2):
            for row in rows:
                row.sum()
        torch.empty(size).fill_(0)

    return {COMBINED: timed(combined), TRAFFIC: timed(traffic)}
