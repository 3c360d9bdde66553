"""From the third step on a backward looks at the top of the graph alone: right, whatever changes between the steps."""

from __future__ import annotations

import threading

import pytest
import torch
from programs import Program
from test_fuzz import OneLength, Prevailing
from torch import nn
from torch.utils.checkpoint import checkpoint

import mtopt
from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer
from mtopt._backward.known import FORMS, LARGE
from mtopt._graph import loss_graph
from mtopt._graph.loss_graph import LossGraph, edge_of
from mtopt._graph.recall import RecalledTop, can_be_recalled
from mtopt._graph.sites import final_sites
from mtopt._graph.walk import _below, _by_counting, all_below, top_below
from mtopt._torch import AccumulateGrad, variable_of

# -- the walk ----------------------------------------------------------------------------------------------------------


def roots_of(seed):
    losses = list(Program(seed)())
    return [edge_of(loss) for loss in losses] if len(losses) > 1 else None


@pytest.mark.parametrize("seed", range(60))
def test_the_top_is_part_of_the_whole_with_the_same_losses_and_all_of_them_reach_what_is_left(seed):
    roots = roots_of(seed)
    if roots is None:
        return
    _, _, edges, reach, ordered = all_below(roots)
    top, of_top = top_below(roots)
    assert ordered
    everyone = (1 << len(roots)) - 1
    for node, children in top.items():
        if type(node) is AccumulateGrad:
            assert of_top[node] & ~reach[node] == 0
        else:
            assert of_top[node] == reach[node]
            assert children == edges[node] or (children == () and reach[node] == everyone)
    assert all(reach[node] == everyone for node in edges if node not in top and type(node) is not AccumulateGrad)


@pytest.mark.parametrize("seed", range(20))
def test_counting_parents_finds_what_the_numbers_say(seed):
    roots = roots_of(seed)
    if roots is not None:
        _, _, edges, reach, _ = all_below(roots)
        counted, of_counted = _by_counting(roots, _below(roots, lambda node: node.next_functions))
        assert (dict(counted), of_counted) == (edges, reach)


def test_a_top_takes_no_longer_where_the_trunk_is_deeper():
    sizes = []
    for depth in (2, 50):
        trunk = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.Tanh())))
        features = trunk(torch.randn(3, 4))
        top, _ = top_below([edge_of(nn.Linear(4, 1)(features).mean()) for _ in range(3)])
        sizes.append(len(top))
    assert sizes[0] == sizes[1]


def in_a_thread(function, *args):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()
    thread.join()
    return results[0]


def test_a_graph_of_two_threads_is_walked_to_its_end():
    trunk, first, second = (nn.Linear(4, 4) for _ in range(3))
    for _ in range(50):
        torch.zeros(1, requires_grad=True) * 2  # this thread's numbers are ahead
    features = trunk(torch.randn(3, 4)).tanh()
    losses = [in_a_thread(lambda: first(features).square().mean()), second(features).sin().mean()]
    graph = LossGraph([edge_of(loss) for loss in losses])
    assert not graph.ordered
    assert LossGraph.top(graph.origins) is None
    counted = {node for node, reach in graph.reach.items() if reach == 0b11}
    assert features.grad_fn in counted


# -- steps of one optimizer, whose graph changes -----------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 6)
        self.a, self.b, self.c = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)
        self.share = MultiLossLayer(2)
        self.double()

    def features(self, n=7):
        torch.manual_seed(1)
        return self.second(self.first(torch.randn(n, 5, dtype=torch.float64)).tanh()).tanh()


def heads(net, a, b):
    return [net.a(a).square().mean(), net.b(b).sin().mean()]


def skip(net):
    torch.manual_seed(1)
    first = net.first(torch.randn(7, 5, dtype=torch.float64)).tanh()
    return heads(net, net.second(first).tanh(), first)


def penalty(net, factor=None):
    z = net.features()
    weights = net.c.weight if factor is None else net.c.weight * factor
    return [*heads(net, z, z), weights.square().sum()]


def frozen(net):
    net.second.requires_grad_(False)
    losses = (lambda z: heads(net, z, z))(net.features())
    net.second.requires_grad_(True)
    return losses


def with_input(net):
    torch.manual_seed(1)
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    z = net.second(x).tanh()
    return [net.a(z).square().mean() + x.square().sum(), net.b(z).sin().mean()]


def joined(net):
    z = net.features()
    common = net.c(z)
    return [common.square().mean(), common.sin().mean(), net.a(z).mean()]


def filled(net):
    z = net.features()
    vector = torch.zeros(2, dtype=torch.float64)
    for i, loss in enumerate(heads(net, z, z)):
        vector[i] = loss
    return vector


def of_threads(net):
    z = net.features()
    return [in_a_thread(lambda: net.a(z).square().mean()), net.b(z).sin().mean()]


SHAPES = {
    "heads": lambda net: (lambda z: heads(net, z, z))(net.features()),
    "other order": lambda net: (lambda z: heads(net, z, z)[::-1])(net.features()),
    "fewer examples": lambda net: (lambda z: heads(net, z, z))(net.features(3)),
    "another activation": lambda net: (lambda z: heads(net, z.relu(), z.relu()))(net.features()),
    "apart above": lambda net: (lambda z: heads(net, z.relu(), z.sigmoid()))(net.features()),
    "tied heads": lambda net: (lambda z: [net.a(z).square().mean(), net.a(z).sin().mean()])(net.features()),
    "a third": lambda net: (lambda z: [*heads(net, z, z), net.c(z).abs().mean()])(net.features()),
    "one is absent": lambda net: (lambda z: [net.a(z).square().mean(), None, net.c(z).abs().mean()])(net.features()),
    "columns": lambda net: (lambda o: [o[:, 0].square().mean(), o[:, 1:].sin().mean()])(net.a(net.features())),
    "two of one": lambda net: (lambda z: [net.a(z)[:, :2].square().mean(), net.b(z).sin().mean()])(net.features()),
    "checkpoint": lambda net: (lambda z: heads(net, z, z))(checkpoint(torch.tanh, net.features(), use_reentrant=False)),
    "skip": skip,
    "penalty": penalty,
    "penalty times numbers": lambda net: penalty(net, torch.arange(6, dtype=torch.float64)),
    "penalty times a number": lambda net: penalty(net, torch.tensor(2.0, dtype=torch.float64)),
    "frozen": frozen,
    "input": with_input,
    "common head": joined,
    "vector": filled,
    "threads": of_threads,
}


def gradients(net, optimizer, shape):
    net.zero_grad()
    optimizer.backward(SHAPES[shape](net))
    return [parameter.grad for parameter in net.parameters()]


def make(net, transform, at="activations"):
    return MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), transform, at=at)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("transform", "at"),
    [(lambda: [], "activations"), *((t, at) for t in (Prevailing, OneLength) for at in ("activations", "parameters"))],
    ids=["plain", "rows", "rows at parameters", "gramian", "gramian at parameters"],
)
@pytest.mark.parametrize("after", SHAPES)
def test_a_step_gives_what_it_would_as_the_first_one_whatever_came_before(after, transform, at):
    net = Net()
    expected = gradients(net, make(net, transform(), at), after)
    for before in SHAPES:
        optimizer = make(net, transform(), at)
        for shape in (before, before, before, after, after, before, after):
            found = gradients(net, optimizer, shape)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, msg=before)


def test_from_the_third_step_on_nobody_walks_the_whole_graph(monkeypatch):
    net = Net()
    optimizers = [make(net, GradDrop()), make(net, []), make(net, GradDrop(), "parameters")]
    for optimizer in optimizers:
        for _ in range(3):
            gradients(net, optimizer, "heads")
    monkeypatch.setattr(loss_graph, "all_below", None)
    for optimizer in optimizers:
        for _ in range(3):
            gradients(net, optimizer, "heads")
        assert "4 shared by several losses" in optimizer.explain()


def test_after_some_steps_the_whole_graph_is_looked_at_anew():
    net = Net()
    optimizer = make(net, GradDrop())
    for _ in range(3):
        gradients(net, optimizer, "heads")
    net.second.requires_grad_(False)
    for _ in range(70):
        gradients(net, optimizer, "heads")
    assert "2 shared by several losses" in optimizer.explain()


def test_no_more_than_some_forms_are_remembered():
    net = Net()
    optimizer = make(net, [])
    for i in range(100):
        z = net.features()
        optimizer.backward({f"a{i}": net.a(z).mean(), f"b{i}": net.b(z).mean()})
    assert len(optimizer._memory["known"]) <= FORMS


class Large(Prevailing):
    """A transform whose state is large."""

    def state_dict(self):
        return {"average": torch.zeros(LARGE + 1)}

    def load_state_dict(self, state_dict):
        raise AssertionError("it was not to be copied")


def test_no_copy_of_a_large_state_is_made():
    net = Net()
    optimizer = make(net, Large())
    for _ in range(4):
        gradients(net, optimizer, "heads")
    assert not any(known.small for known in optimizer._memory["known"].values())


class Shy(Prevailing):
    """A transform whose state cannot be had."""

    def state_dict(self):
        raise RuntimeError("none")


def test_a_transform_without_a_state_is_no_obstacle():
    net = Net()
    expected = gradients(net, make(net, Prevailing()), "heads")
    optimizer = make(net, Shy())
    for _ in range(4):
        found = gradients(net, optimizer, "heads")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# -- what fails is taken back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform", [GradDrop, lambda: [], lambda: [mtopt.DWA(), GradDrop()]], ids=["rows", "plain", "weighted"]
)
@pytest.mark.parametrize("spoil", ["freed", "changed in place"])
def test_a_step_that_fails_below_the_top_changes_nothing(spoil, transform):
    net = Net()
    optimizer = make(net, transform())
    for _ in range(4):
        gradients(net, optimizer, "heads")
    net.zero_grad()
    states = [str(one.state_dict()) for one in optimizer.transforms]
    first = net.first(torch.randn(7, 5, dtype=torch.float64)).exp()
    z = net.second(first).tanh()
    if spoil == "freed":
        first.sum().backward()
        net.zero_grad()
    else:
        first.data = first.data  # the same numbers
        with torch.no_grad():
            first.add_(1)
    match = "freed" if spoil == "freed" else "cannot be differentiated"
    with pytest.raises(RuntimeError, match=match):
        optimizer.backward(heads(net, z, z))
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [str(one.state_dict()) for one in optimizer.transforms] == states
    gradients(net, optimizer, "heads")


def test_a_layer_that_comes_into_the_trunk_later_is_refused():
    net = Net()
    optimizer = make(net, GradDrop())
    for _ in range(4):
        gradients(net, optimizer, "heads")
    net.zero_grad()
    one, other = net.share(net.first(torch.randn(7, 5, dtype=torch.float64)).tanh())
    z = net.second(one + other).tanh()
    with pytest.raises(RuntimeError, match="has a MultiLossLayer"):
        optimizer.backward(heads(net, z, z))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_gradients_that_are_there_are_added_to_after_a_look_at_the_whole_graph():
    net = Net()
    optimizer = make(net, Prevailing())
    for _ in range(3):
        once = gradients(net, optimizer, "heads")
    once = [None if grad is None else grad.clone() for grad in once]
    optimizer.backward(SHAPES["heads"](net))
    for parameter, grad in zip(net.parameters(), once, strict=True):
        assert grad is None or torch.equal(parameter.grad, 2 * grad)


# -- what is recalled --------------------------------------------------------------------------------------------------


def recalled(net, shape, is_parameter):
    graph = LossGraph.top([edge_of(loss) for loss in SHAPES[shape](net)])
    sites, _ = final_sites(graph, is_parameter)
    return graph, RecalledTop(graph, sites)


def test_the_sites_of_an_equal_top_are_found_again_and_of_another_they_are_not():
    net = Net()

    def is_parameter(leaf):
        return isinstance(variable_of(leaf), nn.Parameter)

    _, top = recalled(net, "heads", is_parameter)
    for shape in SHAPES:
        losses = [loss for loss in SHAPES[shape](net) if loss is not None]
        found = top.sites_in([edge_of(loss) for loss in losses], is_parameter) if len(losses) == 2 else None
        if shape in ("heads", "frozen", "threads"):  # alike as far as their heads go
            assert [site.shape for site in found] == [(7, 6)]
        else:
            assert found is None


def test_a_top_in_which_numbers_decide_is_not_recalled():
    net = Net()

    def is_parameter(leaf):
        return isinstance(variable_of(leaf), nn.Parameter)

    for shape, can in (("heads", True), ("penalty times a number", False), ("penalty times numbers", False)):
        graph, _ = recalled(net, shape, is_parameter)
        assert can_be_recalled(graph, is_parameter) == can


@pytest.mark.parametrize("together", [list, torch.stack], ids=["a list", "a vector"])
def test_a_plain_sum_that_is_known_is_one_backward_and_nothing_else(together, monkeypatch):
    net = nn.Linear(3, 2)
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), [])
    for step in range(6):
        if step == 4:
            monkeypatch.setattr("mtopt._optimizer.Backward", None)  # there is no look at the graph
        out = net(torch.randn(4, 3)).square().mean(0)
        expected = torch.autograd.grad(out.sum(), net.weight, retain_graph=True)[0]
        optimizer.zero_grad()
        optimizer.backward(together([out[0], out[1]]))
        torch.testing.assert_close(net.weight.grad, expected)
