"""Several inner optimizers on one model: one decision, a step of each; schedulers, scalers, checkpoints as with one."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from ranks import run_ranks
from torch import nn

import mtopt


class Net(nn.Module):
    """Matrices and vectors, and two losses on them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.LayerNorm(6))
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(2))

    def forward(self, step=0):
        features = self.trunk(torch.randn(8, 4, generator=torch.Generator().manual_seed(step)))
        return {"a": self.heads[0](features).square().mean(), "b": (self.heads[1](features) - 2).abs().mean()}


def two(net):
    """Another optimizer for matrices than for the rest."""
    matrices = [p for p in net.parameters() if p.ndim == 2]
    rest = [p for p in net.parameters() if p.ndim < 2]
    groups = [{"params": rest[:2], "lr": 1e-2}, {"params": rest[2:]}]
    first = torch.optim.Muon(matrices, lr=0.02) if hasattr(torch.optim, "Muon") else torch.optim.SGD(matrices, lr=0.02)
    return [first, torch.optim.AdamW(groups, lr=3e-3)]


def wrapped(net, transforms=None, at="activations"):
    made = mtopt.UPGrad() if transforms is None else transforms
    return mtopt.MultiLossOptimizer(two(net), made, at=at)


def same(net, other):
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("at", ["activations", "parameters", "all parameters"])
def test_each_takes_its_step_on_what_is_combined_over_the_parameters_of_all(at):
    net, other = Net(), Net()
    optimizer = wrapped(net, at=at)
    alone = two(other)
    everything = torch.optim.SGD(other.parameters(), lr=0.0)
    judge = mtopt.MultiLossOptimizer(everything, mtopt.UPGrad(), at=at)  # whose gradients both take
    for step in range(3):
        optimizer.zero_grad()
        optimizer.step(net(step))
        judge.zero_grad()
        judge.backward(other(step))
        for each in alone:
            each.step()
        same(net, other)
    assert "inner optimizer: [" in optimizer.explain()
    assert "AdamW], which takes the step" in optimizer.explain()


def test_the_plain_sum_is_the_program_without_us():
    net, other = Net(), Net()
    optimizer, alone = wrapped(net, []), two(other)
    for step in range(3):
        optimizer.zero_grad()
        optimizer.step(net(step))
        for each in alone:
            each.zero_grad()
        sum(other(step).values()).backward()
        for each in alone:
            each.step()
        same(net, other)


def test_a_scheduler_may_have_all_of_them_or_one():
    net = Net()
    optimizer = wrapped(net)
    first, second = optimizer.inner.optimizers
    rates = [group["lr"] for group in optimizer.param_groups]
    all_of_them = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    of_one = torch.optim.lr_scheduler.StepLR(first, 1, 0.1)
    optimizer.step(net())
    all_of_them.step()
    assert [group["lr"] for group in optimizer.param_groups] == [rate / 2 for rate in rates]
    of_one.step()
    assert first.param_groups[0]["lr"] == pytest.approx(rates[0] / 20)
    assert [group["lr"] for group in second.param_groups] == [rate / 2 for rate in rates[1:]]


def test_a_grad_scaler_skips_the_step_of_all():
    net, before = Net(), Net()
    optimizer = wrapped(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        optimizer.backward({name: scaler.scale(loss * factor) for name, loss in net().items()})
        scaler.step(optimizer)
        scaler.update()
        if factor != 1:
            same(net, before)
    judge = wrapped(before)
    judge.step(before())
    for p, q in zip(net.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_resumed_run_goes_on_to_the_last_bit():
    net = Net()
    optimizer = wrapped(net, mtopt.PCGrad(seed=1), "parameters")
    for step in range(3):
        optimizer.zero_grad()
        optimizer.step(net(step))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    other = Net()
    resumed = wrapped(other, mtopt.PCGrad(seed=1), "parameters")
    other.load_state_dict(kept["net"])
    resumed.load_state_dict(kept["optimizer"])
    copied, copied_net = copy.deepcopy((optimizer, net))
    pickled, pickled_net = pickle.loads(pickle.dumps((optimizer, net)))
    for step in range(3, 6):
        for each, model in ((optimizer, net), (resumed, other), (copied, copied_net), (pickled, pickled_net)):
            each.zero_grad()
            each.step(model(step))
        same(net, other)
        same(net, copied_net)
        same(net, pickled_net)


def test_a_state_that_does_not_fit_changes_nothing():
    net = Net()
    optimizer = wrapped(net)
    optimizer.step(net())
    before = copy.deepcopy(optimizer.state_dict())
    wrong = copy.deepcopy(before)
    wrong["param_groups"][-1]["params"] = wrong["param_groups"][-1]["params"][1:]
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(wrong)
    fewer = {**before, "param_groups": before["param_groups"][:1]}
    with pytest.raises(ValueError, match="`state_dict` has 1 parameter groups, but the optimizers have 3"):
        optimizer.load_state_dict(fewer)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, kept in before["state"].items():
        for name, value in kept.items():
            found = after["state"][number][name]
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def test_hooks_run_once_a_step():
    net = Net()
    optimizer, seen = wrapped(net), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step(net())
    assert seen == ["before", "after"]


def test_a_closure_is_evaluated_once():
    net, calls = Net(), []
    optimizer = wrapped(net)

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        return net()

    value = optimizer.step(closure)
    assert len(calls) == 1
    assert value.item() == pytest.approx(sum(loss.item() for loss in Net()().values()))


def test_what_does_not_go_together_is_refused():
    net = Net()
    first, second = two(net)
    with pytest.raises(ValueError, match=r"`inner\[1\]` has a parameter of shape \(6, 4\) that `inner\[0\]` has, too"):
        mtopt.MultiLossOptimizer([first, torch.optim.SGD(net.parameters(), lr=0.1)])
    with pytest.raises(TypeError, match=r"`inner\[1\]` must be a torch.optim.Optimizer, but it is"):
        mtopt.MultiLossOptimizer([first, net])
    with pytest.raises(TypeError, match=r"`inner\[0\]` is LBFGS, which evaluates the losses several times"):
        mtopt.MultiLossOptimizer([torch.optim.LBFGS(net.heads.parameters()), second])
    with pytest.raises(TypeError, match="`inner` is a MultiLossOptimizer already"):
        mtopt.MultiLossOptimizer([mtopt.MultiLossOptimizer(first), second])
    with pytest.raises(ValueError, match="`inner` is empty"):
        mtopt.MultiLossOptimizer([])
    with pytest.raises(TypeError, match=r'`metric="inner"` knows SGD'):
        mtopt.MultiLossOptimizer([first, second], mtopt.UPGrad(), at="parameters", metric="inner")
    with pytest.raises(TypeError, match=r"`add_param_group` does not know which of \w+, AdamW shall have the group"):
        mtopt.MultiLossOptimizer([first, second]).add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def in_ddp(rank, n_ranks):
    net = Net()
    model = nn.parallel.DistributedDataParallel(net) if n_ranks > 1 else net
    optimizer = wrapped(net, at="parameters")
    for step in range(2):
        optimizer.zero_grad()
        if n_ranks > 1:
            optimizer.step(model(10 * step + rank))
        else:
            parts = [net(10 * step), net(10 * step + 1)]
            optimizer.step({name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]})
    return [p.tolist() for p in net.parameters()]


def test_two_ranks_at_parameters_count_the_parameters_of_all():
    first, second = run_ranks(in_ddp, 2, 2)
    assert first == second
    for found, expected in zip(first, in_ddp(0, 1), strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-5)
