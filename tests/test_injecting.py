"""Functions that inject the gradient of an auxiliary loss: told once at parameters; what is linear is told nothing."""

from __future__ import annotations

import warnings

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mtopt import RLW, GradDrop, MultiLossOptimizer, PCGrad
from mtopt._torch import HOOKS_CAN_BE_SEEN

SEEN = pytest.mark.skipif(not HOOKS_CAN_BE_SEEN, reason="before torch 2.9 each node may be good for one backward")
WORDS = "adds one of its own"
SUM = GradDrop(leak=1.0)  # the rows are added up as they are


class Injects(torch.autograd.Function):
    """As the scalers of auxiliary losses in mixtures of experts."""

    @staticmethod
    def forward(ctx, x, auxiliary):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, torch.ones((), dtype=gradient.dtype)


class Halves(torch.autograd.Function):
    """Linear, though it draws numbers and keeps what it needs."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(torch.full_like(x, 0.5))
        return x / 2

    @staticmethod
    def backward(ctx, gradient):
        (half,) = ctx.saved_tensors
        torch.rand(3)
        return half * gradient


class Refuses(torch.autograd.Function):
    """Whose backward takes no zeros."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if not gradient.any():
            raise ArithmeticError("no zeros, please")
        return gradient


class Net(nn.Module):
    def __init__(self, middle):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.gate = nn.Linear(4, 5), nn.Linear(5, 3)
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))
        self.middle = middle

    def forward(self, x=None):
        x = torch.linspace(-1, 1, 24).reshape(6, 4) if x is None else x
        z = self.middle(self, self.trunk(x).tanh())
        return [head(z).sub(i).square().mean() for i, head in enumerate(self.heads)]


def auxiliary(net, z):
    return net.gate(z).softmax(-1).mean(0).square().sum()


def injects(net, z):
    return Injects.apply(z, auxiliary(net, z))


MIDDLES = {
    "plain": lambda net, z: z,
    "dropout": lambda net, z: nn.functional.dropout(z, 0.5),
    "Function": lambda net, z: Halves.apply(z),
    "Function that takes no zeros": lambda net, z: Refuses.apply(z),
    "Function above infinity": lambda net, z: Halves.apply((z.abs() * 0).sqrt() + z),
    "checkpoint": lambda net, z: checkpoint(lambda z: Halves.apply(z.sin()).cos(), z, use_reentrant=False),
    "reentrant checkpoint": lambda net, z: checkpoint(lambda z: Halves.apply(z.sin()).cos(), z, use_reentrant=True),
}


def wrapped(net, transforms=SUM, at="parameters"):
    return MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), transforms, at=at, chunk_size=1)


@SEEN
@pytest.mark.parametrize("at", ["parameters", "all parameters"])
def test_a_function_that_injects_a_gradient_is_told_once_for_each_optimizer(at):
    for _ in range(2):
        net = Net(injects)
        optimizer = wrapped(net, PCGrad(), at)
        with pytest.warns(RuntimeWarning, match=WORDS):
            optimizer.step(net())
        optimizer.step(net())  # here a warning is an error
        optimizer.step(net())


@SEEN
def test_it_is_told_in_the_first_step_that_has_one():
    net = Net(MIDDLES["plain"])
    optimizer = wrapped(net)
    optimizer.step(net())
    net.middle = injects
    with pytest.warns(RuntimeWarning, match=WORDS):
        optimizer.step(net())


@SEEN
def test_a_warning_that_is_an_error_changes_nothing():
    net = Net(injects)
    optimizer = wrapped(net, [RLW(), GradDrop()])
    losses = net()

    def state():
        return torch.get_rng_state().tolist(), [transform.state_dict() for transform in optimizer.transforms]

    before = state()
    with pytest.raises(RuntimeWarning, match=WORDS):
        optimizer.backward(losses)
    assert state() == before
    assert all(p.grad is None for p in net.parameters())
    optimizer.backward(losses)


@SEEN
def test_the_rows_are_what_they_were():
    """The injected gradient comes once for each loss, as each loss's own backward has it."""
    net = Net(injects)
    with pytest.warns(RuntimeWarning, match=WORDS):
        wrapped(net).backward(net())
    found = [p.grad for p in net.parameters()]
    net.zero_grad()
    for loss in net():
        loss.backward(retain_graph=True)
    torch.testing.assert_close(found, [p.grad for p in net.parameters()])


def test_the_ways_out_give_the_right_gradients_and_are_told_nothing():
    found = []
    for middle, at in ((injects, "activations"), (MIDDLES["plain"], "parameters")):
        net = Net(middle)
        losses = net()
        if at == "parameters":  # the auxiliary loss as one of its own
            z = net.trunk(torch.linspace(-1, 1, 24).reshape(6, 4)).tanh()
            losses = [*(head(z).sub(i).square().mean() for i, head in enumerate(net.heads)), auxiliary(net, z)]
        wrapped(net, at=at).backward(losses)
        found.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("middle", MIDDLES)
def test_what_injects_nothing_is_told_nothing_and_draws_the_same_numbers(middle):
    found = []
    for by_rows in (True, False):
        net = Net(MIDDLES[middle])
        torch.manual_seed(1)
        losses = net()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if by_rows:
                wrapped(net).backward(losses)
            else:
                sum(losses).backward()
        found.append([p.grad for p in net.parameters() if p is not net.gate.weight and p is not net.gate.bias])
    torch.testing.assert_close(*found, equal_nan=True)


@SEEN
def test_the_look_leaves_the_random_numbers_as_they_were():
    states = []
    for looked in (False, True):
        net = Net(MIDDLES["Function"])
        optimizer = wrapped(net)
        optimizer._memory["told"].looked = looked
        torch.manual_seed(1)
        optimizer.backward(net())
        assert optimizer._memory["told"].looked
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("middle", ["plain", "dropout", "checkpoint"])
def test_nothing_is_looked_at_where_no_function_is_shared_or_a_part_would_be_computed_anew(middle):
    net = Net(MIDDLES[middle])
    optimizer = wrapped(net)
    optimizer.backward(net())
    assert not optimizer._memory["told"].looked


def test_a_function_that_one_loss_alone_reaches_injects_once_and_is_told_nothing():
    net = Net(MIDDLES["plain"])
    first, *others = net()
    extra = net.gate.weight.square().sum()
    wrapped(net).backward([Injects.apply(first, extra), *others])
    torch.testing.assert_close(net.gate.weight.grad, 2 * net.gate.weight.detach())


def test_a_hook_on_a_parameter_is_told_as_a_hook():
    net = Net(MIDDLES["Function"])
    net.trunk.weight.register_hook(lambda gradient: gradient + 1)
    with pytest.warns(RuntimeWarning) as told:
        wrapped(net).backward(net())
    assert len(told) == 1
    assert "register_hook" in str(told[0].message)


def on_ranks(rank):
    """Whether it is told where both ranks have the same losses, and where they have not."""
    found = []
    for absent in (False, True):
        net = Net(injects)
        model = DistributedDataParallel(net, find_unused_parameters=True)
        optimizer = wrapped(net)
        losses = model(torch.full((2, 4), 1.0 + rank))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            optimizer.backward([None if absent and rank else losses[0], *losses[1:]])
        found.append(sum(WORDS in str(one.message) for one in told))
    return found


@SEEN
def test_each_rank_tells_it_where_all_have_the_same_losses():
    assert list(run_ranks(on_ranks, 2)) == [[1, 0], [1, 0]]
