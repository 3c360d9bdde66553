"""What a transform of the user's own returns: what it must not return is a named error, and nothing has changed."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import mtopt
from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, n=3):
        features = self.trunk(torch.ones(n, 4)).tanh()
        return [(self.a(features) - 1).square().mean(), (self.b(features) + 2).square().mean()]


class Weighting(mtopt.LossWeighting):
    def __init__(self, answer):
        self.answer = answer

    def weights(self, losses):
        return self.answer(losses.values)


class Gramian(mtopt.GramianTransform):
    def __init__(self, answer):
        self.answer = answer

    def weights(self, gramian, losses):
        return self.answer(gramian.diagonal())


class Rows(mtopt.RowTransform):
    def __init__(self, answer):
        self.answer = answer

    def transform(self, rows, site):
        return self.answer(rows)


class Streaming(Rows):
    """Takes rows one by one."""

    scale_equivariant = True
    needs_lone_rows = False

    def stream(self, site):
        stream = copy.copy(self)
        stream.total = 0
        return stream

    def add(self, position, row):
        self.total = self.total + row

    def result(self):
        return self.answer(self.total)


class NoStream(Rows):
    scale_equivariant = True

    def stream(self, site):
        return self.answer(0)


WRONG = {
    "list of weights": (Weighting, lambda w: w.tolist(), TypeError, "shape (2,), but it returned a list"),
    "number": (Weighting, lambda w: 1.0, TypeError, "returned a float"),
    "no return": (Weighting, lambda w: None, TypeError, "returned a NoneType"),
    "whole numbers": (
        Weighting,
        lambda w: w.long(),
        TypeError,
        "floating-point weights, but their dtype is torch.int64",
    ),
    "one weight": (Weighting, lambda w: w.sum(), ValueError, "of shape (2,), but they are of shape ()"),
    "a column": (Weighting, lambda w: w[:, None], ValueError, "but they are of shape (2, 1)"),
    "a matrix that does not mix": (Weighting, torch.diag, ValueError, "but they are of shape (2, 2)"),
    "too many": (Gramian, lambda w: w.repeat(2), ValueError, "shape (2,) or (2, 2), but they are of shape (4,)"),
    "complex": (Gramian, lambda w: w * 1j, TypeError, "complex"),
    "tuple": (Gramian, lambda w: (w, w), TypeError, "(2,) or (2, 2), but it returned a tuple"),
    "their mean": (Rows, lambda rows: rows.mean(0), ValueError, "must return rows of shape (2, "),
    "one more": (Rows, lambda rows: torch.cat([rows, rows[:1]]), ValueError, "are of shape (3, "),
    "nothing": (Rows, lambda rows: None, TypeError, "returned a NoneType"),
    "signs": (Rows, lambda rows: rows > 0, TypeError, "torch.bool"),
    "sum of a stream": (Streaming, lambda total: total.sum(), ValueError, "a sum of shape ("),
    "no sum": (Streaming, lambda total: total.tolist(), TypeError, "returned a list"),
    "no stream": (NoStream, lambda _: [], TypeError, "which has no `needs_lone_rows`"),
}


@pytest.mark.parametrize("at", ["activations", "module", "parameters"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_is_a_named_error_before_any_gradient_changes(name, at):
    kind, answer, error, words = WRONG[name]
    net, random = Net(), torch.get_rng_state()
    site = net.trunk if at == "module" else at
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters()), kind(answer), at=site)
    for _ in range(2):
        with pytest.raises(error, match=f"{kind.__name__}.*{re.escape(words)}"):
            optimizer.backward(net())
        assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name", [name for name, (kind, *_) in WRONG.items() if kind is not Weighting])
def test_a_layer_refuses_a_wrong_result_in_the_forward(name):
    kind, answer, error, words = WRONG[name]
    with pytest.raises(error, match=f"{kind.__name__}.*{re.escape(words)}"):
        MultiLossLayer(2, kind(answer))(torch.ones(3, 4, requires_grad=True))


@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_a_second_transform_in_the_list_is_tried_too(at):
    net = Net()
    transforms = [Gramian(torch.ones_like), GradDrop(), Rows(lambda rows: rows[0])]
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters()), transforms, at=at)
    with pytest.raises(ValueError, match=r"`Rows.transform` must return rows"):
        optimizer.backward(net())
    assert all(p.grad is None for p in net.parameters())
    assert at == "parameters" or transforms[1].draws.count == 0


class Counting(Rows):
    """How often each copy was called, and all of them together."""

    calls = 0

    def transform(self, rows, site):
        self.own = getattr(self, "own", 0) + 1
        type(self).calls += 1
        return super().transform(rows, site)


def test_a_transform_is_tried_on_a_copy_once_for_each_number_of_dims():
    net, transform = Net(), Counting(torch.clone)
    Counting.calls = 0
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters()), transform)
    for n in (3, 3, 5):
        optimizer.step(net(n))
    assert transform.own == 3
    assert Counting.calls == 3 + 1


def test_a_trial_leaves_no_trace_in_gradients_or_random_numbers():
    results = []
    for tried in (True, False):
        net = Net()
        transform = Rows(lambda rows: rows * torch.rand_like(rows))
        optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters()), transform)
        if not tried:
            optimizer.pipeline.trials.transforms = []
        torch.manual_seed(7)
        optimizer.backward(net())
        results.append([p.grad.tolist() for p in net.parameters()])
    assert results[0] == results[1]


class Uncopied(Counting):
    def __deepcopy__(self, memo):
        raise TypeError("a file, say")


@pytest.mark.parametrize("kind", [Counting, Uncopied])
def test_what_cannot_be_copied_or_does_not_take_random_rows_is_not_refused(kind):
    def ones_alone(rows):
        if rows.unique().numel() > 2:
            raise ValueError("these are no ones")
        return rows

    Counting.calls = 0
    weight = nn.Parameter(torch.ones(3))
    optimizer = MultiLossOptimizer(torch.optim.SGD([weight]), kind(ones_alone))
    z = weight * 1
    optimizer.backward([z.sum(), 2 * z.sum()])
    assert weight.grad.tolist() == [3, 3, 3]


def test_our_own_methods_are_not_tried():
    assert (
        MultiLossOptimizer(torch.optim.SGD(Net().parameters()), [mtopt.PCGrad(), GradDrop()]).pipeline.trials.transforms
        == []
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("at", ["activations", "parameters"])
@pytest.mark.parametrize("kind", [Rows, Streaming])
def test_rows_of_another_precision_come_back_in_that_of_the_gradient(kind, at, dtype):
    net = Net()
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters()), kind(lambda rows: rows.to(dtype)), at=at)
    optimizer.backward(net())
    other = Net()
    sum(other()).backward()
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-2)
