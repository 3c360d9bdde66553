"""torch.compile around anything: as in eager mode, or an error that says what to do; never the plain sum in silence."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported

from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own doings

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default backend compiles C++")

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, layer=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.heads = Heads()
        self.layer = layer

    def forward(self, x):
        z = self.trunk(x)
        return self.heads([z] * 3 if self.layer is None else self.layer(z))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ModuleList(nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(3))

    def forward(self, aliases):
        return [
            head(alias).sub(i).square().mean() for i, (head, alias) in enumerate(zip(self.all, aliases, strict=True))
        ]


SITES = {
    "layer": (MultiLossLayer(3, GradDrop(seed=1)), [], "activations"),
    "layer, marginalized": (MultiLossLayer(3, GradDrop(seed=1, marginalize=0)), [], "activations"),
    "activations": (None, GradDrop(seed=1), "activations"),
    "module": (None, GradDrop(seed=1), "module"),
    "module, marginalized": (None, GradDrop(seed=1, marginalize=0), "module"),
    "parameters": (None, GradDrop(seed=1), "parameters"),
}


def whole(net, backend):
    return torch.compile(net, backend=backend)


def whole_graph(net, backend):
    return torch.compile(net, backend=backend, fullgraph=True)


def trunk(net, backend):
    net.trunk.compile(backend=backend)
    return net


def heads(net, backend):
    net.heads.compile(backend=backend)
    return net


def each_head(net, backend):
    for head in net.heads.all:
        head.compile(backend=backend)
    return net


PARTS = [whole, whole_graph, trunk, heads, each_head]

# What one compiled graph hides, and what is said then. Hooks at a named module interrupt the graph, if they may.
HIDDEN = {
    (whole, "activations"): (RuntimeError, "never meet"),
    (whole_graph, "activations"): (RuntimeError, "never meet"),
    (whole_graph, "module"): (Unsupported, "marked as skipped"),
    (whole_graph, "module, marginalized"): (Unsupported, "marked as skipped"),
}


def make(site):
    layer, transforms, at = copy.deepcopy(SITES[site])
    net = Net(layer)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    return net, MultiLossOptimizer(inner, transforms, at=net.trunk if at == "module" else at)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.long, NEEDS_COMPILER])])
def test_a_compiled_part_gives_the_eager_gradients_or_raises(part, site, backend):
    net, optimizer = make(site)
    run = part(net, backend)
    if (part, site) in HIDDEN:
        kind, words = HIDDEN[part, site]
        with pytest.raises(kind, match=words):
            optimizer.backward(run(X))
        assert all(p.grad is None for p in net.parameters())
    else:
        assert_as_eager(site, net, lambda: optimizer.backward(run(X)))


def assert_as_eager(site, net, backward):
    """Three times the same as in eager mode, whose draws go on from step to step; and not the plain sum."""
    eager, by_eager = make(site)
    for _ in range(3):
        for model, run in ((net, backward), (eager, lambda: by_eager.backward(eager(X)))):
            model.zero_grad()
            run()
        for ours, theirs in zip(net.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    plain = Net()
    sum(plain(X)).backward()
    assert (net.trunk[0].weight.grad - plain.trunk[0].weight.grad).abs().max() > 1e-3


@pytest.mark.parametrize("site", [site for site in SITES if site != "activations"])
def test_a_compiled_training_step_is_the_eager_one(site):
    """The forward is compiled; the backward of the losses interrupts the graph."""
    net, optimizer = make(site)

    @torch.compile(backend="aot_eager")
    def step():
        losses = net(X)
        optimizer.backward(losses)

    assert_as_eager(site, net, step)


def test_a_compiled_training_step_that_hides_the_activations_raises():
    net, optimizer = make("activations")

    @torch.compile(backend="aot_eager")
    def step():
        optimizer.step(net(X))

    with pytest.raises(RuntimeError, match="never meet"):
        step()
    assert all(p.grad is None for p in net.parameters())


@NEEDS_COMPILER
def test_inductor_compiles_the_layer_into_one_graph():
    net, optimizer = make("layer, marginalized")
    compiled = torch.compile(net, fullgraph=True)
    assert_as_eager("layer, marginalized", net, lambda: optimizer.backward(compiled(X)))


def test_two_layers_in_one_compiled_model_and_their_copies_draw_apart():
    """The compiled code knows a layer by a number; a copy of it has its own."""
    net, _ = make("layer")
    other = copy.deepcopy(net)
    for model in (net, other):
        sum(torch.compile(model, backend="aot_eager", fullgraph=True)(X)).backward()
        sum(torch.compile(model, backend="aot_eager", fullgraph=True)(X)).backward()
    states = [n.layer.transforms[0].state_dict() for n in (net, other)]
    assert states == [{"draws": {"seed": 1, "count": 2}}] * 2
    assert torch.equal(net.trunk[0].weight.grad, other.trunk[0].weight.grad)


def test_a_loss_that_does_not_come_back_has_no_row_in_a_compiled_model():
    gradients = []
    for run in (lambda net: net, lambda net: torch.compile(net, backend="aot_eager", fullgraph=True)):
        net = Net(MultiLossLayer(3, GradDrop(seed=1, keep=0.0)))
        run(net)(X)[1].backward()  # a row that is alone stays as it is, even at keep=0
        gradients.append(net.trunk[0].weight.grad)
    torch.testing.assert_close(*gradients)


def test_a_layer_hidden_in_a_compiled_model_is_found_by_an_optimizer_that_combines_again():
    net = Net(MultiLossLayer(3, GradDrop(seed=1)))
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=2), at="parameters")
    losses = torch.compile(net, backend="aot_eager", fullgraph=True)(X)
    with pytest.raises(RuntimeError, match="MultiLossLayer, which combines the gradients itself"):
        optimizer.backward(losses)
    assert all(p.grad is None for p in net.parameters())
