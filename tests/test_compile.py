"""torch.compile around anything: as in eager mode, or an error that says what to do; never the plain sum in silence."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported

from mtopt import DWA, RLW, GradDrop, MultiLossLayer, MultiLossOptimizer, per_loss_gradients
from mtopt._graph import alive

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own doings

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default backend compiles C++")

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Layers(nn.Sequential):
    """With a forward of its own: torch's is passed over by `compile()`."""

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


class Net(nn.Module):
    def __init__(self, layer=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = Layers(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.heads = Heads()
        self.layer = layer

    def forward(self, x):
        z = self.trunk(x)
        return self.heads([z] * 3 if self.layer is None else self.layer(z))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ModuleList(Layers(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(3))

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


# -- donated buffers: what was compiled for one backward ---------------------------------------------------------------


def trained_plainly(net, run):
    """Torch compiles a backward when it is first run: here for one backward, which may write over what it needs."""
    sum(run(X)).backward()
    net.zero_grad()


def compiled_for_one_backward(part, site="parameters"):
    net, optimizer = make(site)
    run = part(net, "aot_eager")
    trained_plainly(net, run)
    return net, run, optimizer


class Common(Net):
    """A decoder that all losses share, above the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Layers(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())

    def forward(self, x):
        return self.heads([self.decoder(self.trunk(x))] * 3)


def state_of(optimizer):
    return torch.get_rng_state().tolist(), [transform.state_dict() for transform in optimizer.transforms]


def assert_refused(net, optimizer, losses, **settings):
    before = state_of(optimizer)
    with pytest.raises(RuntimeError, match=r"donated_buffer = False` before the model is compiled"):
        optimizer.backward(losses, **settings)
    assert state_of(optimizer) == before
    assert all(p.grad is None for p in net.parameters())


def weighted(net, at):
    """Transforms that draw numbers, or keep some: a refusal moves nothing of that."""
    return MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), [RLW(), DWA(), GradDrop()], at=at)


@pytest.mark.parametrize("at", ["parameters", "all parameters"])
@pytest.mark.parametrize("part", [whole, whole_graph, trunk])
def test_what_was_compiled_for_one_backward_is_refused_at_parameters_before_anything_changes(part, at):
    net, run, _ = compiled_for_one_backward(part)
    assert_refused(net, weighted(net, at), run(X))


def test_a_model_whose_class_was_compiled_for_one_backward_is_refused_at_parameters():
    compiled_for_one_backward(whole)
    net = Net()
    assert_refused(net, weighted(net, "parameters"), whole(net, "aot_eager")(X))


@pytest.mark.parametrize("part", [whole, trunk])
def test_nothing_is_refused_where_buffers_are_not_donated(part):
    with torch._functorch.config.patch(donated_buffer=False):
        net, run, optimizer = compiled_for_one_backward(part)
        assert_as_eager("parameters", net, lambda: optimizer.backward(run(X)))
    net.zero_grad()
    assert_refused(net, weighted(net, "parameters"), run(X))  # as torch refuses it, once the setting is on


@pytest.mark.parametrize(
    ("part", "site"),
    [(trunk, "activations"), (trunk, "module")] + [(each_head, at) for at in ("activations", "module", "parameters")],
)
def test_parts_that_are_run_once_may_have_been_compiled_for_that(part, site):
    net, run, optimizer = compiled_for_one_backward(part, site)
    assert_as_eager(site, net, lambda: optimizer.backward(run(X)))


@pytest.mark.parametrize("at", ["activations", "module", "nested"])
def test_a_common_decoder_is_refused_where_it_is_run_ahead_of_the_backward(at):
    net = Common()
    net.decoder.compile(backend="aot_eager")
    trained_plainly(net, net)
    optimizer = weighted(net, net.trunk if at == "module" else at)
    z = net.trunk(X)
    losses = [*net.heads([net.decoder(z)] * 3)[:2], z.square().mean()]  # one reads it below the decoder
    if at == "nested":
        optimizer.backward(losses)  # runs each node once
    else:
        assert_refused(net, optimizer, losses)


@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_one_that_asks_to_retain_the_graph_is_refused_where_it_cannot_be(at):
    net, run, _ = compiled_for_one_backward(trunk)
    assert_refused(net, weighted(net, at), run(X), retain_graph=True)


def test_rows_that_are_asked_for_by_name_are_refused_too():
    net, run, _ = compiled_for_one_backward(trunk)
    losses = run(X)
    with pytest.raises(RuntimeError, match="donated_buffer = False"):
        per_loss_gradients(losses, list(net.trunk.parameters()))
    sum(losses).backward()  # nothing was freed
    rows = per_loss_gradients(run(X), [head[0].weight for head in net.heads.all])
    assert all(row is not None for row in rows)  # the trunk is not run


@pytest.mark.parametrize("at", ["parameters", "activations"])
def test_blocks_of_one_class_in_trunk_and_heads_share_their_compiled_code_and_are_right(at):
    """The pass over the heads, which frees them, would compile the trunk's backward for one use."""

    class Blocks(nn.Module):
        def __init__(self, backend=None):
            super().__init__()
            torch.manual_seed(0)
            self.all = nn.ModuleList(Layers(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(5))
            for block in self.all[1:] if backend else ():
                block.compile(backend=backend)

        def forward(self, x):
            z = self.all[1](self.all[0](x))  # the first has an input that needs no gradient, so another graph
            return [block(z).sub(i).square().mean() for i, block in enumerate(self.all[2:])]

    eager, compiled = Blocks(), Blocks("aot_eager")
    for net in (eager, compiled):
        optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=1), at=at)
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.step(net(X))
    for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_torch_says_of_donated_buffers_is_said_in_our_words_where_it_could_not_be_seen(monkeypatch):
    monkeypatch.setattr(alive, "donates", lambda node: False)
    net, run, optimizer = compiled_for_one_backward(whole)
    with pytest.raises(RuntimeError, match=r"donated_buffer = False` before the model is compiled"):
        optimizer.backward(run(X))
    assert all(p.grad is None for p in net.parameters())
