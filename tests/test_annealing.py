"""Learning-rate annealing: the largest gradient of the residual, over the mean ones of the others."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from torch import nn

import mtopt

NAMES = ("residual", "left", "right")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2))

    def forward(self, step=0, names=NAMES, size=6):
        x = torch.randn(size, 3, generator=torch.Generator().manual_seed(step))
        out = self.layers(x)
        losses = {"residual": 9 * (out.sin().sum(1) - 1).square().mean(), "left": out[:, 0].square().mean()}
        losses["right"] = 0.1 * (out[:, 1] - 2).abs().mean()
        return {name: losses[name] for name in names}


def optimizer_of(net, method, at="all parameters", lr=0.05):
    return mtopt.MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=lr), method, at=at)


def rows_of(net, losses):
    parameters = list(net.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses.values()]
    dense = [[torch.zeros_like(p) if g is None else g for g, p in zip(row, parameters, strict=True)] for row in rows]
    return [nn.utils.parameters_to_vector(row) for row in dense]


@pytest.mark.parametrize(("average", "period"), [(0.1, 1), (0.5, 2), (1.0, 1)])
def test_weights_are_the_paper_s_step_by_step(average, period):
    net, weights = Net(), [1.0, 1.0, 1.0]
    optimizer = optimizer_of(net, mtopt.Annealing(residual="residual", average=average, period=period))
    for step in range(5):
        rows = rows_of(net, net(step))
        if step % period == 0:
            largest = rows[0].abs().max().item()
            for i, row in enumerate(rows[1:], 1):
                weights[i] = average * weights[i] + (1 - average) * largest / row.abs().mean().item()
        optimizer.zero_grad()
        optimizer.backward(net(step))
        found = torch.cat([p.grad.flatten() for p in net.parameters()])
        expected = sum(w * row for w, row in zip(weights, rows, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        optimizer.step()


@pytest.mark.parametrize(
    ("residual", "own"), [(2, ["right"]), ("right", ["right"]), (["left", "right"], ["left", "right"])]
)
def test_the_residual_may_be_any_loss_or_several(residual, own):
    net, method = Net(), mtopt.Annealing(residual=residual, average=0.0)
    optimizer_of(net, method).backward(net())
    rows = dict(zip(NAMES, rows_of(net, net()), strict=True))
    own = {2: ["right"], "right": ["right"]}.get(
        residual if isinstance(residual, (int, str)) else None, ["left", "right"]
    )
    largest = max(float(rows[name].abs().max()) for name in own)
    expected = [1.0 if name in own else largest / float(rows[name].abs().mean()) for name in NAMES]
    torch.testing.assert_close(method.averaged.numbers, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


def test_a_gradient_of_zeros_and_an_absent_residual_leave_weights_as_they_are():
    net, method = Net(), mtopt.Annealing(average=0.0, period=1)
    optimizer = optimizer_of(net, method)
    optimizer.backward({**net(), "left": 0 * net()["left"]})
    first = method.averaged.numbers.clone()
    assert first[1] == 1
    assert first[2] > 1
    optimizer.backward({**net(3), "residual": None})
    assert torch.equal(method.averaged.numbers, first)


def test_a_scale_of_the_gradients_is_none_of_the_weights():
    net, other = Net(), Net()
    optimizer = optimizer_of(net, mtopt.Annealing())
    optimizer.backward({name: 1024.0 * loss for name, loss in net().items()})
    optimizer_of(other, mtopt.Annealing()).backward(other())
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad / 1024, q.grad)


def test_a_resumed_run_goes_on_to_the_last_bit():
    net = Net()
    method = mtopt.Annealing(period=2)
    optimizer = optimizer_of(net, method)
    for step in range(3):
        optimizer.zero_grad()
        optimizer.step(net(step))
    other = Net()
    resumed = optimizer_of(other, mtopt.Annealing(period=2))
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    for step in range(3, 6):
        for each, model in ((optimizer, net), (resumed, other)):
            each.zero_grad()
            each.step(model(step))
    assert all(map(torch.equal, net.parameters(), other.parameters()))


@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_it_works_at_every_site_and_behind_other_methods(at):
    net = nn.ModuleDict({"trunk": nn.Linear(3, 4), "a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
    optimizer = optimizer_of(net, [mtopt.Annealing(period=1), mtopt.UPGrad()], at)
    for _ in range(3):
        features = net["trunk"](torch.randn(5, 3)).tanh()
        optimizer.zero_grad()
        optimizer.step([net["a"](features).square().mean(), 1e-3 * net["b"](features).square().mean()])
    assert optimizer.transforms[0].averaged.numbers[1] > 1


def test_another_method_may_be_around_it():
    net, other = Net(), Net()
    around = mtopt.CRMOGM(mtopt.Annealing(average=0.0), average=0.0)
    optimizer_of(net, around).backward(net())
    optimizer_of(other, mtopt.Annealing(average=0.0)).backward(other())
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_wrong_settings_are_refused():
    with pytest.raises(TypeError, match="`residual` must be the index or name"):
        mtopt.Annealing(residual=-1)
    with pytest.raises(ValueError, match="`average` must be between 0 and 1"):
        mtopt.Annealing(average=2)
    net = Net()
    with pytest.raises(ValueError, match="`residual` names 'pde', but the losses are"):
        optimizer_of(net, mtopt.Annealing(residual="pde")).backward(net())


def in_ranks(rank, n_ranks, at):
    net = Net()
    model = nn.parallel.DistributedDataParallel(net) if n_ranks > 1 else net
    optimizer = optimizer_of(net, mtopt.Annealing(period=1), at)
    for step in range(2):
        optimizer.zero_grad()
        if n_ranks > 1:
            losses = model(10 * step + rank)
        else:
            parts = [net(10 * step), net(10 * step + 1)]
            losses = {name: (parts[0][name] + parts[1][name]) / 2 for name in NAMES}
        optimizer.step(losses)
    return [p.tolist() for p in net.parameters()]


def test_two_ranks_are_one_process():
    first, second = run_ranks(in_ranks, 2, 2, "parameters")
    assert first == second
    for found, expected in zip(first, in_ranks(0, 1, "parameters"), strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_two_ranks_agree_at_activations():
    first, second = run_ranks(in_ranks, 2, 2, "activations")
    assert first == second
