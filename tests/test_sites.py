"""Named sites: marginalized decisions, joint ones over several calls, and the life of the marks."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from models import Fails
from torch import nn

from mtopt import GradDrop, MultiLossOptimizer, sign_dropout
from mtopt._draws import Draws


class Net(nn.Module):
    def __init__(self, n_losses: int = 2) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(n_losses))
        self.double()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def batch(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wrapped(net, at=None, **settings):
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    return MultiLossOptimizer(inner, GradDrop(seed=5, **settings), at=net.trunk if at is None else at)


def drawn(shape) -> torch.Tensor:
    """The first draw of a GradDrop with seed 5."""
    return torch.rand(shape, dtype=torch.float64, generator=Draws(5).next(torch.device("cpu")))


def assert_trunk_gradient(net, activation, combined) -> None:
    expected = torch.autograd.grad(activation, list(net.trunk.parameters()), combined)
    for p, gradient in zip(net.trunk.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_a_marginalized_decision_uses_the_sign_of_the_activation(net):
    optimizer = wrapped(net, marginalize=0)
    z = net.trunk(batch())
    losses = [head(z).square().mean() for head in net.heads]
    rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses])
    optimizer.backward(losses, retain_graph=True)
    combined = sign_dropout(rows, uniform=drawn((1, 5)), activation=z.detach(), marginalize=0)
    assert not torch.equal(combined, rows.sum(0))
    assert_trunk_gradient(net, z, combined)
    assert "within" not in optimizer.explain()


@pytest.mark.parametrize("sizes", [(6, 6), (6, 4)])
def test_calls_on_a_batch_of_each_task_are_decided_jointly(net, sizes):
    """One forward per task: like one forward on both batches, each loss reading its part."""
    optimizer = wrapped(net, marginalize=0)
    batches = [batch(n, seed=i) for i, n in enumerate(sizes)]
    optimizer.backward([head(net.trunk(x)).square().sum() for head, x in zip(net.heads, batches, strict=True)])

    z = net.trunk(torch.cat(batches))
    parts = z.split(sizes)
    losses = [head(part).square().sum() for head, part in zip(net.heads, parts, strict=True)]
    rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses])
    combined = sign_dropout(rows, uniform=drawn((1, 5)), activation=z.detach(), marginalize=0)
    assert_trunk_gradient(net, z, combined)
    assert "after VJPs" in optimizer.explain()


def test_parts_of_a_concatenated_batch_are_decided_jointly(net):
    ours, theirs = wrapped(net, marginalize=0), wrapped(net, marginalize=0)
    one, two = net.trunk(batch(8)).split([3, 5])
    ours.backward([net.heads[0](one).square().sum(), net.heads[1](two).square().sum()])
    together = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    parts = batch(8).split([3, 5])
    theirs.backward([head(net.trunk(x)).square().sum() for head, x in zip(net.heads, parts, strict=True)])
    for p, gradient in zip(net.parameters(), together, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_the_report_counts_the_examples_of_all_calls_that_are_decided_jointly(net):
    optimizer = wrapped(net, marginalize=0)
    optimizer.backward([head(net.trunk(batch(n))).mean() for head, n in zip(net.heads, (3, 4), strict=True)])
    assert "2 calls decided together, laid end to end (7, 5)" in optimizer.explain()


def test_siamese_calls_that_both_losses_read_are_joint_when_marginalized(net):
    optimizer = wrapped(net, marginalize=0)
    u, v = net.trunk(batch(6, 0)), net.trunk(batch(6, 1))
    losses = [(u - v).square().sum(), (net.heads[0](u) + net.heads[1](v)).square().sum()]
    both = [torch.cat(torch.autograd.grad(loss, [u, v], retain_graph=True)) for loss in losses]
    optimizer.backward(losses, retain_graph=True)
    activation = torch.cat([u, v])
    combined = sign_dropout(torch.stack(both), uniform=drawn((1, 5)), activation=activation.detach(), marginalize=0)
    assert_trunk_gradient(net, activation, combined)


def test_outputs_of_other_modules_are_decided_on_their_own(net):
    """Same shape, but not the same module: two decisions."""
    optimizer = wrapped(net, at=[net.trunk[0], net.trunk[1]], marginalize=0)
    z = net.trunk(batch())
    optimizer.backward([head(z).square().mean() for head in net.heads])
    assert optimizer.explain().count("(6, 5)") == 2
    assert optimizer.transforms[0].state_dict()["draws"]["count"] == 2


def test_nested_sites_both_get_the_true_rows(net):
    """The deeper site takes its rows from the losses, not from what the upper one has made of them."""
    always_positive = {"keep": torch.ones_like}
    optimizer = wrapped(net, at=[net.trunk[0], net.trunk[1]], **always_positive)
    early = net.trunk[0](batch())
    z = net.trunk[1](early)
    losses = [head(z).square().mean() for head in net.heads]
    rows = torch.stack([torch.autograd.grad(loss, early, retain_graph=True)[0] for loss in losses])
    optimizer.backward(losses, retain_graph=True)
    expected = torch.autograd.grad(early, list(net.trunk[0].parameters()), rows.clamp_min(0).sum(0))
    for p, gradient in zip(net.trunk[0].parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize("output", ["tuple", "dict", "nested"])
def test_every_tensor_of_an_output_is_a_site(output):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x):
            u, v, n = self.a(x), self.b(x), torch.tensor(7)
            return {"tuple": (u, v, n), "dict": {"u": u, "v": v, "n": n}, "nested": [(u,), {"v": v}, n]}[output]

    two = Two()
    optimizer = MultiLossOptimizer(torch.optim.SGD(two.parameters(), lr=0.1), at=two)
    made = two(torch.randn(6, 4))
    u, v = torch.utils._pytree.tree_leaves(made)[:2]
    optimizer.backward([u.square().mean() + v.sum(), u.sin().sum() - v.square().mean()])
    assert "(6, 3): losses 0, 1" in optimizer.explain()
    assert "(6, 2): losses 0, 1" in optimizer.explain()


def test_a_forward_without_a_backward_leaves_nothing(net):
    optimizer = wrapped(net, marginalize=0)
    z = net.trunk(batch())
    gone = weakref.ref(z)
    del z
    gc.collect()
    assert gone() is None
    assert optimizer.transforms


def test_the_hook_goes_with_the_optimizer(net):
    optimizer = wrapped(net)
    assert len(net.trunk._forward_hooks) == 1
    del optimizer
    gc.collect()
    assert len(net.trunk._forward_hooks) == 0


def test_two_optimizers_may_name_one_module(net):
    first, second = wrapped(net), wrapped(net)
    z = net.trunk(batch())
    losses = [head(z).square().mean() for head in net.heads]
    first.backward(losses, retain_graph=True)
    once = [p.grad.clone() for p in net.parameters()]
    second.backward(losses)
    for p, gradient in zip(net.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * gradient)


def test_backward_hooks_are_gone_afterwards(net):
    """The graph after a retained backward behaves like an untouched one."""
    optimizer = wrapped(net)
    z = net.trunk(batch())
    losses = [head(z).square().mean() for head in net.heads]
    plain = torch.autograd.grad(sum(losses), list(net.parameters()), retain_graph=True)
    optimizer.backward(losses, retain_graph=True)
    again = torch.autograd.grad(sum(losses), list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_hooks_are_gone_after_an_error_too(net):
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1))
    z = net.trunk(batch())
    losses = [net.heads[0](z).square().mean(), net.heads[1](Fails.apply(z)).square().mean()]
    with pytest.raises(ArithmeticError, match="on purpose"):
        optimizer.backward(losses, retain_graph=True)
    clean = torch.autograd.grad(losses[0], z, retain_graph=True)[0]
    assert clean.abs().sum() > 0


def test_a_module_may_make_the_loss_itself():
    """The site is the loss: its row there is 1, beside what the other loss sends."""

    class Loss(nn.Module):
        def forward(self, x):
            return x.square().mean()

    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    module = Loss()
    inner = torch.optim.SGD([x], lr=0.1)
    for transform, expected in ((GradDrop(keep=torch.ones_like), 1.0), (GradDrop(keep=torch.zeros_like), -2.0)):
        optimizer = MultiLossOptimizer(inner, transform, at=module)
        optimizer.zero_grad()
        first = module(x)
        optimizer.backward([first, -2 * first])
        torch.testing.assert_close(x.grad, expected * 2 * x.detach() / 3)
        optimizer.zero_grad()
        first = module(x)
        joined = first * 1
        optimizer.backward([first, joined + joined.exp() * 0, -2 * joined])
        torch.testing.assert_close(x.grad, (2.0 if expected > 0 else -2.0) * 2 * x.detach() / 3)


def test_a_long_report_is_cut_short():
    w = [nn.Parameter(torch.ones(2)) for _ in range(12)]
    optimizer = MultiLossOptimizer(torch.optim.SGD(w, lr=0.1), at="parameters")
    optimizer.backward([sum(p.sum() for p in w), sum(p.square().sum() for p in w)])
    assert "... and 4 more" in optimizer.explain()
