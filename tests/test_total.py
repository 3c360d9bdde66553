"""`mtopt.total`: a scalar whose backward is the optimizer's, in programs that own the backward."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from methods import METHODS
from ranks import run_ranks
from torch import nn

import mtopt

NAMES = ("a", "b", "c")


class Net(nn.Module):
    """A trunk and a head for each of three losses."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 6, dtype=dtype)
        self.heads = nn.ModuleDict({name: nn.Linear(6, 1, dtype=dtype) for name in NAMES})

    def forward(self, step=0):
        random = torch.Generator().manual_seed(step)
        features = self.trunk(torch.randn(8, 4, generator=random).to(self.trunk.weight)).tanh()
        return {name: (head(features) - 1).square().mean() for name, head in self.heads.items()}


def optimizer_of(net, transforms=None, at="activations", lr=0.1, **settings):
    made = mtopt.GradDrop(seed=3) if transforms is None else transforms
    return mtopt.MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=lr, **settings), made, at=at)


def gradients(net):
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]


def same(found, expected, *, exact=True):
    for a, b in zip(found, expected, strict=True):
        if exact:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b)


FORMS = {
    "dict": lambda losses: losses,
    "list": lambda losses: list(losses.values()),
    "tensor": lambda losses: torch.stack(list(losses.values())),
    "absent": lambda losses: {**losses, "b": None},
}
SITES = {
    "activations": lambda: (mtopt.GradDrop(seed=3), "activations"),
    "parameters": lambda: (mtopt.PCGrad(seed=3), "parameters"),
    "all parameters": lambda: ([mtopt.ConFIG(), mtopt.Whitening()], "all parameters"),
    "the plain sum": lambda: ([], "activations"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_its_backward_is_that_of_the_losses(form, site):
    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net, *site()), optimizer_of(other, *site())
    for step in range(3):
        for each in (optimizer, plain):
            each.zero_grad()
        losses, expected = form(net(step)), form(other(step))
        loss = mtopt.total(optimizer, losses)
        loss.backward()
        plain.backward(expected)
        same(gradients(net), gradients(other))
        given = expected.values() if isinstance(expected, dict) else expected
        assert loss.item() == pytest.approx(sum(loss.item() for loss in given if loss is not None))
        optimizer.step()
        plain.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [mtopt.NashMTL, mtopt.GradNorm, mtopt.UPGrad, mtopt.DBMTL])
def test_what_it_is_multiplied_by_multiplies_the_combined_gradient_alone(method, dtype):
    """Also of methods that know the scale of gradients and losses: these are told of neither."""
    net, other = Net(dtype), Net(dtype)
    optimizer, plain = optimizer_of(net, method(), "parameters"), optimizer_of(other, method(), "parameters")
    (mtopt.total(optimizer, net()) / 3).backward()
    plain.backward(other())
    exact = dtype == torch.float64 and method is mtopt.UPGrad  # the others see what float32 lacks of 1/3
    close = 1e-12 if exact else 1e-7 if dtype == torch.float64 else 1e-5
    for p, q in zip(net.trunk.parameters(), other.trunk.parameters(), strict=True):
        torch.testing.assert_close(3 * p.grad, q.grad, rtol=close, atol=close)
    for p, q in zip(net.heads.parameters(), other.heads.parameters(), strict=True):
        torch.testing.assert_close(3 * p.grad, q.grad, rtol=close, atol=close)


def test_a_program_that_accumulates_and_divides_gets_the_mean_of_what_each_batch_gives():
    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net), optimizer_of(other)
    for step in range(4):
        (mtopt.total(optimizer, net(step)) / 4).backward()
        plain.backward(other(step))
    same([4 * g for g in gradients(net)], gradients(other), exact=False)


def test_a_grad_scaler_goes_through_it():
    net, other = Net(), Net()
    optimizer = optimizer_of(net, mtopt.NashMTL(), "parameters")
    plain = optimizer_of(other, mtopt.NashMTL(), "parameters")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(mtopt.total(optimizer, net(step))).backward()
        scaler.step(optimizer)
        scaler.update()
        plain.zero_grad()
        plain.step(other(step))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_an_overflow_is_skipped_by_the_scaler():
    net = Net()
    optimizer, before = optimizer_of(net), [p.detach().clone() for p in net.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = net()
    scaler.scale(mtopt.total(optimizer, {**losses, "a": losses["a"] * float("inf")})).backward()
    scaler.step(optimizer)
    scaler.update()
    same([p.detach() for p in net.parameters()], before)
    assert scaler.get_scale() == 512.0


def test_the_plain_sum_is_the_unmodified_program_to_the_last_bit():
    net, other = Net(), Net()
    optimizer = optimizer_of(net, [], momentum=0.9)
    inner = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    for step in range(5):
        optimizer.zero_grad()
        (mtopt.total(optimizer, net(step)) / 3).backward()
        optimizer.step()
        inner.zero_grad()
        (sum(other(step).values()) / 3).backward()
        inner.step()
        same([p.detach() for p in net.parameters()], [p.detach() for p in other.parameters()])


def test_what_is_added_to_it_has_its_own_gradient():
    net, other = Net(), Net()
    optimizer, plain = optimizer_of(net), optimizer_of(other)
    penalty = 0.1 * net.trunk.weight.square().sum()
    (mtopt.total(optimizer, net()) + penalty).backward()
    plain.backward(other())
    expected = gradients(other)
    expected[0] = expected[0] + 0.2 * other.trunk.weight.detach()
    same(gradients(net), expected, exact=False)


def test_a_retained_graph_may_be_used_again_and_one_that_was_not_says_so():
    net = Net()
    optimizer = optimizer_of(net, mtopt.UPGrad(), "parameters")
    loss = mtopt.total(optimizer, net())
    loss.backward(retain_graph=True)
    once = gradients(net)
    loss.backward()
    same([2 * g for g in once], gradients(net), exact=False)
    with pytest.raises(RuntimeError, match=r"`mtopt.total` ran before.*retain_graph=True"):
        loss.backward()
    same([2 * g for g in once], gradients(net), exact=False)


def test_a_backward_to_be_differentiated_is_refused_before_anything_runs():
    net = Net()
    optimizer = optimizer_of(net)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated. Leave out create_graph=True"):
        mtopt.total(optimizer, net()).backward(create_graph=True)
    assert all(p.grad is None for p in net.parameters())


def test_where_no_gradients_are_computed_it_is_the_sum():
    net = Net()
    with torch.no_grad():
        loss = mtopt.total(optimizer_of(net), net())
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(sum(v.item() for v in net().values()))


def test_it_prints_as_a_number():
    net = Net()
    loss = mtopt.total(optimizer_of(net), net())
    assert f"{loss:.3f}" == f"{sum(v.item() for v in net().values()):.3f}"
    assert loss.shape == ()
    assert loss.requires_grad


def test_losses_are_checked_at_once():
    net = Net()
    optimizer = optimizer_of(net)
    with pytest.raises(ValueError, match=r"`losses\['a'\]`"):
        mtopt.total(optimizer, {"a": torch.ones(()), "b": net()["b"]})
    with pytest.raises(ValueError, match="`losses` is empty"):
        mtopt.total(optimizer, [])
    inner = torch.optim.SGD(net.parameters())
    with pytest.raises(TypeError, match=r"`optimizer` must be a MultiLossOptimizer, or .* but it is SGD"):
        mtopt.total(inner, net())


def test_it_looks_into_what_a_trainer_wraps():
    class Wrapped:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    net, other = Net(), Net()
    mtopt.total(Wrapped(Wrapped(optimizer_of(net))), net()).backward()
    optimizer_of(other).backward(other())
    same(gradients(net), gradients(other))


def test_a_backward_that_fails_leaves_all_as_it_was():
    net = Net()
    optimizer = optimizer_of(net, mtopt.CAGrad(), net.trunk)
    elsewhere = nn.Parameter(torch.ones(3))
    loss = mtopt.total(optimizer, {"a": net()["a"], "b": elsewhere.sum()})
    with pytest.raises(ValueError, match=r"does not reach"):
        loss.backward()
    assert all(p.grad is None for p in [*net.parameters(), elsewhere])


def test_it_holds_nothing_after_its_backward():
    net = Net()
    losses = net()
    gone = [weakref.ref(loss) for loss in losses.values()]
    loss = mtopt.total(optimizer_of(net), losses)
    del losses
    loss.backward()
    gc.collect()
    assert all(ref() is None for ref in gone)


@pytest.mark.parametrize("kind", ["RLW", "GradDrop", "DWA"])
def test_a_closure_may_call_its_backward(kind):
    """LBFGS evaluates several times in a step, with the same decisions; a closure that returns losses is the judge."""
    moved = []
    for handed in (True, False):
        net = Net()
        inner = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=5)
        optimizer = mtopt.MultiLossOptimizer(inner, METHODS[kind]())

        def closure(net=net, optimizer=optimizer, handed=handed):
            optimizer.zero_grad()
            losses = net()
            if not handed:
                return losses
            loss = mtopt.total(optimizer, losses)
            loss.backward()
            return loss

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                optimizer.step(closure)
        moved.append([p.detach() for p in net.parameters()])
    same(*moved)


def in_ddp(rank, by_total):
    net = Net()
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = optimizer_of(net, mtopt.UPGrad(), "parameters")
    for step in range(2):
        optimizer.zero_grad()
        losses = model(10 * step + rank)
        if by_total:
            mtopt.total(optimizer, losses).backward()
        optimizer.step(None if by_total else losses)
    return [p.tolist() for p in net.parameters()]


def test_several_ranks_average_as_they_do_without_it():
    first, second = run_ranks(in_ddp, 2, True)
    assert first == second
    assert [first, second] == run_ranks(in_ddp, 2, False)
