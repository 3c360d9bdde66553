"""Losses that are declared by name: a step may have any of them, and one may come late, also to what keeps a state."""

from __future__ import annotations

import pytest
import torch
from methods import METHODS, after_step
from torch import nn

import mtopt

NAMES = ("a", "b", "c")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 6)
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in NAMES})

    def forward(self, names=NAMES, step=0):
        features = self.trunk(torch.randn(8, 4, generator=torch.Generator().manual_seed(step))).tanh()
        return {name: (self.heads[name](features) - 1).square().mean() for name in names}


def optimizer_of(net, transforms, **settings):
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    return mtopt.MultiLossOptimizer(inner, transforms, at="parameters", **settings)


def same(net, other):
    assert all(map(torch.equal, net.parameters(), other.parameters()))


SHORT = {"Krum"}  # which wants as many losses in each step


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SHORT])
def test_a_dict_of_some_is_a_dict_with_none_for_the_others(name):
    """Whatever the method keeps: `c` comes late, in another order, and `b` leaves for a while."""
    net, other = Net(), Net()
    ours, theirs = METHODS[name](), METHODS[name]()
    optimizer, plain = optimizer_of(net, ours, losses=NAMES), optimizer_of(other, theirs)
    for step, present in enumerate(["ab", "ba", "ca", "cba", "a", "abc"]):
        optimizer.zero_grad()
        losses = net(present, step)
        optimizer.step(losses)
        plain.zero_grad()
        expected = dict.fromkeys(NAMES) | other(present, step)
        plain.step(expected)
        same(net, other)
        if len(present) == 3 and name != "FAMO":  # whose `observe` wants the losses as they were given
            after_step([ours], [losses[n] for n in NAMES])
            after_step([theirs], [expected[n] for n in NAMES])


def test_it_holds_for_what_is_gathered_for_totals_and_for_closures():
    net, other = Net(), Net()
    optimizer, plain = (optimizer_of(m, mtopt.GradientNorms(), losses=NAMES) for m in (net, other))
    optimizer.gather(net("c"))
    optimizer.gather(net("a"))
    optimizer.step()
    plain.step(other("ca"))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    net.load_state_dict(other.state_dict())
    optimizer.zero_grad()
    mtopt.total(optimizer, net("cb")).backward()
    plain.zero_grad()
    plain.backward(other("bc"))
    same(
        nn.ParameterList([p.grad for p in net.trunk.parameters()]),
        nn.ParameterList([p.grad for p in other.trunk.parameters()]),
    )

    def closure():
        weighted.zero_grad()
        return third("cb")

    third = Net()
    weighted = optimizer_of(third, mtopt.ConstantWeights({"b": 2.0, "c": 5.0}), losses=NAMES)
    parts = {name: loss.item() for name, loss in third("bc").items()}
    assert weighted.step(closure).item() == pytest.approx(2 * parts["b"] + 5 * parts["c"])


def test_without_a_declaration_a_late_loss_is_refused_with_the_way_out():
    net = Net()
    optimizer = optimizer_of(net, mtopt.GradientNorms())
    optimizer.step(net("ab"))
    with pytest.raises(ValueError, match="declare all names"):
        optimizer.step(net("abc"))


def test_wrong_names_are_refused_and_change_nothing():
    net = Net()
    with pytest.raises(TypeError, match="`losses` must be a list of the losses' names, but it is 'ab'"):
        optimizer_of(net, mtopt.UPGrad(), losses="ab")
    with pytest.raises(TypeError, match="`losses` must be a list of the losses' names"):
        optimizer_of(net, mtopt.UPGrad(), losses=[1, 2])
    with pytest.raises(ValueError, match="one name or more, and each once"):
        optimizer_of(net, mtopt.UPGrad(), losses=["a", "a"])
    with pytest.raises(ValueError, match="one name or more"):
        optimizer_of(net, mtopt.UPGrad(), losses=[])
    optimizer = optimizer_of(net, mtopt.UPGrad(), losses=["a", "b"])
    with pytest.raises(ValueError, match=r"`losses` has 'c', which is none of the optimizer's names, \['a', 'b'\]"):
        optimizer.step(net("ac"))
    with pytest.raises(TypeError, match="`losses` must be a dict, as the optimizer was given names"):
        optimizer.step(list(net("ab").values()))
    same(net, Net())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["AdaHessian", "SophiaH"])
def test_an_optimizer_of_second_order_is_refused_by_name(name):
    package = pytest.importorskip("pytorch_optimizer")
    with pytest.raises(TypeError, match=rf"`inner` is {name}, which differentiates gradients again"):
        mtopt.MultiLossOptimizer(getattr(package, name)(Net().parameters()))
