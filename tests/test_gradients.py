"""Gradients in memory: no two `.grad` share it, and what others keep of a backward is never changed by us."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from models import Stops
from torch import nn

from mtopt import GradDrop, MultiLossOptimizer, PCGrad, UncertaintyWeighting
from mtopt._torch import HOOKS_CAN_BE_SEEN


def wrapped(parameters, transforms=None, at="parameters"):
    return MultiLossOptimizer(torch.optim.SGD(parameters, lr=0.1), transforms, at=at)


def assert_apart(tensors):
    places = [tensor.untyped_storage().data_ptr() for tensor in tensors if tensor is not None]
    assert all(a != b for a, b in combinations(places, 2))


@pytest.fixture
def sums():
    """Autograd hands one tensor to both sides of a sum: exclusive ones, shared ones, and one that is there twice."""
    torch.manual_seed(0)
    return nn.ParameterList(torch.randn(4, 3) for _ in range(6))


def losses_of(sums):
    p, q, r, s, u, v = sums
    shared = (r + s).tanh()
    return [((p + q) * shared).square().mean(), shared.abs().mean() + (u + u).square().sum() + (v + v.detach()).sum()]


@pytest.mark.parametrize("transforms", [GradDrop(seed=0), PCGrad(seed=0), [PCGrad(seed=0), GradDrop(seed=0)]], ids=repr)
@pytest.mark.parametrize("at", ["parameters", "activations"])
def test_no_two_gradients_share_memory(sums, transforms, at):
    wrapped(sums, transforms, at).backward(losses_of(sums))
    assert_apart([p.grad for p in sums])


def test_shared_parameters_with_one_row_each_do_not_share_it(sums):
    p, q, r, s = sums[:4]
    optimizer = wrapped(sums)  # both losses reach p and q, but one of them with no gradient
    optimizer.backward([(p + q).square().sum() + r.sum(), Stops.apply(p + q) + s.sum()])
    assert_apart([p.grad, q.grad, r.grad, s.grad])


def test_gradients_that_are_changed_in_place_change_nothing_else(sums):
    wrapped(sums, GradDrop(leak=1.0)).backward(losses_of(sums))
    before = [p.grad.clone() for p in sums]
    for p in sums:
        p.grad.mul_(0.5)
    for p, gradient in zip(sums, before, strict=True):
        torch.testing.assert_close(p.grad, gradient / 2)


def test_what_a_function_keeps_of_its_gradient_stays_as_it_is():
    kept = []

    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            kept.append(gradient)
            return gradient

    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    wrapped([p, q]).backward([(Keeps.apply(p) * q).square().sum(), q.sum()])
    assert_apart([*kept, p.grad, q.grad])


def test_a_sparse_gradient_of_one_loss_is_no_other_ones_either():
    table, p = nn.Embedding(5, 2, sparse=True), nn.Parameter(torch.ones(2))
    kept = []
    table.weight.register_hook(lambda gradient: kept.append(gradient))
    optimizer = MultiLossOptimizer(torch.optim.SGD([table.weight, p], lr=0.1), at="parameters")
    optimizer.backward([(table(torch.tensor([1, 3])) * p).sum(), p.square().sum()])
    table.weight.grad._values().zero_()
    assert kept[0]._values().all()


# -- found before anything changes -------------------------------------------------------------------------------------


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        return gradient * y, gradient * x


TWO_SAVED = {
    "a linear layer": lambda x, w: x @ w,
    "a product": lambda x, w: x * w,
    "a custom Function": lambda x, w: Product.apply(x, w),
    "a product of three": lambda x, w: torch.einsum("ij,jk,ik->ik", x, w, x),
}


@pytest.mark.skipif(not HOOKS_CAN_BE_SEEN, reason="saved tensors cannot be looked at")
@pytest.mark.parametrize("operator", TWO_SAVED)
@pytest.mark.parametrize("at", ["parameters", "activations"])
def test_a_change_of_any_saved_tensor_is_found_before_anything_changes(operator, at):
    torch.manual_seed(0)
    p, w, a, b = (nn.Parameter(torch.randn(3, 3)) for _ in range(4))
    features = TWO_SAVED[operator](p.tanh(), w).tanh()
    optimizer = wrapped([p, w, a, b], [UncertaintyWeighting(), GradDrop(seed=0)], at)
    losses = [(features @ a).square().mean(), (features @ b).abs().mean()]
    state = str(optimizer.state_dict())
    with torch.no_grad():
        w.add_(0.1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        optimizer.backward(losses)
    assert [x.grad for x in (p, w, a, b)] == [None] * 4
    assert str(optimizer.state_dict()) == state
