"""Rows at chosen parameters: the method decides there alone, and all others get the plain sum."""

from __future__ import annotations

import copy

import pytest
import torch
from ranks import run_ranks
from torch import nn

import mtopt
from mtopt import Losses

METHODS = {"UPGrad": mtopt.UPGrad, "ConFIG": mtopt.ConFIG, "IMTLG": mtopt.IMTLG, "MGDA": mtopt.MGDA}


class Recommender(nn.Module):
    """Two tables, a tower, and a head for each of two losses, as a recommender has them."""

    def __init__(self, *, sparse=True):
        super().__init__()
        torch.manual_seed(0)
        self.users, self.items = (nn.Embedding(20, 4, sparse=sparse) for _ in range(2))
        self.tower = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
        self.click, self.buy = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, step=0, *, twice=False, bundled=False):
        """Losses from one pass, or each from a pass of its own; from columns of one output, if they are bundled."""
        random = torch.Generator().manual_seed(step)
        users, items = torch.randint(0, 20, (2, 16), generator=random)
        labels = torch.randint(0, 2, (2, 16, 1), generator=random).float()
        passes = [self.tower(torch.cat([self.users(users), self.items(items)], 1)) for _ in range(1 + twice)]
        loss = nn.functional.binary_cross_entropy_with_logits
        if bundled:
            both = torch.cat([self.click(passes[0]), self.buy(passes[0])], 1)
            return {"click": loss(both[:, 0], labels[0, :, 0]), "buy": 3 * loss(both[:, 1], labels[1, :, 0])}
        return {"click": loss(self.click(passes[0]), labels[0]), "buy": 3 * loss(self.buy(passes[-1]), labels[1])}

    def dense(self):
        return [p for name, p in self.named_parameters() if not name.startswith(("users", "items"))]


def sparse_and_dense(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def by_hand(model, losses, chosen, method):
    """Plain autograd: the rows at the chosen parameters through the method, sums elsewhere."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses.values()]
    chosen = [i for i, p in enumerate(parameters) if any(p is c for c in chosen)]
    shared = [i for i in chosen if all(row[i] is not None and row[i].any() for row in rows)]  # a bundle gives zeros
    flat = torch.stack([torch.cat([row[i].flatten() for i in shared]) for row in rows])
    weights = method.weights((flat.double() @ flat.double().T), Losses((0, 1), 2))
    weights = (weights.sum(0) if weights.ndim == 2 else weights).tolist()
    expected = {}
    for i, name in enumerate(names):
        parts = [(weights[k] if i in shared else 1.0, row[i]) for k, row in enumerate(rows) if row[i] is not None]
        expected[name] = sum(w * (part.to_dense() if part.is_sparse else part) for w, part in parts)
    return expected


def check(model, expected, *, sparse=()):
    for name, p in model.named_parameters():
        assert p.grad.is_sparse == name.startswith(tuple(sparse)) if sparse else not p.grad.is_sparse
        torch.testing.assert_close(p.grad.to_dense() if p.grad.is_sparse else p.grad, expected[name])


PASSES = {"one pass": {}, "a pass for each": {"twice": True}, "columns of one output": {"bundled": True}}


@pytest.mark.parametrize("how", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("name", METHODS)
def test_everything_but_sparse_tables(name, how):
    model = Recommender()
    optimizer = mtopt.MultiLossOptimizer(sparse_and_dense(model), METHODS[name](), at=model.dense())
    for step in range(4):  # what is remembered of the graph takes over on the way
        optimizer.zero_grad()
        expected = by_hand(model, model(step, **how), model.dense(), METHODS[name]())
        optimizer.backward(model(step, **how))
        check(model, expected, sparse=("users", "items"))
        optimizer.step()
    assert "parameter (6, 8)" in optimizer.explain()
    assert "(20, 4)" not in optimizer.explain()


CHOICES = {
    "the tower": lambda model: model.tower.parameters(),
    "the last shared layer": lambda model: model.tower[2].parameters(),
    "one tensor": lambda model: model.tower[2].weight,
    "a table": lambda model: [model.items.weight],
    "with a head's, which one loss reaches": lambda model: [model.tower[0].weight, model.click.weight],
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_any_choice_of_dense_parameters(choice):
    model = Recommender(sparse=False)
    chosen = choice(model)
    chosen = [chosen] if isinstance(chosen, torch.Tensor) else list(chosen)
    optimizer = mtopt.MultiLossOptimizer(sparse_and_dense(model), mtopt.UPGrad(), at=choice(model))
    for step in range(4):
        optimizer.zero_grad()
        expected = by_hand(model, model(step), chosen, mtopt.UPGrad())
        optimizer.step(model(step))
        check(model, expected)


def test_all_of_them_are_as_parameters():
    found = []
    for at in ("parameters", None):
        model = Recommender(sparse=False)
        settings = {"at": model.parameters() if at is None else at}
        transforms = [mtopt.PCGrad(seed=1), mtopt.GradDrop(seed=2), mtopt.Whitening()]
        optimizer = mtopt.MultiLossOptimizer(sparse_and_dense(model), transforms, **settings)
        for step in range(3):
            optimizer.zero_grad()
            optimizer.step(model(step))
        found.append([p.detach() for p in model.parameters()])
    assert all(map(torch.equal, *found))


def test_momenta_and_second_moments_are_kept_of_chosen_ones_alone():
    model = Recommender()
    transforms = [mtopt.Momentum(), mtopt.ConFIG(), mtopt.Whitening()]
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = mtopt.MultiLossOptimizer(inner, transforms, at=model.tower.parameters())
    optimizer.step(model())
    numbers = [i for i, p in enumerate(model.parameters()) if any(p is q for q in model.tower.parameters())]
    assert sorted(transforms[0].history.averages) == sorted(transforms[2].history.averages) == numbers
    plain = Recommender()
    sum(plain().values()).backward()
    for name in ("users", "items", "click", "buy"):
        for p, q in zip(getattr(model, name).parameters(), getattr(plain, name).parameters(), strict=True):
            found, wanted = (g.to_dense() if g.is_sparse else g for g in (p.grad, q.grad))
            torch.testing.assert_close(found, wanted)


def test_a_copy_chooses_its_own():
    model = Recommender(sparse=False)
    optimizer = mtopt.MultiLossOptimizer(sparse_and_dense(model), mtopt.UPGrad(), at=model.tower.parameters())
    other, copied = copy.deepcopy((model, optimizer))
    copied.step(other())
    optimizer.step(model())
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert all(any(p is q for q in other.parameters()) for p in copied.at)


def test_what_cannot_be_chosen_is_refused():
    model, other = Recommender(), nn.Linear(2, 2)
    inner = sparse_and_dense(model)

    def make(at, transforms=None):
        return mtopt.MultiLossOptimizer(inner, transforms, at=at)

    with pytest.raises(ValueError, match=r"`at\[1\]`, of shape \(2, 2\), is no parameter of the inner optimizer"):
        make([model.tower[0].weight, other.weight])
    with pytest.raises(TypeError, match=r"`at\[1\]` must be a parameter, as the first is, but it is"):
        make([model.tower[0].weight, model.tower])
    with pytest.raises(TypeError, match=r"`at\[1\]` must be a module"):
        make([model.tower, model.tower[0].weight])
    with pytest.raises(ValueError, match="`at` is empty"):
        make(iter([]))
    with pytest.raises(ValueError, match="Every weights whole losses"):
        make(model.tower.parameters(), mtopt.Every(mtopt.UPGrad(), steps=5))
    with pytest.raises(ValueError, match=r"`marginalize` needs the activation, .* at=4 parameters"):
        make(model.tower.parameters(), mtopt.GradDrop(marginalize=0))
    optimizer = make(model.click.parameters(), mtopt.UPGrad())
    with pytest.raises(RuntimeError, match="No two `losses` reach one of the parameters that `at` has"):
        optimizer.step(model())
    assert all(p.grad is None for p in model.parameters())


def test_sparse_tables_that_were_chosen_are_refused_as_ever():
    model = Recommender()
    optimizer = mtopt.MultiLossOptimizer(sparse_and_dense(model), mtopt.UPGrad(), at=model.parameters())
    with pytest.raises(TypeError, match="meet at a parameter with sparse gradients"):
        optimizer.step(model())
    assert all(p.grad is None for p in model.parameters())


def of_ranks(rank, n_ranks):
    model = Recommender(sparse=False)
    wrapped = nn.parallel.DistributedDataParallel(model) if n_ranks > 1 else model
    optimizer = mtopt.MultiLossOptimizer(sparse_and_dense(model), mtopt.UPGrad(), at=model.tower.parameters())
    for step in range(2):
        optimizer.zero_grad()
        if n_ranks > 1:
            losses = wrapped(2 * step + rank)
        else:
            parts = [model(2 * step), model(2 * step + 1)]
            losses = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
        optimizer.step(losses)
    return [p.tolist() for p in model.parameters()]


def test_two_ranks_are_one_process():
    first, second = run_ranks(of_ranks, 2, 2)
    assert first == second
    for found, expected in zip(first, of_ranks(0, 1), strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))
