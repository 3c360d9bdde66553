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

    def three(self):
        features = self.trunk(torch.ones(3, 4)).tanh()
        return [self.a(features).square().mean(), self.b(features).square().mean(), features.square().mean()]


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
    net = Net()
    site = net.trunk if at == "module" else at
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters()), kind(answer), at=site)
    for _ in range(2):
        with pytest.raises(error, match=f"{kind.__name__}.*{re.escape(words)}"):
            optimizer.backward(net())
        assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", [name for name, (kind, *_) in WRONG.items() if kind is not Weighting])
def test_a_layer_names_a_wrong_result_too(name):
    kind, answer, error, words = WRONG[name]
    x = torch.ones(3, 4, requires_grad=True)
    aliases = MultiLossLayer(2, kind(answer))(x)
    with pytest.raises(error, match=f"{kind.__name__}.*{re.escape(words)}"):
        sum(alias.square().sum() for alias in aliases).backward()
    assert x.grad is None


class Failing(Rows):
    """Takes some numbers of rows, and no others."""

    def transform(self, rows, site):
        if len(rows) not in self.answer:
            raise KeyError("of the user's own")
        return rows


@pytest.mark.parametrize("zeroed", [True, False], ids=["none before", "some before"])
@pytest.mark.parametrize("at", ["activations", "module"])
def test_the_first_backward_with_so_many_rows_is_taken_back_if_a_transform_raises(at, zeroed):
    net, transform = Net(), Failing({2})
    site = net.trunk if at == "module" else at
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), transform, at=site)
    optimizer.step([*net(), None])
    if zeroed:
        optimizer.zero_grad()
    before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    objects = [p.grad for p in net.parameters()]
    for _ in range(2):
        with pytest.raises(KeyError):
            optimizer.backward(net.three())
        assert all(p.grad is grad for p, grad in zip(net.parameters(), objects, strict=True))
        assert all(a is None or torch.equal(a, b) for a, b in zip(before, objects, strict=True))
    transform.answer = {2, 3}
    optimizer.backward(net.three())
    assert all(p.grad is not None for p in net.parameters())


def test_a_transform_is_called_once_for_each_decision():
    calls = []
    net = Net()
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters()), Rows(lambda rows: calls.append(1) or rows))
    for _ in range(3):
        optimizer.step(net())
    assert len(calls) == 3


def test_what_is_ours_or_has_run_once_is_not_watched():
    net = Net()
    ours = MultiLossOptimizer(torch.optim.SGD(net.parameters()), [mtopt.PCGrad(), GradDrop()])
    ours.step(net())
    own = MultiLossOptimizer(torch.optim.SGD(net.parameters()), Rows(torch.clone))
    own.zero_grad()
    own.step(net())
    assert ours.pipeline.first_backwards.done == set()
    assert own.pipeline.first_backwards.done == {(2, 2)}
    assert own.pipeline.first_backwards.coming == set()


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
