"""Several ranks under DistributedDataParallel: what N of them give is what one process gives on all their batches."""

from __future__ import annotations

from contextlib import nullcontext

import methods
import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mtopt
from mtopt import GradDrop, Momentum, MultiLossLayer, MultiLossOptimizer, Whitening

pytestmark = pytest.mark.timeout(240)

N_EXAMPLES, N_LOSSES, N_STEPS = 24, 3, 10


class ByLoss(mtopt.LossWeighting):
    """Depends on the values, and on those of the step before."""

    def __init__(self):
        self.before = None

    def weights(self, losses):
        values = losses.values
        weights = values / values.sum() if self.before is None else values / self.before
        self.before = values
        return weights


class UnitRows(mtopt.GramianTransform):
    def weights(self, gramian, losses):
        return gramian.diagonal().rsqrt()


class Decorrelate(mtopt.GramianTransform):
    """A T×T mixing matrix."""

    def weights(self, gramian, losses):
        return torch.linalg.inv(gramian / gramian.diagonal().mean() + torch.eye(len(gramian), dtype=gramian.dtype))


class Net(nn.Module):
    def __init__(self, layer=None, inside=False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(N_LOSSES))
        self.layer = layer
        self.inside = inside  # the losses are computed by the model itself
        self.double()

    def forward(self, x, y, kind="shared"):
        if kind == "own":  # a forward per loss: they meet at the parameters, or are decided jointly at the trunk
            outputs = [head(self.trunk(x + i)) for i, head in enumerate(self.heads)]
        else:
            z = self.trunk(x)
            aliases = [z] * N_LOSSES if self.layer is None else self.layer(z)
            left_out = kind == "without head 0"
            outputs = [None if left_out and i == 0 else self.heads[i](aliases[i]) for i in range(N_LOSSES)]
        return losses_of(outputs, y) if self.inside else outputs


def losses_of(outputs, y):
    return [
        None if output is None else (i + 1) * (output - y[:, i : i + 1]).square().mean()
        for i, output in enumerate(outputs)
    ]


def batch(step, rank=0, size=1):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(N_EXAMPLES, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(N_EXAMPLES, N_LOSSES, dtype=torch.float64, generator=generator)
    each = N_EXAMPLES // size
    return x[rank * each : (rank + 1) * each], y[rank * each : (rank + 1) * each]


JOINT = {"marginalize": 0, "seed": 1}
# name: (at, transforms, kind of forward)
METHODS = {
    "layer, marginalized": ("layer", lambda: GradDrop(**JOINT), "shared"),
    "layer, marginalized, leaks": ("layer", lambda: GradDrop(leak=[0, 1, 0.5], keep=0.5, **JOINT), "shared"),
    "layer, weights of the Gramian": ("layer", UnitRows, "shared"),
    "layer, a mixing matrix, marginalized": ("layer", lambda: [Decorrelate(), GradDrop(**JOINT)], "shared"),
    "module, marginalized": ("module", lambda: GradDrop(**JOINT), "shared"),
    "module, marginalized, renormalized": ("module", lambda: GradDrop(renormalize=True, **JOINT), "shared"),
    "module, joint over calls": ("module", lambda: GradDrop(**JOINT), "own"),
    "activations, weights of the Gramian": ("activations", UnitRows, "shared"),
    "activations, by loss, mixing matrix": ("activations", lambda: [ByLoss(), Decorrelate()], "shared"),
    "activations, by loss alone": ("activations", ByLoss, "shared"),
    "parameters": ("parameters", lambda: GradDrop(seed=1), "shared"),
    "parameters, renormalized": ("parameters", lambda: GradDrop(seed=1, renormalize=True), "own"),
    "parameters, Gramian": ("parameters", UnitRows, "shared"),
    "parameters, all kinds": ("parameters", lambda: [ByLoss(), Decorrelate(), GradDrop(seed=1)], "shared"),
    "parameters, whitened": ("parameters", lambda: [UnitRows(), GradDrop(seed=1), Whitening(beta=0.5)], "shared"),
    "parameters, momentum per loss, whitened": (
        "all parameters",
        lambda: [Momentum(absent=True), mtopt.ConFIG(), Whitening(beta=0.5, pairs=True)],
        "shared",
    ),
    "parameters, weights of before": ("parameters", lambda: mtopt.Every(mtopt.UPGrad(), steps=3), "shared"),
    "all parameters, norms at times": ("all parameters", lambda: mtopt.GradientNorms(period=3), "shared"),
    "plain sum": ("activations", list, "shared"),
}
OF_PAPERS = {
    f"{name}, {at}": (at, make, "shared")
    for at in ("activations", "parameters", "layer")
    for name, make in methods.METHODS.items()
    if at != "layer" or (name in methods.GRAMIAN and not make().uses_values)
    if (name, at) != ("GradDrop", "activations")  # each rank draws for its own examples
}
WRAPPERS = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
}


def train(
    method,
    rank=0,
    size=1,
    *,
    n_steps=N_STEPS,
    compiled="",
    inside=False,
    micro_batches=1,
    no_sync=False,
    wrapper=None,
    device="cpu",
    wrapped=None,
):
    at, transforms, kind = {**METHODS, **OF_PAPERS}[method]
    torch.manual_seed(0)
    net = Net(MultiLossLayer(N_LOSSES, transforms()) if at == "layer" else None, inside).to(device)
    model = torch.compile(net, backend="aot_eager") if compiled == "inside" else net
    wrapped = size > 1 if wrapped is None else wrapped
    model = DistributedDataParallel(model, **(wrapper or {})) if wrapped else model
    model = torch.compile(model, backend="aot_eager") if compiled == "outside" else model
    momentum = 0.0 if "momentum" in method else 0.9
    inner = torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum)
    place = {"module": net.trunk, "layer": "activations"}.get(at, at)
    optimizer = MultiLossOptimizer(inner, [] if at == "layer" else transforms(), at=place)
    for step in range(n_steps):
        optimizer.zero_grad()
        for part in range(micro_batches):
            last = part == micro_batches - 1
            with model.no_sync() if no_sync and not last else nullcontext():
                x, y = (t.to(device) for t in batch(step * micro_batches + part, rank, size))
                outputs = model(x, y, kind)
                optimizer.backward(outputs if inside else losses_of(outputs, y))
        optimizer.step()
        if step % 2 and method in OF_PAPERS:
            with torch.no_grad():
                methods.after_step(optimizer.transforms, losses_of(net(x, y), y))
    return [p.tolist() for p in net.parameters()]


CASES = {
    **{name: {"wrapper": settings} for name, settings in WRAPPERS.items()},
    "losses inside": {"wrapper": {"static_graph": True}, "inside": True},
    "accumulated": {"micro_batches": 2},
    "accumulated without sync": {"micro_batches": 2, "no_sync": True},
}


def train_all(rank, size, cases):
    """Every method in some cases, or the error that it ended in."""
    return {(name, case): attempt(train, name, rank, size, **CASES[case]) for name in METHODS for case in cases}


def attempt(function, *args, **settings):
    try:
        return function(*args, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.fixture(scope="module", params=["2 ranks", "4 ranks", pytest.param("4 ranks, all", marks=pytest.mark.long)])
def trained(request):
    size = int(request.param[0])
    return run_ranks(train_all, size, size, ["plain"] if request.param == "4 ranks" else list(CASES), timeout=400)


@pytest.mark.parametrize("name", METHODS)
def test_n_ranks_are_one_process_on_all_batches(trained, name):
    for case in {case for _, case in trained[0]}:
        alone = train(name, micro_batches=CASES[case].get("micro_batches", 1))
        assert_equal([result[name, case] for result in trained], alone)


def assert_equal(results, alone):
    """All ranks to the last bit, and as one process."""
    assert results == [results[0]] * len(results)
    assert isinstance(results[0], list), results[0]
    for together, parameter in zip(results[0], alone, strict=True):
        torch.testing.assert_close(torch.tensor(together), torch.tensor(parameter), rtol=1e-6, atol=1e-9)


def train_of_papers(rank, size):
    return {name: attempt(train, name, rank, size, n_steps=5) for name in OF_PAPERS}


def test_every_method_gives_on_two_ranks_what_it_gives_in_one_process():
    for name in (results := run_ranks(train_of_papers, 2, 2))[0]:
        assert_equal([result[name] for result in results], train(name, n_steps=5))


def train_compiled(rank):
    """The layer inside a compiled model, which is wrapped before or after; rows at parameters of a compiled model."""
    results = {}
    for name in ("layer, marginalized", "layer, weights of the Gramian", "parameters"):
        for case, compiled in (("plain", "inside"), ("static_graph", "inside"), ("plain", "outside")):
            settings = {"n_steps": 3, "compiled": compiled, **CASES[case]}
            results[name, case, compiled] = attempt(train, name, rank, 2, **settings)
    return results


def test_compiled_models_are_one_process_too():
    for key in (results := run_ranks(train_compiled, 2))[0]:
        assert_equal([result[key] for result in results], train(key[0], n_steps=3))


# By step and rank.
ABSENT = {0: {0: (1,), 1: (1,)}, 1: {1: (1, 2)}, 4: {1: (0,)}, 6: {0: (1,), 1: (1,)}, 8: {0: (0, 1)}}
SELDOM = {
    "norms": lambda: mtopt.GradientNorms(period=3, of="norms"),
    "weights": lambda: mtopt.GradientNorms(period=2),
    "every": lambda: mtopt.Every(mtopt.ConFIG(), steps=3),
}


def train_with_absent_losses(rank, size):
    """With weights that hold for some steps, by themselves or before a transform that wants the rows of each step and
    changes nothing."""
    results = {}
    for name, make in SELDOM.items():
        for behind in ([], [GradDrop(leak=1.0)]) if name != "every" else ([],):
            torch.manual_seed(0)
            net = Net()
            optimizer = MultiLossOptimizer(
                torch.optim.SGD(net.parameters(), lr=0.05), [make(), *behind], at="parameters"
            )
            in_one = []
            for step in range(10):
                x, y = batch(step, rank, size)
                losses = losses_of(net(x, y), y)
                for i in ABSENT.get(step, {}).get(rank, ()):
                    losses[i] = None
                optimizer.zero_grad()
                optimizer.step(losses)
                in_one.append("pass of the weighted sum" in optimizer.explain())
            results[name, len(behind)] = [p.tolist() for p in net.parameters()], in_one
    return results


def test_weights_hold_on_all_ranks_or_on_none_whichever_losses_each_has():
    """Without a wrapper: the gradients are averaged by us."""
    one, other = run_ranks(train_with_absent_losses, 2, 2)
    assert one == other
    for name in ("norms", "weights"):
        (held, in_one), (always, never) = one[name, 0], one[name, 1]
        assert sum(in_one) > 1
        assert not any(never)
        for ours, theirs in zip(held, always, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))
    assert sum(one["every", 0][1]) > 2
