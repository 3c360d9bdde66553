"""What the values of losses may be: NaN, at or below zero; what is refused, told, and passed on. In one process."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from methods import METHODS
from torch import nn
from torch.nn import functional as F

import mtopt

READING = [name for name, make in METHODS.items() if make().uses_values]


class Net(nn.Module):
    """A classifier of rare examples, and a regression on all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.rare, self.main = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def losses(self, n_rare):
        z = self.trunk(torch.randn(5, 6, generator=torch.Generator().manual_seed(n_rare))).tanh()
        rare = F.cross_entropy(self.rare(z)[:n_rare], torch.zeros(n_rare, dtype=torch.long))  # NaN where there is none
        return {"rare": rare, "main": self.main(z).square().mean() + 0.1, "third": z.square().mean() + 0.1}


def wrapped(net, method, at="activations"):
    return mtopt.MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), method, at=at)


@pytest.mark.parametrize("at", ["activations", "parameters"])
@pytest.mark.parametrize("name", READING)
def test_a_loss_that_is_nan_is_refused_where_values_are_read_with_nothing_changed(name, at):
    net, method = Net(), METHODS[name]()
    optimizer = wrapped(net, method, at)
    optimizer.step(net.losses(2))
    optimizer.zero_grad()
    before, weights = copy.deepcopy(method.state_dict()), copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"`losses\[rare\]` is NaN.*Give None for a loss that is absent"):
        optimizer.step(net.losses(0))
    assert repr(method.state_dict()) == repr(before)
    assert all(p.grad is None and torch.equal(p, weights[name]) for name, p in net.named_parameters())
    optimizer.step({**net.losses(0), "rare": None})
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in READING])
def test_a_loss_that_is_nan_without_a_gradient_is_nothing_to_a_method_that_reads_none(name):
    """As in the plain sum: the mean over no examples is NaN, its gradient is zero."""
    net = Net()
    optimizer = wrapped(net, METHODS[name]())
    optimizer.step(net.losses(0))
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", READING)
def test_a_loss_that_is_nan_is_left_to_a_grad_scaler(name):
    net, scaler = Net(), torch.amp.GradScaler("cpu")
    optimizer = wrapped(net, METHODS[name]())
    before = copy.deepcopy(net.state_dict())
    losses = net.losses(2)
    losses["rare"] = losses["rare"] * torch.nan
    optimizer.backward({name: scaler.scale(loss) for name, loss in losses.items()})
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("make", [mtopt.UncertaintyWeighting, mtopt.IMTLL])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_trained_weight_that_grows_without_bound_is_told_once(make, value):
    """Its objective has no least value there: the weight of the others settles."""
    weight, method = nn.Parameter(torch.ones(3)), make(lr=0.1)
    optimizer = wrapped(nn.ParameterList([weight]), method)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(100):
            optimizer.backward([weight.sum() * 0 + value, weight.square().sum() * 0 + 1])
    assert len(told) == 1
    assert f"`losses[0]` is {value:g}. At losses of 0 or below" in str(told[0].message)
    grown = method.trained.numbers.numbers[0] - make().start
    assert abs(float(grown)) > 5


@pytest.mark.parametrize("make", [mtopt.UncertaintyWeighting, mtopt.IMTLL])
def test_nothing_is_told_of_losses_above_zero(make):
    net = Net()
    wrapped(net, make()).step(net.losses(2))
