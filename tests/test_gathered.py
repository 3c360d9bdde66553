"""One decision over several backwards: as one call on everything."""

from __future__ import annotations

import copy

import pytest
import torch
from ranks import run_ranks
from torch import nn

import mtopt

NAMES = ("a", "b", "c")


class Net(nn.Module):
    """A trunk and a head for each of three losses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in NAMES})

    def forward(self, step=0, names=NAMES):
        random = torch.Generator().manual_seed(step)
        features = self.trunk(torch.randn(8, 4, generator=random))
        targets = torch.randn(8, len(NAMES), 1, generator=random)
        return {n: (self.heads[n](features) - targets[:, NAMES.index(n)]).square().mean() for n in names}


TRANSFORMS = {
    "UPGrad": lambda: mtopt.UPGrad(),
    "values": lambda: mtopt.GradNorm(),
    "a weighting": lambda: [mtopt.UncertaintyWeighting(), mtopt.ConFIG()],
    "coordinates": lambda: mtopt.GradDrop(seed=3),
    "histories": lambda: [mtopt.Momentum(), mtopt.IMTLG(), mtopt.Whitening(pairs=True)],
    "weights of before": lambda: mtopt.Every(mtopt.UPGrad(), steps=2),
    "the plain sum": list,
}
every_kind = pytest.mark.parametrize("kind", TRANSFORMS)


def optimizer_of(net, kind="UPGrad", at="parameters", **settings):
    return mtopt.MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), TRANSFORMS[kind](), at=at, **settings)


def same(net, other):
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("at", ["parameters", "all parameters"])
@every_kind
def test_losses_that_come_one_by_one_are_as_in_one_call(kind, at):
    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net, kind, at), optimizer_of(other, kind, at)
    for step in range(3):
        optimizer.zero_grad()
        for name in NAMES:
            optimizer.gather(net(step, [name]))
        optimizer.step()
        plain.zero_grad()
        plain.step(other(step))
        same(net, other)


@every_kind
def test_micro_batches_are_one_batch(kind):
    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net, kind), optimizer_of(other, kind)
    for step in range(3):
        optimizer.zero_grad()
        for part in range(4):
            optimizer.gather({name: loss / 4 for name, loss in net(4 * step + part).items()})
        optimizer.step()
        plain.zero_grad()
        parts = [other(4 * step + part) for part in range(4)]
        plain.step({name: sum(part[name] / 4 for part in parts) for name in NAMES})
        same(net, other)


def test_loaders_in_turn_may_bring_what_they_have():
    """Each loss some batches, another number of them in each step, in any order; also in a list."""
    net, other, third = Net(), Net(), Net()
    optimizer, plain, listed = map(optimizer_of, (net, other, third))
    for step, turns in enumerate(["abcab", "ccb", "ba", "a"]):
        optimizer.zero_grad()
        listed.zero_grad()
        totals = {}
        for i, name in enumerate(turns):
            optimizer.gather(net(10 * step + i, [name]))
            (loss,) = third(10 * step + i, [name]).values()
            listed.gather([loss if n == name else None for n in NAMES])
            (loss,) = other(10 * step + i, [name]).values()
            totals[name] = totals.get(name, 0) + loss
        optimizer.step()
        listed.step()
        plain.zero_grad()
        plain.step({name: totals.get(name) for name in NAMES})
        same(net, other)
        same(third, other)


def test_a_step_may_bring_the_last_losses():
    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net), optimizer_of(other)
    optimizer.gather(net(0, ["a"]))
    optimizer.step(net(0, ["b", "c"]))
    plain.step(other(0))
    same(net, other)


def test_a_decision_before_the_step_is_there_to_be_clipped():
    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net), optimizer_of(other)
    for name in NAMES:
        optimizer.gather(net(0, [name]))
    assert all(p.grad is None for p in net.parameters())
    optimizer.decide()
    plain.backward(other(0))
    norms = [nn.utils.clip_grad_norm_(model.parameters(), 0.1) for model in (net, other)]
    torch.testing.assert_close(*norms)
    optimizer.step()  # decides nothing again
    plain.step()
    same(net, other)


@pytest.mark.parametrize("kind", ["UPGrad", "values", "histories"])
def test_a_grad_scaler_scales_what_is_gathered(kind):
    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net, kind), optimizer_of(other, kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        optimizer.zero_grad()
        for part in range(2):
            optimizer.gather({name: scaler.scale(loss / 2) for name, loss in net(2 * step + part).items()})
        optimizer.decide()
        scaler.step(optimizer)
        scaler.update()
        plain.zero_grad()
        parts = [other(2 * step + part) for part in range(2)]
        plain.step({name: sum(part[name] / 2 for part in parts) for name in NAMES})
        same(net, other)


def test_an_overflow_in_one_part_skips_the_step():
    net = Net()
    optimizer, before = optimizer_of(net, "histories"), copy.deepcopy(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, float("inf")):
        optimizer.gather({name: scaler.scale(loss * factor) for name, loss in net().items()})
    optimizer.decide()
    scaler.step(optimizer)
    scaler.update()
    same(net, before)
    assert not optimizer.transforms[0].history.averages


def test_a_bias_beside_a_shared_weight_counts_as_in_one_call():
    """As in a physics-informed network, whose residual reads derivatives, and so no last bias."""

    def losses(net):
        features, last = net.trunk(torch.ones(3, 4)), net.heads["a"]
        return {"slope": (features @ last.weight.T - 1).square().mean(), "value": 3 * last(features).square().mean()}

    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net), optimizer_of(other)
    for name in ("slope", "value"):
        optimizer.gather({name: losses(net)[name]})
    optimizer.decide()
    plain.backward(losses(other))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(*(torch.zeros_like(r) if r.grad is None else r.grad for r in (p, q)))
    alone = Net()
    optimizer_of(alone).backward({k: v + 0 * alone.heads["a"].bias.sum() for k, v in losses(alone).items()})
    torch.testing.assert_close(alone.heads["a"].bias.grad, net.heads["a"].bias.grad)


def test_losses_bundled_in_one_output_leave_heads_to_their_losses():
    """A bundle hides who reaches what: autograd has zeros for what a loss does not reach."""

    def losses(net, step=0):
        features = net.trunk(torch.randn(8, 4, generator=torch.Generator().manual_seed(step)))
        columns = torch.cat([net.heads[name](features) for name in NAMES], 1)
        return {name: (columns[:, i] - i).square().mean() for i, name in enumerate(NAMES)}

    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net), optimizer_of(other)
    for step in range(3):
        optimizer.zero_grad()
        optimizer.gather({name: losses(net, step)[name] for name in "ab"})
        optimizer.gather({"c": losses(net, step)["c"]})
        optimizer.step()
        plain.zero_grad()
        plain.step(losses(other, step))
        same(net, other)


def test_a_decision_that_fails_may_be_made_again():
    net = Net()
    optimizer = optimizer_of(net)
    for name in NAMES:
        optimizer.gather({name: net.heads[name](torch.ones(2, 6)).square().mean()})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="share no parameter"):
            optimizer.step()
    assert all(p.grad is None for p in net.parameters())
    optimizer.gather(net())
    optimizer.step()


def test_zero_grad_drops_what_waits():
    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net), optimizer_of(other)
    optimizer.gather(net(7))
    optimizer.zero_grad()
    optimizer.step(net(0))
    plain.step(other(0))
    same(net, other)


def test_tensors_that_are_no_parameters_get_the_plain_sum():
    net, other = Net(), Net()
    optimizer = optimizer_of(net)
    inputs = [torch.ones(8, 4, requires_grad=True) for _ in range(2)]
    for model, x in zip((net, other), inputs, strict=True):
        features = model.trunk(x)
        losses = [head(features).square().mean() for head in model.heads.values()]
        if model is net:
            optimizer.gather(losses)
        else:
            sum(losses).backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_explain_and_a_monitor_see_one_decision():
    net = Net()
    optimizer = optimizer_of(net)
    monitor = mtopt.Monitor(optimizer)
    for name in NAMES:
        optimizer.gather(net(0, [name]))
    optimizer.step()
    assert len(monitor.history) == 1
    assert "losses: a, b, c" in optimizer.explain()
    assert "parameter (6, 4): losses a, b, c" in optimizer.explain()


def test_a_copy_has_nothing_that_waits():
    net = Net()
    optimizer = optimizer_of(net)
    optimizer.gather(net(0, ["a"]))
    copied, copied_net = copy.deepcopy((optimizer, net))
    copied.step(copied_net(1))
    other = Net()
    plain = optimizer_of(other)
    plain.step(other(1))
    same(copied_net, other)


def test_what_cannot_be_gathered_is_refused_and_nothing_waits():
    net = Net()
    with pytest.raises(ValueError, match=r'`gather` keeps gradients of parameters, but .* at="activations"'):
        optimizer_of(net, at="activations").gather(net())
    inner = torch.optim.LBFGS(net.parameters())
    with pytest.raises(ValueError, match="`gather` waits for one step, but LBFGS"):
        mtopt.MultiLossOptimizer(inner, mtopt.UPGrad(), at="parameters").gather(net())
    optimizer = optimizer_of(net)
    with pytest.raises(TypeError, match="`gather` got 2 arguments"):
        optimizer.gather(*list(net().values())[:2])
    optimizer.gather(net())
    with pytest.raises(ValueError, match="names in one call and none in another"):
        optimizer.gather(list(net().values()))
    with pytest.raises(RuntimeError, match=r"GradScaler multiplied these `losses` by 2.0, .* before by None"):
        optimizer.gather({name: loss * torch.tensor(2.0) for name, loss in net().items()})
    losses = net()
    sum(losses.values()).backward()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="freed"):
        optimizer.gather(losses)
    optimizer.step()
    same(net, Net())  # nothing waited


def in_turn(rank, n_ranks, no_sync):
    net = Net()
    model = nn.parallel.DistributedDataParallel(net) if n_ranks > 1 else net
    optimizer = optimizer_of(net, "histories")
    for step in range(2):
        optimizer.zero_grad()
        for part, name in enumerate(NAMES):
            for other in [rank] if n_ranks > 1 else range(2):
                losses = {
                    k: loss if n_ranks > 1 else loss / 2
                    for k, loss in model(100 * step + 10 * part + other, [name]).items()
                }
                if no_sync and n_ranks > 1 and part < 2:
                    with model.no_sync():
                        optimizer.gather(losses)
                else:
                    optimizer.gather(losses)
        optimizer.step()
    return [p.tolist() for p in net.parameters()]


@pytest.mark.parametrize("no_sync", [False, True])
def test_two_ranks_are_one_process(no_sync):
    first, second = run_ranks(in_turn, 2, 2, no_sync)
    assert first == second
    for found, expected in zip(first, in_turn(0, 1, no_sync), strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
