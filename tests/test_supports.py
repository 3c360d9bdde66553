"""Who reaches what is a matter of coordinates: losses and heads bundled in one tensor are as good as separate ones."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods import METHODS
from models import Twice
from torch import nn

import mtopt
from mtopt import GradDrop, MultiLossOptimizer, per_loss_gradients
from mtopt._graph.loss_graph import LossGraph, edge_of
from mtopt._graph.sites import _told_apart, beside_shared
from mtopt._graph.supports import _join, connected
from mtopt._torch import variable_of

# -- bundled heads and losses ------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A trunk and three heads."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 16)
        self.heads = nn.ModuleList(nn.Linear(16, 2) for _ in range(3))

    def outputs(self):
        torch.manual_seed(1)
        features = self.trunk(torch.randn(12, 5)).tanh()
        return [head(features) for head in self.heads]

    def losses(self, outputs):
        return [(out - i).square().mean() * 3.0**i for i, out in enumerate(outputs)]


def filled_columns(outputs):
    """LibMTL and others fill a tensor in place."""
    tensor = torch.zeros(len(outputs[0]), 2 * len(outputs))
    for i, out in enumerate(outputs):
        tensor[:, 2 * i : 2 * i + 2] = out
    return list(tensor.split(2, 1))


def permuted(outputs):
    tensor = torch.stack(outputs, 1).permute(2, 0, 1).contiguous().view(2, -1, 3)
    return [tensor[..., i].t() for i in range(3)]


HEADS = {
    "cat, slices": lambda outputs: [torch.cat(outputs, 1)[:, 2 * i : 2 * i + 2] for i in range(3)],
    "cat, split": lambda outputs: list(torch.cat(outputs, 1).split(2, 1)),
    "cat, chunk": lambda outputs: list(torch.cat(outputs, 1).chunk(3, 1)),
    "cat, index": lambda outputs: [torch.cat(outputs, 1)[:, torch.tensor([2 * i, 2 * i + 1])] for i in range(3)],
    "cat of a cat": lambda outputs: list(torch.cat([torch.cat(outputs[:2], 1), outputs[2]], 1).split(2, 1)),
    "stack, unbind": lambda outputs: list(torch.stack(outputs).unbind()),
    "stack, select": lambda outputs: [torch.stack(outputs, 1)[:, i] for i in range(3)],
    "filled in place": filled_columns,
    "permuted": permuted,
    "scaled": lambda outputs: [part / 2 for part in (2 * torch.cat(outputs, 1)).split(2, 1)],
    "times weights": lambda outputs: list(
        (torch.stack(outputs) * torch.tensor([1.0, 1.0, 1.0]).view(3, 1, 1)).unbind()
    ),
}


def filled(losses):
    vector = torch.zeros(len(losses))
    for i, loss in enumerate(losses):
        vector[i] = loss
    return vector


LOSSES = {
    "stack": torch.stack,
    "stack times weights": lambda losses: torch.stack(losses) * torch.ones(len(losses)),
    "cat": lambda losses: torch.cat([loss.view(1) for loss in losses]),
    "filled in place": filled,
    "unbound": lambda losses: list(torch.stack(losses).unbind()),
    "halves of a cat": lambda losses: torch.cat([torch.stack(losses[:2]), losses[2].view(1)]),
    "sum of a matrix": lambda losses: torch.diag_embed(torch.stack(losses)).sum(1),
}


def gradients(net, losses, method, at):
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), method(), at=at)
    optimizer.backward(losses)
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("at", ["activations", "parameters", "nested", "all parameters"])
@pytest.mark.parametrize("bundle", HEADS)
def test_bundled_heads_give_what_separate_ones_give(bundle, at):
    for name in ("PCGrad", "MGDA", "GradDrop"):
        net = Net()
        expected = gradients(net, net.losses(net.outputs()), METHODS[name], at)
        net = Net()
        ours = gradients(net, net.losses(HEADS[bundle](net.outputs())), METHODS[name], at)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("at", ["activations", "parameters"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_bundled_heads_as_separate_ones(name, at):
    net = Net()
    expected = gradients(net, net.losses(net.outputs()), METHODS[name], at)
    net = Net()
    ours = gradients(net, net.losses(HEADS["cat, slices"](net.outputs())), METHODS[name], at)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("at", ["activations", "parameters", "nested"])
@pytest.mark.parametrize("bundle", LOSSES)
def test_bundled_losses_give_what_a_list_of_them_gives(bundle, at):
    net = Net()
    expected = gradients(net, net.losses(net.outputs()), METHODS["UPGrad"], at)
    net = Net()
    ours = gradients(net, LOSSES[bundle](net.losses(net.outputs())), METHODS["UPGrad"], at)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("bundle", HEADS)
def test_a_bundled_head_is_exclusive_to_its_loss(bundle):
    net = Net()
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=0), at="parameters")
    optimizer.backward(net.losses(HEADS[bundle](net.outputs())))
    assert "2 shared by several losses" in optimizer.explain()
    assert "6 exclusive" in optimizer.explain()


def test_bundled_heads_at_a_site_still_take_one_backward(monkeypatch):
    net, calls = Net(), []
    losses = net.losses(HEADS["cat, slices"](net.outputs()))
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=0))
    optimizer.backward(losses, retain_graph=True)  # the first step looks at the rows once
    real = torch.autograd.grad
    monkeypatch.setattr("torch.autograd.grad", lambda *args, **settings: calls.append(1) or real(*args, **settings))
    optimizer.backward(losses)
    assert not calls


def test_a_loss_that_reads_two_bundled_heads_shares_one_of_them():
    """Columns overlap: the first head is shared by two losses, the second belongs to one."""
    net = Net()
    one, two, _ = net.outputs()
    bundle = torch.cat([one, two], 1)
    losses = [bundle[:, :2].square().mean(), (bundle - 1).square().mean()]
    rows = per_loss_gradients(losses, [*net.heads[0].parameters(), *net.heads[1].parameters()], retain_graph=True)
    expected = [torch.autograd.grad(loss, list(net.heads[0].parameters()), retain_graph=True) for loss in (
        one.square().mean(), (torch.cat([one, two], 1) - 1).square().mean()
    )]  # fmt: skip
    for row, pair in zip(rows[:2], zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(row, torch.stack(pair))
    assert all(not row[0].any() and row[1].any() for row in rows[2:])


@pytest.mark.parametrize("bundled", [False, True])
def test_columns_behind_an_unknown_operation_are_told_apart_by_rows_also_where_the_losses_are_bundled(bundled):
    layer = nn.Linear(5, 4)
    optimizer = MultiLossOptimizer(torch.optim.SGD(layer.parameters(), lr=0.1))
    out = Twice.apply(layer(torch.randn(12, 5)))
    losses = [out[:, :2].square().mean(), out[:, 2:].square().mean()]
    if bundled:
        losses = list(torch.cat([loss.view(1) for loss in losses]).split(1))
    with pytest.raises(RuntimeError, match="read different parts"):
        optimizer.step(losses)


def test_a_part_of_which_nothing_is_read_leads_nowhere():
    layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(5))
    optimizer = MultiLossOptimizer(torch.optim.SGD(layers.parameters(), lr=0.1))
    one, other = (layer(torch.randn(12, 5)).tanh() for layer in layers[:2])
    top = torch.stack([one, other]).unbind()[0].exp()
    losses = [layers[2](top).square().mean(), layers[3](top).sin().mean(), layers[4](other).mean()]
    with pytest.warns(RuntimeWarning, match=r"losses\[2\]` shares no number"):
        optimizer.backward(losses)
    assert "output of Exp (12, 5): losses 0, 1" in optimizer.explain()


def test_an_entry_of_a_vector_that_depends_on_nothing_is_refused():
    net = Net()
    vector = torch.zeros(3)
    vector[0], vector[2] = net.losses(net.outputs())[:2]
    with pytest.raises(ValueError, match=r"`losses\[1\]` does not require grad"):
        MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1)).backward(vector)
    assert all(p.grad is None for p in net.parameters())


# -- against autograd itself -------------------------------------------------------------------------------------------

X = torch.arange(24.0).reshape(4, 6)
OPERATORS = [
    lambda x: x[1:3], lambda x: x[:, 2], lambda x: x.t(), lambda x: x.flip(0), lambda x: x.roll(1, 0),
    lambda x: x.reshape(-1)[3:15].reshape(3, 4), lambda x: torch.cat([x, 2 * x]), lambda x: torch.stack([x, x * x])[0],
    lambda x: x.split(2)[1], lambda x: x.unbind(1)[3], lambda x: x[torch.tensor([0, 2])], lambda x: x * x + 1,
    lambda x: x.masked_fill(torch.arange(x.shape[-1]) < 2, 0.0),
    lambda x: x.gather(0, torch.zeros(1, x.shape[1]).long()),
    lambda x: torch.nn.functional.pad(x, (1, 1)), lambda x: x.expand(2, *x.shape), lambda x: x.sin().exp(),
    lambda x: x.index_put((torch.tensor([0]),), torch.zeros(())), lambda x: x.tril(), lambda x: x.unfold(0, 2, 1),
    lambda x: torch.where(x > 0, x, torch.zeros_like(x)), lambda x: x.take(torch.tensor([0, 3])),
    lambda x: x.diagonal(),
    lambda x: x.sum(0), lambda x: x.cumsum(0), lambda x: x.softmax(-1), lambda x: x.double().relu(),
]  # fmt: skip


@given(st.lists(st.lists(st.integers(0, len(OPERATORS) - 1), max_size=4), min_size=1, max_size=3))
def test_a_loss_reaches_every_coordinate_at_which_it_has_a_gradient(chains):
    """Never less than the truth: what structure says a loss does not reach has gradient zero there."""
    leaf = X.clone().requires_grad_()
    x = leaf + 0.5
    losses = []
    for chain in chains:
        y = x
        for i in chain:
            with suppress(IndexError, RuntimeError):  # it does not fit this shape
                y = OPERATORS[i](y) if y.ndim == 2 else y
        losses.append((y * torch.arange(1, 1 + y.numel()).reshape(y.shape)).sum())
    graph = LossGraph([edge_of(loss) for loss in losses])
    if graph.states is None:
        return
    state = graph.states[edge_of(x)]
    for i, loss in enumerate(losses):
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        support = state.get(i, torch.zeros_like(x, dtype=torch.bool))
        assert support is None or not (gradient != 0)[~support].any()


@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=6))
def test_groups_are_the_connected_components(parts):
    """Against merging sets until nothing changes."""
    parts = [part for part in parts if part]
    state = {i: torch.tensor([k in part for k in range(8)]) for i, part in enumerate(parts)}
    groups = [{i} for i in range(len(parts))]
    changed = True
    while changed:
        changed = False
        for a in groups:
            for b in groups:
                if a is not b and any(parts[i] & parts[j] for i in a for j in b):
                    groups = [g for g in groups if g is not a and g is not b] + [a | b]
                    changed = True
                    break
            if changed:
                break
    assert sorted(map(sorted, connected(state))) == sorted(map(sorted, groups))


def test_everywhere_overlaps_with_everything():
    part = torch.tensor([True, False])
    assert connected({0: None, 1: part, 2: ~part}) == [{0, 1, 2}]
    assert sorted(map(sorted, connected({0: part, 1: ~part}))) == [[0], [1]]
    assert mtopt


def test_where_a_loss_comes_by_several_ways_it_reaches_what_each_of_them_reaches():
    first, second = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    state = {0: first, 1: None, 2: first}
    _join(state, {0: second, 1: second, 2: None, 3: second})
    assert torch.equal(state[0], first | second)
    assert state[1] is state[2] is None
    assert torch.equal(state[3], second)


@pytest.mark.parametrize(("masks", "firsts"), [([0b11, 0b01], [1, 0]), ([0b111, 0b011, 0b001], [2, 1, 0])])
def test_sets_of_losses_within_each_other_are_told_apart(masks, firsts):
    assert [_told_apart(masks)[mask] for mask in masks] == firsts


def test_a_parameter_of_one_loss_is_beside_a_shared_one_where_both_are_in_one_operation():
    shared, one, other, scale = (torch.randn(3, 3, requires_grad=True) for _ in range(4))
    x = torch.randn(3, 3)
    losses = [torch.addmm(one, x, shared).sum(), (torch.addmm(other, x, shared).tanh() * scale).sum()]
    found = beside_shared(LossGraph([edge_of(loss) for loss in losses]), lambda node: True)
    assert {id(variable_of(node)) for node in found} == {id(one), id(other)}
