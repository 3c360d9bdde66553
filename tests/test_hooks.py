"""A user's hooks on tensors and parameters: never with None, each row through each hook once, and told once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mtopt import GradDrop, MultiLossOptimizer, RowTransform

PLAIN = GradDrop(leak=1.0)  # the rows are added up as they are


class Net(nn.Module):
    """A stem, a skip around the trunk, a decoder that all losses share, heads."""

    def __init__(self, n_losses, skip, decoder):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.trunk, self.decoder = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(n_losses))
        self.skip, self.decodes = skip, decoder
        self.double()

    def forward(self, hook=None, on=("stem", "trunk", "decoder")):
        x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
        early = self.hooked(self.stem(x).tanh(), hook, "stem" in on)
        deep = self.hooked(self.trunk(early), hook, "trunk" in on)
        if self.decodes:
            deep = self.hooked(self.decoder(deep.tanh()), hook, "decoder" in on)
        deep = deep.sin()
        return [
            (head(deep + early if self.skip and i % 2 == 0 else deep) - i).square().mean()
            for i, head in enumerate(self.heads)
        ]

    @staticmethod
    def hooked(z, hook, here):
        if hook is not None and here:
            z.register_hook(hook)
        return z


NETS = [(2, False, False), (2, False, True), (3, True, False), (5, False, False), (5, True, True)]


def wrapped(net, at, transforms=PLAIN, **settings):
    return MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), copy.deepcopy(transforms), at=at, **settings)


def sum_of_rows(losses, parameters):
    """What each loss's own backward gives, hooks included."""
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    return [
        None if all(g is None for g in gs) else sum(g for g in gs if g is not None) for gs in zip(*rows, strict=True)
    ]


def assert_gradients(net, expected):
    for p, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def reverse(gradient):
    return -2 * gradient


def reverse_in_place(gradient):
    return gradient.mul_(-2)


def clamp(gradient):
    return gradient.clamp(-0.01, 0.01)


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("hook", [reverse, reverse_in_place, clamp])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_hooks_on_activations_see_each_row_once_at_parameters(net, hook, chunk_size):
    net = Net(*net)
    parameters = list(net.parameters())
    expected = sum_of_rows(net(reverse if hook is reverse_in_place else hook), parameters)
    wrapped(net, "parameters", chunk_size=chunk_size).backward(net(hook))
    assert_gradients(net, expected)


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("site", ["stem", "trunk"])
def test_a_hook_that_reverses_gradients_does_so_once_wherever_the_rows_are_taken(net, site):
    net = Net(*net)
    for at in ("parameters", "activations", getattr(net, site)):
        for on in ("stem", "trunk", "decoder"):
            net.zero_grad()
            optimizer = wrapped(net, at)
            losses = net(reverse, on)
            expected = torch.autograd.grad(sum(losses), list(net.parameters()), retain_graph=True, allow_unused=True)
            optimizer.backward(losses)
            assert_gradients(net, expected)


class Kept(RowTransform):
    """The plain sum, which keeps the rows that it was given."""

    def transform(self, rows, site):
        self.rows = rows
        return rows


def test_rows_at_a_named_module_are_combined_behind_the_hooks_on_its_output():
    net = Net(2, False, True)
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), Kept(), at=net.trunk)
    outputs = []
    net.trunk.register_forward_hook(lambda module, args, output: outputs.append(output))
    losses = net(clamp, ("trunk",))
    rows = [torch.autograd.grad(loss, outputs, retain_graph=True)[0] for loss in losses]
    assert max(row.abs().max() for row in rows) == 0.01
    optimizer.backward(losses, retain_graph=True)
    torch.testing.assert_close(optimizer.transforms[0].rows, torch.stack(rows))
    torch.testing.assert_close(net.trunk.bias.grad, sum(rows).sum(0))


@pytest.mark.parametrize("n_losses", [2, 5])
@pytest.mark.parametrize("at", ["parameters", "activations", "module"])
@pytest.mark.parametrize("net", [(False, False), (True, False), (False, True)], ids=["plain", "skip", "decoder"])
def test_a_hook_never_sees_none(at, net, n_losses):
    net, seen = Net(n_losses, *net), []
    optimizer = wrapped(net, net.trunk if at == "module" else at, GradDrop())
    optimizer.backward(net(lambda gradient: seen.append(gradient)))
    assert seen
    assert all(isinstance(gradient, torch.Tensor) for gradient in seen)


# -- hooks on parameters -----------------------------------------------------------------------------------------------


class Direct(nn.Module):
    """Each loss has a forward of its own: they meet at the parameters themselves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self):
        return [(self.net(torch.full((3, 4), float(i + 1))) - i).square().mean() for i in range(3)]


@pytest.mark.parametrize(
    "make", [Direct, lambda: Net(5, False, False), lambda: Net(3, True, True)], ids=["direct", "plain", "skip"]
)
def test_hooks_on_parameters_run_once_for_each_loss_at_parameters_and_that_is_told_once(make):
    net = make()
    parameters, calls = list(net.parameters()), []
    for p in parameters:
        p.register_hook(clamp)
        p.register_hook(lambda gradient: calls.append(gradient))
    losses = net()
    reached = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    expected = sum_of_rows(losses, parameters)
    calls.clear()
    optimizer = wrapped(net, "parameters")
    with pytest.warns(RuntimeWarning, match="once for each loss") as told:
        optimizer.backward(losses)
    assert len(told) == 1
    assert_gradients(net, expected)
    assert len(calls) == sum(gradient is not None for row in reached for gradient in row)
    assert all(isinstance(gradient, torch.Tensor) for gradient in calls)
    optimizer.backward(net())  # told once


@pytest.mark.parametrize("at", ["activations", "module"])
def test_hooks_on_parameters_are_told_nothing_where_they_run_on_the_sum(at):
    net = Net(3, False, True)
    for p in net.parameters():
        p.register_hook(clamp)
    wrapped(net, net.trunk if at == "module" else at).backward(net())
    assert all(p.grad is None or p.grad.abs().max() <= 0.01 for p in net.parameters())


def test_hooks_on_a_head_are_told_nothing():
    net = Net(2, False, False)
    net.heads[0].weight.register_hook(clamp)
    wrapped(net, "parameters").backward(net())
    assert net.heads[0].weight.grad.abs().max() <= 0.01
