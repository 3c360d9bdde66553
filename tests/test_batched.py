"""Many trainings at once, against each on its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import mtopt

pytestmark = pytest.mark.usefixtures("one_thread")

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


def test_weighted_sums_train_as_an_optimizer_for_each_would(batched):
    """Rates, memories, weights and seeds of their own, and the harm of the steps that a Monitor looks at."""
    from problems import physics

    problem, steps = physics.Burgers(), 20
    seeds, rates, betas = [3, 4, 3], [1e-2, 3e-3, 1e-1], [0.9, 0.999, 0.99]
    weights = torch.tensor([[1.0, 1.0, 1.0], [1.0, 30.0, 30.0], [0.3, 1.0, 3.0]])
    adams = batched.Adams([(0.9, beta) for beta in betas], batched.n_parameters(problem))
    together = batched.WeightedSums(problem, seeds, weights, torch.tensor(rates), adams, steps, look=5)
    for _ in range(steps):
        together.step()
    for i, (seed, rate, beta) in enumerate(zip(seeds, rates, betas, strict=True)):
        torch.manual_seed(seed)
        model = problem.make_model()
        before = parameters_to_vector(model.parameters()).detach().clone()
        inner = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, beta))
        # The weighted sum, with the losses' gradients known to the Monitor.
        transforms = [mtopt.ConstantWeights(weights[i].tolist()), mtopt.GradDrop(leak=1.0)]
        optimizer = mtopt.MultiLossOptimizer(inner, transforms, at="parameters")
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(inner, steps)
        monitor, batches = mtopt.Monitor(optimizer, every=5), problem.batches(seed)
        for _ in range(steps):
            optimizer.zero_grad()
            optimizer.step(problem.losses(model, next(batches)))
            scheduler.step()
        alone = parameters_to_vector(model.parameters()) - before
        found = parameters_to_vector(together.model(i).parameters()) - before
        assert (found - alone).norm() < 1e-3 * alone.norm()
        assert together.looks == 4
        for name, share in monitor.raised.items():
            assert together.raised[name][i] / together.looks == pytest.approx(share)


DECIDED = {  # β₁, transforms, one loss in turn
    "seldom": (0.9, lambda: [mtopt.GradientNorms(average=0.9, period=10, of="norms")], False),
    "weights": (0.9, lambda: [mtopt.GradientNorms(average=0.99, of="norms")], False),
    "a Gramian": (0.9, lambda: [mtopt.UPGrad()], False),
    "another": (0.9, lambda: [mtopt.AlignedMTL()], False),
    "mixed": (0.9, lambda: [mtopt.PCGrad(seed=5)], False),
    "dropped": (0.9, lambda: [mtopt.GradDrop(seed=5)], False),
    "whitened": (0.9, lambda: [mtopt.IMTLG(), mtopt.Whitening(beta=0.9, eps=1e-3)], False),
    "whitened by pairs": (
        0.9,
        lambda: [mtopt.GradientNorms(), mtopt.ConFIG(), mtopt.Whitening(beta=0.9, pairs=True, eps=1e-3)],
        False,
    ),
    "mixed, whitened": (0.9, lambda: [mtopt.PCGrad(seed=5), mtopt.Whitening(beta=0.9, eps=1e-3)], False),
    "dropped, whitened": (0.9, lambda: [mtopt.GradDrop(seed=5), mtopt.Whitening(beta=0.9, eps=1e-3)], False),
    "momenta": (0.0, lambda: [mtopt.Momentum(), mtopt.ConFIG()], False),
    "momenta, dropped": (0.0, lambda: [mtopt.Momentum(), mtopt.GradDrop(seed=5)], False),
    "in turn": (0.0, lambda: [mtopt.Momentum(absent=True), mtopt.ConFIG()], True),
}


@pytest.mark.parametrize("name", ["Helmholtz", "Burgers", "Wave"])
def test_decisions_train_as_an_optimizer_for_each_would(batched, name):
    """With all kinds of transforms, and the harm of the steps that a Monitor looks at."""
    from problems import physics

    problem, steps, rate, beta = getattr(physics, name)(), 20, 1e-2, 0.9
    ways, seeds = list(DECIDED.values()), [i % 3 for i in range(len(DECIDED))]
    adams = batched.Adams([(first, beta) for first, _, _ in ways], batched.n_parameters(problem))
    decisions = [batched.Decision(make(), in_turn=in_turn) for _, make, in_turn in ways]
    together = batched.Decided(problem, seeds, decisions, torch.full((len(ways),), rate), adams, steps, look=5)
    schedulers, monitors = [], []

    def optimizer_of_way(i, row):
        first, make, _ = ways[i]
        inner = torch.optim.Adam([row], lr=rate, betas=(first, beta))
        optimizer = mtopt.MultiLossOptimizer(inner, make(), at="parameters")
        monitors.append(mtopt.Monitor(optimizer, every=5))
        schedulers.append(torch.optim.lr_scheduler.CosineAnnealingLR(inner, steps))
        return optimizer

    alone = batched.Trainings(problem, seeds, optimizer_of_way, [in_turn for _, _, in_turn in ways])
    before = alone.rows.detach().clone()
    for _ in range(steps):
        together.step()
        alone.step()
        for scheduler in schedulers:
            scheduler.step()
    assert together.looks == 4
    for i, way in enumerate(DECIDED):
        moved, expected = together.rows[i] - before[i], alone.rows[i].detach() - before[i]
        assert (moved - expected).norm() < 2e-3 * expected.norm(), way
        for task, share in monitors[i].raised.items() if not ways[i][2] else ():  # it sees the losses that are there
            assert together.raised[task][i] / together.looks == pytest.approx(share), (way, task)


def test_soap_for_many_networks_is_soap_for_each(batched):
    from pytorch_optimizer import SOAP
    from soap import Soaps

    torch.manual_seed(0)
    shapes, betas, rate = [torch.Size([4, 4]), torch.Size([4]), torch.Size([3, 3])], (0.8, 0.9), 0.1
    together = Soaps(shapes, betas, every=3)  # of square matrices: their bases are unique
    parameters = [[torch.zeros(shape, dtype=torch.float64) for shape in shapes] for _ in range(2)]
    alone = [SOAP(own, lr=rate, betas=betas, weight_decay=0.0, precondition_frequency=3) for own in parameters]
    moved = torch.zeros(2, sum(shape.numel() for shape in shapes), dtype=torch.float64)
    for _ in range(10):
        gradient = torch.randn_like(moved)
        moved += rate * together.changes(gradient)
        for own, optimizer, row in zip(parameters, alone, gradient, strict=True):
            sizes = [shape.numel() for shape in shapes]
            for parameter, part in zip(own, row.split(sizes), strict=True):
                parameter.grad = part.view_as(parameter).clone()
            optimizer.step()
    expected = torch.stack([torch.cat([p.flatten() for p in own]) for own in parameters])
    torch.testing.assert_close(moved, expected, rtol=2e-5, atol=1e-6)  # their QR is in float32


def test_one_loss_in_turn_is_what_the_optimizer_gets(batched):
    from problems import physics

    problem, seen = physics.Burgers(), []

    class Listener:
        def zero_grad(self):
            pass

        def step(self, losses):
            seen.append([name for name, loss in losses.items() if loss is not None])

    trainings = batched.Trainings(problem, [0, 0], lambda i, row: Listener(), [True, False])
    for _ in range(4):
        trainings.step()
    names = list(problem.tasks)
    assert seen == [[names[0]], names, [names[1]], names, [names[2]], names, [names[0]], names]
