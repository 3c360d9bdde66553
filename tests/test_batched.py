"""Many trainings at once, against each on its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import mtopt

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WAYS = {  # rate, β₂, transforms
    "the sum": (1e-2, 0.999, list),
    "weights": (3e-3, 0.9, lambda: [mtopt.ConstantWeights(10.0)]),
    "a Gramian": (1e-2, 0.9, lambda: [mtopt.UPGrad()]),
    "histories": (
        1e-2,
        0.99,
        lambda: [mtopt.GradientNorms(), mtopt.ConFIG(), mtopt.Whitening(pairs=True, eps=1e-3)],
    ),  # or rounding is whitened
    "values": (1e-2, 0.9, lambda: [mtopt.DWA()]),
}


@pytest.fixture
def batched(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in [name for name in sys.modules if name.split(".")[0] in ("batched", "problems")]:
        monkeypatch.delitem(sys.modules, name)
    import batched

    return batched


def optimizer_of(way, parameters):
    rate, beta, transforms = WAYS[way]
    inner = torch.optim.Adam(parameters, lr=rate, betas=(0.9, beta))
    return mtopt.MultiLossOptimizer(inner, transforms(), at="parameters" if transforms() else "activations")


@pytest.mark.parametrize("name", ["Helmholtz", "Burgers", "Wave"])
def test_each_of_many_trainings_is_as_on_its_own(batched, name):
    from problems import physics

    problem, ways, seeds = getattr(physics, name)(), list(WAYS), [3, 4, 3, 5, 4]
    together = batched.Trainings(problem, seeds, lambda i, row: optimizer_of(ways[i], [row]))
    for _ in range(20):
        together.step()
    for i, (seed, way) in enumerate(zip(seeds, ways, strict=True)):
        torch.manual_seed(seed)
        model = problem.make_model()
        before = parameters_to_vector(model.parameters()).detach().clone()
        optimizer, batches = optimizer_of(way, model.parameters()), problem.batches(seed)
        for _ in range(20):
            optimizer.zero_grad()
            optimizer.step(problem.losses(model, next(batches)))
        alone = parameters_to_vector(model.parameters()) - before
        found = parameters_to_vector(together.model(i).parameters()) - before
        assert (found - alone).norm() < 1e-3 * alone.norm()
        assert problem.metrics(together.model(i), "test").keys() == {"solution"}
