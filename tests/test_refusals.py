"""Bad input: a clear error that names the argument and the way out, and nothing has changed."""

from __future__ import annotations

import copy

import pytest
import torch
from models import Stops
from torch import nn
from torch.nn import functional as F

import mtopt
from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer
from mtopt._torch import HOOKS_CAN_BE_SEEN


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x):
        features = self.trunk(x)
        return self.a(features).square().mean(), self.b(features).square().mean()


class Counter(mtopt.LossWeighting):
    """A stateful weighting, to see whether a refused backward moved it."""

    def __init__(self) -> None:
        self.calls = 0

    def weights(self, losses):
        self.calls += 1
        return torch.ones(len(losses))

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state_dict):
        self.calls = state_dict["calls"]


@pytest.fixture(params=["activations", "parameters", "module"])
def at(request):
    return request.param


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def optimizer(net, at):
    site = net.trunk if at == "module" else at
    return MultiLossOptimizer(torch.optim.Adam(net.parameters()), [Counter(), GradDrop(seed=0)], at=site)


class Unchanged:
    """Asserts that what is inside raises, with the given words, and changes nothing."""

    def __init__(self, optimizer, error, match) -> None:
        self.optimizer = optimizer
        self.raises = pytest.raises(error, match=match)

    def snapshot(self):
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        states = [t.state_dict() for t in self.optimizer.transforms]
        gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
        return copy.deepcopy([gradients, [p.detach().clone() for p in parameters], states])

    def __enter__(self):
        self.before = self.snapshot()
        return self.raises.__enter__()

    def __exit__(self, *error):
        caught = self.raises.__exit__(*error)
        assert str(self.before) == str(self.snapshot())
        return caught


def seen_early(optimizer, error, match):
    """As `Unchanged`; but before torch 2.9 a graph does not tell ahead of its backward that it cannot be used."""
    return Unchanged(optimizer, error, match) if HOOKS_CAN_BE_SEEN else pytest.raises(error, match=match)


X = torch.ones(3, 4)

LOSSES = {
    "empty list": (lambda net: [], ValueError, "`losses` is empty"),
    "empty dict": (lambda net: {}, ValueError, "`losses` is empty"),
    "all absent": (lambda net: [None, None], ValueError, "every loss is None"),
    "empty tensor": (lambda net: net.trunk(X).flatten()[:0], ValueError, "`losses` is empty"),
    "scalar tensor": (lambda net: net(X)[0], ValueError, "`losses` must be a list, a dict or a 1-D tensor"),
    "matrix": (lambda net: net.trunk(X), ValueError, "`losses` must be a list, a dict or a 1-D tensor"),
    "number": (lambda net: 3.0, TypeError, "`losses` must be a list, a dict or a 1-D tensor, but it is float"),
    "string": (lambda net: "loss", TypeError, "but it is str"),
    "not scalar": (
        lambda net: [net(X)[0], net.trunk(X)],
        ValueError,
        r"`losses\[1\]` must be a scalar.*\(3, 4\).*mean",
    ),
    "not scalar, named": (lambda net: {"a": net.trunk(X)}, ValueError, r"`losses\['a'\]` must be a scalar"),
    "not a tensor": (lambda net: [net(X)[0], 1.0], TypeError, r"`losses\[1\]` must be a tensor, but it is float"),
    "names": (lambda net: {1: net(X)[0]}, TypeError, "strings as names"),
    "no grad": (lambda net: [net(X)[0], net(X)[1].detach()], ValueError, r"`losses\[1\]` does not require grad"),
    "constant": (lambda net: [net(X)[0], torch.tensor(1.0)], ValueError, r"`losses\[1\]` does not require grad"),
    "no grad, stacked": (
        lambda net: torch.stack([net(X)[0], net(X)[1].detach()]),
        ValueError,
        r"`losses\[1\]` does not require grad",
    ),
    "no grad, vector": (lambda net: torch.ones(3), ValueError, "`losses` does not require grad"),
    "integer": (lambda net: [net(X)[0], torch.tensor(1)], TypeError, r"`losses\[1\]` must be a real floating-point"),
    "complex": (lambda net: [net(X)[0] * 1j, net(X)[1]], TypeError, r"`losses\[0\]` must be a real floating-point"),
    "twice": (
        lambda net: [(loss := net(X)[0]), loss],
        ValueError,
        r"`losses\[1\]` is the same tensor as `losses\[0\]`",
    ),
    "twice, stacked": (lambda net: torch.stack([(loss := net(X)[0]), loss]), ValueError, "same loss twice"),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("method", ["backward", "step"])
def test_losses(optimizer, net, name, method):
    make, error, match = LOSSES[name]
    losses = make(net)
    with Unchanged(optimizer, error, match):
        getattr(optimizer, method)(losses)


def test_a_freed_graph(optimizer, net, at):
    losses = net(X)
    optimizer.backward(losses)
    with seen_early(optimizer, RuntimeError, "graph that an earlier backward pass has freed"):
        optimizer.backward(losses)
    fresh = net(X)
    sum(fresh).backward()
    with seen_early(optimizer, RuntimeError, "graph that an earlier backward pass has freed"):
        optimizer.backward(fresh)


def test_a_retained_graph_goes_twice(optimizer, net):
    losses = net(X)
    optimizer.backward(losses, retain_graph=True)
    optimizer.backward(losses)


def test_a_graph_spoiled_in_place(optimizer, net):
    features = net.trunk(X).sigmoid()
    losses = [net.a(features).square().mean(), net.b(features).square().mean()]
    with torch.no_grad():
        features.add_(1)
    with seen_early(optimizer, RuntimeError, "`losses` cannot be differentiated.*inplace"):
        optimizer.backward(losses)


def test_losses_that_share_nothing(net, at):
    other = Net()
    site = [net.trunk, other.trunk] if at == "module" else at
    parameters = [*net.parameters(), *other.parameters()]
    optimizer = MultiLossOptimizer(torch.optim.SGD(parameters, lr=0.1), GradDrop(seed=0), at=site)
    match = "share no parameter" if at == "parameters" else "never meet at one tensor"
    with Unchanged(optimizer, RuntimeError, match):
        optimizer.backward([net(X)[0], other(X)[1]])


@pytest.mark.parametrize(
    "split",
    [
        pytest.param(lambda z: (z[:2], z[2:]), id="slices"),
        pytest.param(lambda z: z.split([2, 1]), id="split"),
        pytest.param(lambda z: (z[torch.tensor([0, 2])], z[torch.tensor([1])]), id="indices"),
        pytest.param(
            lambda z: (z[torch.tensor([True, False, True])], z[torch.tensor([False, True, False])]), id="masks"
        ),
        pytest.param(lambda z: (z[0], z[1]), id="select"),
        pytest.param(lambda z: (z.index_select(0, torch.tensor([0])), z.index_select(0, torch.tensor([1]))), id="pick"),
        pytest.param(lambda z: z.unbind()[:2], id="unbind"),
    ],
)
@pytest.mark.parametrize("at", ["activations", "module"])
def test_losses_of_different_parts_of_a_batch(net, split, at):
    optimizer = MultiLossOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=0), at=net.trunk if at == "module" else at
    )
    one, two = split(net.trunk(X))
    with Unchanged(optimizer, RuntimeError, "(never meet at one tensor|read different parts).*MultiLossLayer"):
        optimizer.backward([net.a(one).square().mean(), net.b(two).square().mean()])


def test_overlapping_parts_are_fine(net):
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1))
    z = net.trunk(X)
    optimizer.backward([net.a(z[:2]).square().mean(), net.b(z[1:]).square().mean()])
    assert "output of Addmm (3, 4)" in optimizer.explain()


# -- the named module --


def test_a_module_that_was_not_called(net):
    idle = nn.Linear(2, 2)
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), at=idle)
    with Unchanged(optimizer, RuntimeError, "named by `at`.*not called in this step"):
        optimizer.backward(net(X))


def test_a_module_called_without_grad(net):
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), at=net.trunk)
    with torch.no_grad():
        features = net.trunk(X)
    with Unchanged(optimizer, RuntimeError, "not called in this step"):
        optimizer.backward([net.a(features).mean(), net.b(features).square().mean()])


def test_a_loss_that_does_not_reach_the_module(net):
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), at=net.trunk)
    a, _ = net(X)
    with Unchanged(optimizer, ValueError, r"`losses\[far\]` does not reach the module named by `at`"):
        optimizer.backward({"a": a, "far": net.b(X).square().mean()})


def test_a_module_without_a_float_output():
    class Pick(nn.Module):
        def forward(self, x):
            return x.argmax(-1)

    pick = Pick()
    optimizer = MultiLossOptimizer(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), at=pick)
    with pytest.raises(TypeError, match="`at` names Pick, but its output has no floating-point tensor"):
        pick(X)
    assert optimizer.at == [pick]


def test_calls_with_batches_of_their_own_need_marginalize(net):
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), at=net.trunk)
    with Unchanged(optimizer, RuntimeError, "never meet.*marginalize=0"):
        optimizer.backward([net(X)[0], net(2 * X)[1]])


def test_a_marginalized_activation_changed_in_place(net):
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(marginalize=0), at=net.trunk)
    features = F.relu(net.trunk(X), inplace=True)
    with Unchanged(optimizer, RuntimeError, "changed in place"):
        optimizer.backward([net.a(features).mean(), net.b(features).square().mean()])


def test_marginalizing_over_a_dim_that_is_not_there(net):
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(marginalize=2), at=net.trunk)
    with Unchanged(optimizer, ValueError, "`marginalize` names dim 2, but the activation has only 2 dims"):
        net(X)


def test_a_complex_site():
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = MultiLossOptimizer(torch.optim.SGD([weight], lr=0.1))
    z = weight * 2
    with Unchanged(optimizer, TypeError, "dtype torch.complex64, whose gradients have no sign"):
        optimizer.backward([z.abs().sum(), z.real.square().sum()])


def test_sparse_gradients_at_parameters():
    table = nn.Embedding(5, 3, sparse=True)
    at_activations = MultiLossOptimizer(torch.optim.SparseAdam(table.parameters()))
    with Unchanged(at_activations, TypeError, "parameter with sparse gradients"):
        at_activations.backward([table(torch.tensor([0, 1])).sum(), table(torch.tensor([1])).square().sum()])
    optimizer = MultiLossOptimizer(torch.optim.SparseAdam(table.parameters()), at="parameters", chunk_size=1)
    z = table(torch.tensor([0, 1]))
    with Unchanged(optimizer, TypeError, 'sparse gradients.*at="activations"'):
        optimizer.backward([z.sum(), z.square().sum()])


def test_a_layer_inside_the_model(net, at):
    share = MultiLossLayer(2)
    site = net.trunk if at == "module" else at
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), at=site)
    a, b = share(net.trunk(X))
    with Unchanged(optimizer, RuntimeError, r"has a MultiLossLayer.*transforms=\[\]"):
        optimizer.backward([net.a(a).mean(), net.b(b).square().mean()])


def test_a_function_that_returns_none_where_the_losses_meet():
    net = Net()
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1))
    z = net.trunk(X)
    first = Stops.apply(z)
    losses = [first, z.square().mean(), z.abs().mean()]
    with pytest.raises(RuntimeError, match="returned None"):
        optimizer.backward(losses)


# -- construction --


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "match"),
    [
        ((nn.Linear(1, 1),), {}, TypeError, "`inner` must be a torch.optim.Optimizer, but it is Linear"),
        ((None, "graddrop"), {}, TypeError, r"`transforms\[0\]` must be"),
        ((None, [GradDrop(), 3]), {}, TypeError, r"`transforms\[1\]` must be"),
        ((None, [GradDrop]), {}, TypeError, "Call it to make one"),
        ((None, [GradDrop(), Counter()]), {}, ValueError, r"`transforms\[1\]` weights the losses.*front"),
        ((None,), {"at": "heads"}, ValueError, "`at` must be .*'heads'"),
        ((None,), {"at": 3}, TypeError, "`at` must be"),
        ((None,), {"at": []}, ValueError, "`at` is empty"),
        ((None,), {"at": [nn.Linear(1, 1), "trunk"]}, TypeError, r"`at\[1\]` must be a module"),
        ((None,), {"chunk_size": 0}, ValueError, "`chunk_size` must be"),
        ((None,), {"chunk_size": True}, ValueError, "`chunk_size` must be"),
        ((None, GradDrop(marginalize=0)), {}, ValueError, "`marginalize` needs the activation"),
        ((None, GradDrop(marginalize=0)), {"at": "parameters"}, ValueError, "`marginalize` needs the activation"),
    ],
    ids=str,
)
def test_construction(arguments, settings, error, match):
    inner = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1) if arguments[0] is None else arguments[0]
    with pytest.raises(error, match=match):
        MultiLossOptimizer(inner, *arguments[1:], **settings)


def test_wrapping_twice():
    inner = MultiLossOptimizer(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1))
    with pytest.raises(TypeError, match="already"):
        MultiLossOptimizer(inner)


@pytest.mark.parametrize(
    ("leak", "losses", "match"),
    [
        ([0.0], "list", "`leak` has 1 values for 2 losses"),
        ({"c": 1.0}, "dict", r"`leak` names \['c'\], but the losses are \['a', 'b'\]"),
        ({"a": 1.0}, "list", "the losses have no names"),
    ],
)
def test_leaks_that_do_not_fit_the_losses(net, at, leak, losses, match):
    site = net.trunk if at == "module" else at
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), [Counter(), GradDrop(leak=leak)], at=site)
    given = dict(zip("ab", net(X), strict=True)) if losses == "dict" else net(X)
    with Unchanged(optimizer, ValueError, match):
        optimizer.backward(given)


def test_a_checkpoint_of_other_transforms(net):
    optimizer = MultiLossOptimizer(torch.optim.Adam(net.parameters()), [Counter(), GradDrop(seed=0)])
    other = MultiLossOptimizer(torch.optim.Adam(net.parameters()))
    with Unchanged(optimizer, ValueError, "state of 1 transforms, but there are 2"):
        optimizer.load_state_dict(other.state_dict())


# -- per_loss_gradients --


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        ([3.0], TypeError, r"`inputs\[0\]` must be a tensor"),
        ([torch.ones(2)], ValueError, r"`inputs\[0\]` does not require grad"),
    ],
    ids=str,
)
def test_inputs_of_per_loss_gradients(net, inputs, error, match):
    with pytest.raises(error, match=match):
        mtopt.per_loss_gradients(net(X), inputs)


def test_a_compiled_model_is_not_passed_over_in_silence(net):
    compiled = torch.compile(net, backend="aot_eager")
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1))
    with Unchanged(optimizer, RuntimeError, "never meet.*MultiLossLayer"):
        optimizer.backward(compiled(X))
    torch.compiler.reset()
