"""The promise survives the optimizer: second moments and momenta per loss, and the inner optimizer's metric.

Against torch's own Adam on the summed loss, the authors' package for M-ConFIG, and rows taken one by one.
"""

from __future__ import annotations

import copy
import io
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtopt import (
    IMTLG,
    MGDA,
    Annealing,
    CAGrad,
    ConFIG,
    ConstantWeights,
    DualProj,
    Every,
    GradDrop,
    GradientNorms,
    GradNorm,
    GramianTransform,
    Momentum,
    Monitor,
    MultiLossLayer,
    MultiLossOptimizer,
    PCGrad,
    RowTransform,
    Site,
    UPGrad,
    Whitening,
)
from mtopt import Losses as LossesOf

NAMES = ("residual", "boundary", "initial")
ADAPTIVE = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.9)),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.9), amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.0, 0.9), weight_decay=0),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1, betas=(0.0, 0.9)),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1, betas=(0.0, 0.9)),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1, betas=(0.0, 0.9)),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.9),
    "RMSprop, centered": lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.9, centered=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
}


class Problem(nn.Module):
    """Three losses of very different sizes on a trunk and two heads, with other examples in each step.

    Where they are `alike` each reaches all parameters.
    """

    def __init__(self, seed=0, *, alike=False):
        super().__init__()
        torch.manual_seed(seed)
        self.alike = alike
        self.trunk = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head, self.other = nn.Linear(8, 2), nn.Linear(8, 1)
        self.double()

    def forward(self, step=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 3, generator=generator, dtype=torch.float64).to(dtype)
        z = self.trunk(x)
        y, other = self.head(z), self.other(z)
        if self.alike:
            y, other = y + other, other + y.sin().sum(1, keepdim=True)
        losses = (y[:, 0] - x[:, 0]).square().mean(), 30 * (y[:, 1] + 1).square().mean(), (other - 2).sin().mean()
        return dict(zip(NAMES, losses, strict=True))


def sgd(model, lr=1.0):
    return torch.optim.SGD(model.parameters(), lr=lr)


def rows_of(model, losses):
    """Each loss's gradient for each parameter, zero where it has none, by autograd alone."""
    parameters = list(model.parameters())
    rows = []
    for loss in losses.values():
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)])
    return rows


def flat(rows):
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def gradient(model):
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def losses_in(n=3):
    return LossesOf(tuple(range(n)), n)


# -- whitening ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["parameters", "all parameters"])
@pytest.mark.parametrize("momentum", [[], [Momentum(beta=0.8)]], ids=["", "momenta"])
def test_sgd_on_the_whitened_sum_is_adam_on_the_sum_with_momenta_as_without(at, momentum):
    ours, theirs = Problem(), Problem()
    transforms = [*copy.deepcopy(momentum), Whitening(beta=0.9, pairs=True)]
    optimizer = MultiLossOptimizer(sgd(ours, 0.01), transforms, at=at)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.01, betas=(0.8 if momentum else 0.0, 0.9))
    for step in range(6):
        optimizer.zero_grad()
        optimizer.step(ours(step))
        adam.zero_grad()
        sum(theirs(step).values()).backward()
        adam.step()
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, yours)


def moments(rows, before, steps, beta):
    """The corrected second moments of pairs of rows, from the sums that Adam keeps."""
    sums = beta * before + (1 - beta) * rows[:, None] * rows[None]
    return sums, sums / (1 - beta**steps)


@pytest.mark.parametrize("pairs", [False, True], ids=["each", "pairs"])
@pytest.mark.parametrize("method", [ConFIG(), UPGrad(), IMTLG(), CAGrad()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("weights", [None, [3.0, 0.5, 2.0]], ids=["", "weighted"])
def test_what_a_method_combines_is_divided_by_its_second_moment_at_the_weights_of_now(method, pairs, weights):
    model, beta, eps = Problem(), 0.9, 1e-8
    front = [] if weights is None else [ConstantWeights(weights)]
    transforms = [*front, method, Whitening(beta=beta, eps=eps, pairs=pairs)]
    optimizer = MultiLossOptimizer(sgd(model, 0.01), transforms, at="all parameters")
    constants = torch.tensor(weights or [1.0, 1.0, 1.0], dtype=torch.float64)
    kept = torch.zeros(())
    for step in range(1, 6):
        rows = flat(rows_of(model, model(step)))
        kept, second = moments(rows, kept, step, beta)
        given = constants[:, None] * rows
        shares = method.weights(given @ given.T, losses_in())
        shares = (shares.sum(0) if shares.ndim == 2 else shares) * constants
        both = (
            torch.einsum("i,j,ijn->n", shares, shares, second)
            if pairs
            else (shares.square()[:, None] * second.diagonal().T).sum(0)
        )
        expected = shares @ rows / (both.clamp_min(0).sqrt() + eps)
        optimizer.zero_grad()
        optimizer.backward(model(step))
        reached = rows.ne(0).any(0)
        torch.testing.assert_close(gradient(model)[reached], expected[reached], rtol=1e-6, atol=1e-9)
        optimizer.step()


@pytest.mark.parametrize("pairs", [False, True], ids=["each", "pairs"])
@pytest.mark.parametrize("order", ["GradDrop", "GradDrop, PCGrad", "PCGrad, GradDrop", "PCGrad, GradDrop, UPGrad"])
def test_shares_are_followed_number_by_number_through_a_list(order, pairs):
    make = {
        "GradDrop": lambda: GradDrop(seed=4, leak=[0.3, 0, 0.6]),
        "PCGrad": lambda: PCGrad(seed=5),
        "UPGrad": UPGrad,
    }
    model, beta = Problem(alike=True), 0.9
    transforms = [make[name]() for name in order.split(", ")]
    optimizer = MultiLossOptimizer(sgd(model), [*transforms, Whitening(beta=beta, pairs=pairs)], at="parameters")
    copies = [make[name]() for name in order.split(", ")]
    sums = torch.zeros(())
    for step in range(1, 4):
        raw = rows_of(model, model(step))
        stacks = [torch.stack(parts).flatten(1) for parts in zip(*raw, strict=True)]
        shares = [torch.eye(3, dtype=torch.float64)[..., None].expand(3, 3, stack.shape[1]) for stack in stacks]
        for transform in copies:  # shares[k][i, j]: how much of raw row j there is in row i
            if isinstance(transform, GramianTransform):
                mixing = transform.weights(sum(stack @ stack.T for stack in stacks), losses_in())
                mixed = [torch.einsum("ij,jkn->ikn", mixing, share) for share in shares]
            else:
                shaped = [s.view(3, *p.shape) for s, p in zip(stacks, model.parameters(), strict=True)]
                new = [transform.transform(stack, Site(losses_in())).flatten(1) for stack in shaped]
                mixed = [
                    torch.where(s == 0, 1, n / s)[:, None] * share
                    for n, s, share in zip(new, stacks, shares, strict=True)
                ]
            stacks = [torch.einsum("ijn,jn->in", m, flat_row) for m, flat_row in zip(mixed, _parts(raw), strict=True)]
            shares = mixed
        share = torch.cat([share.sum(0) for share in shares], 1)
        sums, second = moments(flat(raw), sums, step, beta)
        both = torch.einsum("in,jn,ijn->n" if pairs else "in,in,iin->n", share, share, second)
        optimizer.zero_grad()
        optimizer.backward(model(step))
        expected = (share * flat(raw)).sum(0) / (both.clamp_min(0).sqrt() + 1e-8)
        torch.testing.assert_close(gradient(model), expected, rtol=1e-6, atol=1e-8)


def _parts(raw):
    return [torch.stack(parts).flatten(1) for parts in zip(*raw, strict=True)]


@pytest.mark.parametrize(("pairs", "n"), [(False, 3), (True, 6)])
def test_it_keeps_a_number_for_each_of_a_parameters_and_each_loss_or_each_pair(pairs, n):
    model = Problem(alike=True)
    whitening = Whitening(pairs=pairs)
    optimizer = MultiLossOptimizer(sgd(model), [UPGrad(), whitening], at="parameters")
    for step in range(2):
        optimizer.step(model(step))
    kept = [average.mean for of in whitening.history.averages.values() for average in of.values()]
    assert sum(mean.numel() for mean in kept) == n * sum(p.numel() for p in model.parameters())


def test_a_second_moment_of_another_step_is_not_changed_by_losses_that_are_absent():
    model = Problem()
    whitening = Whitening(beta=0.5)
    optimizer = MultiLossOptimizer(sgd(model), [UPGrad(), whitening], at="parameters")
    optimizer.backward(model(0))
    before = copy.deepcopy(whitening.history.averages)
    optimizer.backward({**model(1), "boundary": None})
    for number, of in whitening.history.averages.items():
        for key, average in of.items():
            assert average.steps == (1 if 1 in key else 2)
            assert torch.equal(average.mean, before[number][key].mean) == (1 in key)


# -- momentum per loss -------------------------------------------------------------------------------------------------


def test_momenta_are_averages_of_each_loss_and_the_method_decides_on_them():
    model, beta = Problem(), 0.7
    optimizer = MultiLossOptimizer(sgd(model, 0.01), [Momentum(beta=beta), ConFIG()], at="all parameters")
    kept = torch.zeros(())
    for step in range(1, 6):
        rows = flat(rows_of(model, model(step)))
        kept = beta * kept + (1 - beta) * rows
        averages = kept / (1 - beta**step)
        optimizer.zero_grad()
        optimizer.step(model(step))
        expected = ConFIG().weights(averages @ averages.T, losses_in()) @ averages
        torch.testing.assert_close(gradient(model), expected)


@pytest.mark.parametrize(
    ("weights", "absent"),
    [([], False), ([], True), ([ConstantWeights([1.0, 2.0, 0.5])], False)],
    ids=["alone", "absent", "weighted"],
)
def test_signs_are_picked_of_momenta(weights, absent):
    """The sign with the larger mass, so that no number is drawn; an absent loss counts by its average."""
    model, beta = Problem(alike=True), 0.7
    drop = GradDrop(keep=lambda purity: (purity > 0.5).to(purity.dtype))
    transforms = [*weights, Momentum(beta=beta, absent=absent), drop]
    optimizer = MultiLossOptimizer(sgd(model, 0.01), transforms, at="parameters")
    factors = torch.tensor([[1.0], [2.0], [0.5]] if weights else [[1.0]] * 3, dtype=torch.float64)
    kept, count = torch.zeros((), dtype=torch.float64), torch.zeros(3, 1)
    for step in range(1, 7):
        here = torch.tensor([[True], [True], [not absent or step % 2 > 0]])
        rows = flat(rows_of(model, model(step)))
        kept = torch.where(here, beta * kept + (1 - beta) * rows, kept)
        count += here
        averages = factors * kept / (1 - beta**count)
        optimizer.zero_grad()
        optimizer.step(
            {name: loss if now else None for (name, loss), now in zip(model(step).items(), here, strict=True)}
        )
        positive, negative = averages.clamp_min(0).sum(0), averages.clamp_max(0).sum(0)
        torch.testing.assert_close(gradient(model), torch.where(positive > -negative, positive, negative))


def test_one_loss_a_step_is_what_the_authors_package_does():
    """M-ConFIG: the direction that `conflictfree` makes of its momenta, in front of its own second moment."""
    package = pytest.importorskip("conflictfree.momentum_operator")
    model = Problem(alike=True).float()
    theirs = package.PseudoMomentumOperator(num_vectors=3, beta_1=0.9, beta_2=0.99)
    optimizer = MultiLossOptimizer(sgd(model, 0.01), [Momentum(absent=True), ConFIG()], at="parameters")
    for step in range(12):
        losses = {name: loss.float() for name, loss in model(step, dtype=torch.float32).items()}
        row = flat(rows_of(model, losses))[step % 3]
        theirs.calculate_gradient(step % 3, row)
        optimizer.zero_grad()
        optimizer.step({name: loss if i == step % 3 else None for i, (name, loss) in enumerate(losses.items())})
        if step >= 3:  # it gives zeros until each loss was there once
            direction = theirs.fake_m / (1 - 0.9**theirs.t)
            torch.testing.assert_close(gradient(model), direction, rtol=1e-3, atol=1e-5)


def test_with_second_moments_it_is_an_adam_for_each_loss():
    """AdaTask: the sum of the steps that torch's Adam takes for each loss alone, from the same weights."""
    model = Problem(alike=True)
    transforms = [Momentum(beta=0.9, second=0.99)]
    optimizer = MultiLossOptimizer(sgd(model, 0.01), transforms, at="parameters")
    copies = [Problem(alike=True) for _ in NAMES]
    adams = [torch.optim.Adam(c.parameters(), lr=0.01, betas=(0.9, 0.99)) for c in copies]
    for step in range(5):
        moved = [torch.zeros_like(p) for p in model.parameters()]
        for name, copied, adam in zip(NAMES, copies, adams, strict=True):
            copied.load_state_dict(model.state_dict())
            adam.zero_grad()
            copied(step)[name].backward()
            adam.step()
            for total, new, old in zip(moved, copied.parameters(), model.parameters(), strict=True):
                total += new.detach() - old.detach()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        optimizer.step(model(step))
        for p, old, change in zip(model.parameters(), before, moved, strict=True):
            torch.testing.assert_close(p.detach() - old, change)


def test_an_absent_loss_costs_no_backward_and_moves_what_it_alone_reaches():
    model = Problem()
    optimizer = MultiLossOptimizer(sgd(model, 0.01), [Momentum(absent=True), UPGrad()], at="parameters")
    optimizer.step(model(0))
    calls = []
    model.trunk[0].weight.register_hook(lambda gradient: calls.append(1))
    other = model.other.weight.detach().clone()
    optimizer.zero_grad()
    optimizer.step({"residual": model(1)["residual"], "boundary": None, "initial": None})
    assert len(calls) == 1
    assert not torch.equal(model.other.weight, other)


def test_an_absent_loss_is_left_out_unless_it_is_asked_for():
    model = Problem()
    optimizer = MultiLossOptimizer(sgd(model, 0.01), [Momentum(beta=0), UPGrad()], at="parameters")
    optimizer.step(model(0))
    optimizer.zero_grad()
    losses = model(1)
    row = rows_of(model, {"residual": losses["residual"]})[0]
    optimizer.backward({"residual": losses["residual"], "boundary": None, "initial": None})
    for p, expected in zip(model.parameters(), row, strict=True):
        torch.testing.assert_close(torch.zeros_like(p) if p.grad is None else p.grad, expected)


# -- the inner optimizer's metric --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTIVE)
@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_no_loss_rises_to_first_order_by_the_step_itself(name, seed):
    """With momenta per loss and the metric: each average times the step, with the second moment as of before."""
    model = Problem(seed)
    inner = ADAPTIVE[name](model.parameters())
    momentum = Momentum(beta=0.5)
    method = [UPGrad(), MGDA(), DualProj()][seed % 3]
    optimizer = MultiLossOptimizer(inner, [momentum, method], at="all parameters", metric="inner")
    for step in range(4):
        optimizer.zero_grad()
        optimizer.step(model(step))
    optimizer.zero_grad()
    divide = [_divided_by(inner, p) for p in model.parameters()]
    optimizer.backward(model(4))
    products = torch.zeros(3, dtype=torch.float64)
    sizes = torch.zeros(3, dtype=torch.float64)
    for number, (p, by) in enumerate(zip(model.parameters(), divide, strict=True)):
        for (i,), average in momentum.history.of(number).items():
            products[i] += (average.mean * p.grad / by).sum()
            sizes[i] += (average.mean * p.grad / by).abs().sum()
    assert (products >= -1e-6 * sizes).all()


def _divided_by(inner, p):
    """From the formulas in torch's documentation."""
    state, group = inner.state[p], inner.param_groups[0]
    kind, eps = type(inner).__name__, group.get("eps", 0.0)
    if kind == "SGD":
        return torch.ones_like(p)
    if kind == "Adamax":
        return state["exp_inf"].clone()
    if kind == "Adagrad":
        return state["sum"].sqrt() + eps
    if kind == "RMSprop":
        mean = state["grad_avg"] ** 2 if group["centered"] else 0
        return (state["square_avg"] - mean).sqrt() + eps
    if kind == "Adadelta":
        return (state["square_avg"] + eps).sqrt() / (state["acc_delta"] + eps).sqrt()
    square = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    return (square / (1 - group["betas"][1] ** state["step"].item())).sqrt() + eps


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop"])
def test_the_parameters_move_as_was_promised(kind):
    """The step that was taken, with a second moment so heavy that one step does not move it."""
    model = Problem(3)
    heavy = {"alpha": 1 - 1e-9} if kind == "RMSprop" else {"betas": (0.0, 1 - 1e-9), "weight_decay": 0}
    inner = getattr(torch.optim, kind)(model.parameters(), lr=1e-3, **heavy)
    torch.manual_seed(1)
    for p in model.parameters():
        square = torch.rand_like(p).mul(14).sub(14).exp()
        names = {"square_avg": square} if kind == "RMSprop" else {"exp_avg": torch.zeros_like(p), "exp_avg_sq": square}
        inner.state[p] = {"step": torch.tensor(1e12), **names}
    optimizer = MultiLossOptimizer(inner, [UPGrad()], at="all parameters", metric="inner")
    plain = MultiLossOptimizer(inner, [UPGrad()], at="all parameters")
    rows = flat(rows_of(model, model(0)))
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    rises = []
    for each in (optimizer, plain):
        inner.zero_grad()
        each.step(model(0))
        moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
        rises.append((rows @ moved / rows.norm(dim=1) / moved.norm()).max())
        nn.utils.vector_to_parameters(before.clone(), model.parameters())
    assert rises[0] <= 1e-6 < rises[1]


def test_a_function_gives_the_metric_of_an_optimizer_that_is_not_known():
    model = Problem()

    class Own(torch.optim.SGD):
        pass

    inner = Own(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"knows SGD, Adam.*Give a function of the optimizer"):
        MultiLossOptimizer(inner, [UPGrad()], at="all parameters", metric="inner")

    def metric(optimizer, parameter, rows):
        assert optimizer is inner
        return rows / (1 + parameter.detach().square()).sqrt()

    optimizer = MultiLossOptimizer(inner, [ConFIG()], at="all parameters", metric=metric)
    rows = flat(rows_of(model, model(0)))
    scaled = rows / (1 + nn.utils.parameters_to_vector(model.parameters()).detach().square()).sqrt()
    optimizer.backward(model(0))
    torch.testing.assert_close(gradient(model), ConFIG().weights(scaled @ scaled.T, losses_in()) @ rows)


@pytest.mark.parametrize("pairs", [False, True])
def test_weights_whose_squares_are_no_numbers_whiten_as_smaller_ones(pairs):
    """As IMTL-G's may be, where gradients all but cancel: a training that diverges is no error."""

    class Weights(GramianTransform):
        def __init__(self, size):
            self.size = size

        def weights(self, gramian, losses):
            return self.size * torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)

    found = []
    for size in (1.0, 1e25):
        model = Problem(alike=True)
        optimizer = MultiLossOptimizer(sgd(model), [Weights(size), Whitening(pairs=pairs, eps=1e-30)], at="parameters")
        optimizer.backward({name: 1e-3 * loss for name, loss in model(0).items()})
        found.append(gradient(model))
    torch.testing.assert_close(*found)


def test_the_metric_of_soap_as_the_page_has_it():
    """No loss rises by the step that `pytorch_optimizer`'s SOAP takes, its second moment so heavy that it stays."""
    package = pytest.importorskip("pytorch_optimizer")
    page = (Path(__file__).parents[1] / "docs" / "optimizer.md").read_text(encoding="utf-8")
    found = {"torch": torch}
    exec(re.search(r"(?s)\ndef metric\(soap.*?\n\n\n", page)[0], found)
    model = Problem(3)
    settings = {"betas": (0.0, 1 - 1e-9), "shampoo_beta": 0.9, "weight_decay": 0, "precondition_frequency": 1000}
    inner = package.SOAP(model.parameters(), lr=1e-5, correct_bias=False, **settings)
    aware = MultiLossOptimizer(inner, [UPGrad()], at="all parameters", metric=found["metric"])
    plain = MultiLossOptimizer(inner, [UPGrad()], at="all parameters")
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    aware.step(model(0))  # SOAP's first step takes the eigenvectors only
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)
    torch.manual_seed(1)
    for p in model.parameters():
        inner.state[p]["exp_avg_sq"].copy_(torch.rand_like(p).mul(14).sub(14).exp())
    rows = flat(rows_of(model, model(0)))
    rises = []
    for each in (aware, plain):
        inner.zero_grad()
        each.step(model(0))
        moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
        rises.append((rows @ moved / rows.norm(dim=1) / moved.norm()).max())
        nn.utils.vector_to_parameters(before.clone(), model.parameters())
    assert rises[0] <= 1e-4 < 1e-2 < rises[1]


def test_groups_of_other_rates_count_by_them():
    model = Problem()
    groups = [
        {"params": model.trunk.parameters()},
        {"params": [*model.head.parameters(), *model.other.parameters()], "lr": 0.4},
    ]
    optimizer = MultiLossOptimizer(torch.optim.SGD(groups, lr=0.1), [ConFIG()], at="all parameters", metric="inner")
    rows = flat(rows_of(model, model(0)))
    n = sum(p.numel() for p in model.trunk.parameters())
    scaled = torch.cat([rows[:, :n], 2 * rows[:, n:]], 1)
    optimizer.backward(model(0))
    torch.testing.assert_close(gradient(model), ConFIG().weights(scaled @ scaled.T, losses_in()) @ rows)


# -- weights every k steps --


@pytest.mark.parametrize("at", ["parameters", "all parameters"])
@pytest.mark.parametrize("method", [ConFIG, lambda: PCGrad(seed=3)], ids=["ConFIG", "PCGrad"])
def test_weights_hold_until_the_method_decides_again(at, method):
    """Against rows of every step, combined by hand with the weights of every third one."""
    model, alone = Problem(), method()
    optimizer = MultiLossOptimizer(sgd(model, 0.01), [Every(method(), steps=3)], at=at)
    for step in range(7):
        losses = model(step)
        if step == 4:
            losses["boundary"] = None
        here = {name: loss for name, loss in losses.items() if loss is not None}
        rows = flat(rows_of(model, here))
        sizes = [p.numel() for p in model.parameters()]
        owners = [(part != 0).any(1).sum() for part in rows.split(sizes, 1)]  # no head stands beside a shared parameter
        counts = torch.cat([(n > (at == "parameters")).expand(size) for n, size in zip(owners, sizes, strict=True)])
        if step % 3 == 0:
            weights = alone.weights(rows[:, counts] @ rows[:, counts].T, losses_in())
            weights = weights.sum(0) if weights.ndim == 2 else weights
        used = weights[[i for i, name in enumerate(NAMES) if name in here]]
        expected = torch.where(counts, used @ rows, rows.sum(0))
        optimizer.zero_grad()
        optimizer.step(losses)
        torch.testing.assert_close(gradient(model), expected)


def test_a_step_between_takes_one_backward():
    model, calls = Problem(), []
    model.trunk[2].register_full_backward_hook(lambda *_: calls.append(1))
    optimizer = MultiLossOptimizer(sgd(model), [Every(UPGrad(), steps=4)], at="parameters", chunk_size=1)
    counts = []
    for step in range(6):
        calls.clear()
        optimizer.step(model(step))
        counts.append(len(calls))
    assert counts[1:] == [1, 1, 1, 3, 1]  # the first looks for injected gradients, too


def test_a_loss_without_a_weight_is_decided_on_at_once():
    model = Problem()
    optimizer = MultiLossOptimizer(sgd(model), [every := Every(UPGrad(), steps=5)], at="parameters")
    optimizer.step({**model(0), "initial": None})
    assert every.last.numbers.isnan().tolist() == [False, False, True]
    optimizer.step(model(1))
    assert every.since.number == 0
    assert not every.last.numbers.isnan().any()
    optimizer.step(model(2))
    assert every.since.number == 1
    assert "one ordinary backward pass of the weighted sum" in optimizer.explain()


IN_ONE = "one ordinary backward pass of the weighted sum"
SELDOM = {
    "weights": lambda: GradientNorms(average=0.5, period=3),
    "norms": lambda: GradientNorms(average=0.5, period=3, of="norms", power=0.5),
    "annealing": lambda: Annealing(residual="residual", average=0.5, period=3),
}


@pytest.mark.parametrize("at", ["parameters", "all parameters"])
@pytest.mark.parametrize("make", SELDOM.values(), ids=SELDOM)
def test_weights_that_do_not_move_need_no_rows(at, make):
    """Against the same with rows in each step, which a transform behind it needs that changes nothing."""
    ours, theirs = Problem(), Problem()
    seldom = MultiLossOptimizer(sgd(ours, 0.01), [make()], at=at)
    always = MultiLossOptimizer(sgd(theirs, 0.01), [make(), GradDrop(leak=1.0)], at=at)
    in_one = []
    for step in range(10):
        for optimizer, model in ((seldom, ours), (always, theirs)):
            losses = model(step)
            if step in (3, 5):  # it is due where it is absent, and later than the others from then on
                losses["boundary"] = None
            optimizer.zero_grad()
            optimizer.step(losses)
        torch.testing.assert_close(gradient(ours), gradient(theirs))
        in_one.append(IN_ONE in seldom.explain())
    assert in_one == [False, True, True, False, False, True, False, True, False, False]
    state, expected = (optimizer.transforms[0].state_dict() for optimizer in (seldom, always))
    for name, part in expected.items():
        assert state[name]["numbers"] == pytest.approx(part["numbers"])


@pytest.mark.parametrize("make", [*SELDOM.values(), lambda: Every(ConFIG(), steps=4)], ids=[*SELDOM, "every"])
def test_a_monitor_sees_what_happens_while_weights_hold(make):
    """The gradients are those that nobody looks at."""
    ours, theirs = Problem(), Problem()
    monitor = Monitor(optimizer := MultiLossOptimizer(sgd(ours, 0.01), [make()], at="parameters"), every=2)
    alone = MultiLossOptimizer(sgd(theirs, 0.01), [make()], at="parameters")
    for step in range(8):
        for each, model in ((optimizer, ours), (alone, theirs)):
            each.zero_grad()
            each.step(model(step))
        torch.testing.assert_close(gradient(ours), gradient(theirs))
        assert (IN_ONE in optimizer.explain()) == (step % 2 == 1 and IN_ONE in alone.explain())
    assert [record.step for record in monitor.history if record.cosines] == [0, 2, 4, 6]
    assert set(monitor.raised) == set(NAMES)


def test_one_length_needs_the_rows_of_each_step():
    ours, theirs = Problem(), Problem()
    scaled = MultiLossOptimizer(sgd(ours, 0.01), [SELDOM["norms"]()], at="parameters", length="sum")
    behind = [SELDOM["norms"](), GradDrop(leak=1.0)]
    always = MultiLossOptimizer(sgd(theirs, 0.01), behind, at="parameters", length="sum")
    for step in range(4):
        for each, model in ((scaled, ours), (always, theirs)):
            each.zero_grad()
            each.step(model(step))
        torch.testing.assert_close(gradient(ours), gradient(theirs))


def test_weights_of_some_parameters_alone_are_decided_in_each_step():
    ours, theirs = Problem(), Problem()
    for model, behind in ((ours, []), (theirs, [GradDrop(leak=1.0)])):
        transforms = [SELDOM["weights"](), *behind]
        optimizer = MultiLossOptimizer(sgd(model, 0.01), transforms, at=list(model.trunk[2].parameters()))
        for step in range(5):
            optimizer.zero_grad()
            optimizer.step(model(step))
    torch.testing.assert_close(gradient(ours), gradient(theirs))


def test_every_stands_alone_around_a_method_of_weights():
    model = Problem()
    for other in (
        [Momentum(), Every(UPGrad(), 2)],
        [Every(UPGrad(), 2), GradDrop()],
        [Every(UPGrad(), 2), Whitening()],
    ):
        with pytest.raises(ValueError, match=r"`transforms` has Every.*needs them in each"):
            MultiLossOptimizer(sgd(model), other, at="parameters")
    with pytest.raises(ValueError, match="Every is about each parameter"):
        MultiLossOptimizer(sgd(model), [Every(UPGrad(), 2)])
    with pytest.raises(TypeError, match="`method` must be a method from the Gramian"):
        Every(GradDrop(), 2)
    with pytest.raises(ValueError, match="`steps` must be"):
        Every(UPGrad(), 0)


# -- one length --


OF_MANY_LENGTHS = {
    "UPGrad": UPGrad,
    "MGDA": MGDA,
    "CAGrad": CAGrad,
    "GradDrop": lambda: GradDrop(seed=1),
    "a list": lambda: [PCGrad(seed=1), GradDrop(seed=2)],
}


def combined(at, transforms, length):
    """The gradient that goes on from the site, and that of the parameters."""
    model, arrived = Problem(alike=True), []
    model.trunk[3].register_full_backward_hook(lambda module, inputs, outputs: arrived.append(outputs[0].flatten()))
    place = model.trunk if at == "module" else at
    optimizer = MultiLossOptimizer(sgd(model), transforms, at=place, length=length)
    optimizer.backward(model(0))
    return (arrived[-1] if at == "module" else gradient(model)), optimizer


@pytest.mark.parametrize("at", ["module", "parameters", "all parameters"])
@pytest.mark.parametrize("method", OF_MANY_LENGTHS.values(), ids=OF_MANY_LENGTHS)
@pytest.mark.parametrize("length", ["sum", "mean"])
def test_what_is_combined_is_as_long_as_the_sum_or_the_mean(at, method, length):
    plain, _ = combined(at, [GradDrop(leak=1.0)], None)
    own, _ = combined(at, method(), None)
    ours, optimizer = combined(at, method(), length)
    wanted = plain.norm() / (3 if length == "mean" else 1)
    torch.testing.assert_close(ours, own * wanted / own.norm())
    assert f"{float(own.norm() / plain.norm()):.3g} times the length of the plain sum" in optimizer.explain()


def test_a_length_is_for_what_transforms_combine():
    model = Problem()
    for transforms, words in (
        ([], "there is none"),
        ([UPGrad(), Whitening()], "`length` and Whitening"),
        ([Every(UPGrad(), 2)], "`length` and Every"),
    ):
        with pytest.raises(ValueError, match=words):
            MultiLossOptimizer(sgd(model), transforms, at="parameters", length="sum")
    with pytest.raises(ValueError, match='`length` must be None, "sum" or "mean"'):
        MultiLossOptimizer(sgd(model), length=1.0)
    optimizer = MultiLossOptimizer(sgd(model), [MGDA()], at="parameters", length="sum")
    opposite = model(0)["residual"]
    optimizer.backward([opposite, -opposite])
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())  # nothing is left to rescale


# -- state -------------------------------------------------------------------------------------------------------------

LISTS = {
    "momentum": lambda: [Momentum(absent=True), UPGrad()],
    "momentum, second": lambda: [Momentum(second=0.9), PCGrad(seed=1)],
    "whitening": lambda: [GradDrop(seed=1), Whitening(beta=0.9)],
    "every": lambda: [Every(PCGrad(seed=6), steps=3)],
    "both": lambda: [Momentum(), PCGrad(seed=2), Whitening(pairs=True)],
}


def train(model, optimizer, steps):
    for step in steps:
        losses = model(step)
        if step % 3 == 2:
            losses["boundary"] = None
        optimizer.zero_grad()
        optimizer.step(losses)


@pytest.mark.parametrize("name", LISTS)
def test_a_resumed_run_is_the_undisturbed_one(name):
    def made(model):
        return MultiLossOptimizer(torch.optim.RMSprop(model.parameters(), lr=0.01), LISTS[name](), at="parameters")

    whole = Problem()
    train(whole, made(whole), range(8))
    first, second, file = Problem(), Problem(), io.BytesIO()
    optimizer = made(first)
    train(first, optimizer, range(5))
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second.load_state_dict(loaded["model"])
    optimizer = made(second)
    optimizer.load_state_dict(loaded["optimizer"])
    train(second, optimizer, range(5, 8))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["momentum", "both"])
def test_a_transforms_own_state_will_do(name):
    """As torch.distributed.checkpoint wants it, which keeps nothing else of an optimizer than it knows."""
    one, other = Problem(), Problem()
    first, second = LISTS[name](), LISTS[name]()
    optimizers = [
        MultiLossOptimizer(sgd(m, 0.01), transforms, at="parameters")
        for m, transforms in ((one, first), (other, second))
    ]
    train(one, optimizers[0], range(3))
    other.load_state_dict(one.state_dict())
    for a, b in zip(first, second, strict=True):
        b.load_state_dict(copy.deepcopy(a.state_dict()))
    for model, optimizer in zip((one, other), optimizers, strict=True):
        train(model, optimizer, range(3, 6))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_averages_that_a_checkpoint_left_out_are_told():
    model = Problem()
    optimizer = MultiLossOptimizer(sgd(model), [Whitening()], at="parameters")
    optimizer.step(model(0))
    plain = optimizer.inner.state_dict()
    for group in plain["param_groups"]:
        group["params"] = [f"parameter {i}" for i in group["params"]]
    anew = MultiLossOptimizer(sgd(model), [Whitening()], at="parameters")
    anew.load_state_dict(plain)
    anew.zero_grad()
    with pytest.warns(RuntimeWarning, match="loaded without that of the transforms"):
        anew.step(model(1))


def test_a_sparse_table_of_one_loss_stays_sparse():
    table, shared = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1)
    parameters = [*table.parameters(), *shared.parameters()]
    optimizer = MultiLossOptimizer(
        torch.optim.SGD(parameters, lr=0.1), [Momentum(absent=True), UPGrad(), Whitening()], at="parameters"
    )
    for _ in range(2):
        optimizer.zero_grad()
        optimizer.step([shared(table(torch.tensor([1, 2]))).sum(), shared(torch.ones(2, 3)).square().sum()])
    assert table.weight.grad.is_sparse


@pytest.mark.parametrize("transforms", [[Momentum()], [Whitening()]])
def test_a_sparse_table_of_several_losses_is_refused(transforms):
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = MultiLossOptimizer(torch.optim.SGD(table.parameters(), lr=0.1), transforms, at="parameters")
    with pytest.raises(TypeError, match="parameter with sparse gradients"):
        optimizer.step([table(torch.tensor([1, 2])).sum(), table(torch.tensor([2, 3])).square().sum()])
    assert table.weight.grad is None


def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing():
    model, small = Problem(), nn.Linear(2, 1)
    whitening = Whitening()
    optimizer = MultiLossOptimizer(sgd(model), [whitening], at="parameters")
    optimizer.step(model(0))
    other = MultiLossOptimizer(sgd(small), [Whitening()], at="parameters")
    other.step([small(torch.ones(1, 2)).sum(), small(-torch.ones(1, 2)).square().sum()])
    kept = whitening.history.averages
    with pytest.raises(ValueError, match=r"does not fit Whitening: parameter 0 has shape \(8, 3\)"):
        optimizer.load_state_dict(other.state_dict())
    assert whitening.history.averages is kept


@pytest.mark.parametrize("name", LISTS)
def test_a_scale_is_taken_out_and_a_step_that_will_be_skipped_leaves_no_trace(name):
    plain, scaled = Problem(), Problem()
    optimizers = [MultiLossOptimizer(sgd(m, 0.01), LISTS[name](), at="parameters") for m in (plain, scaled)]
    for step, scale in enumerate((2.0**8, 2.0**10, 2.0**4)):
        for model, optimizer, factor in ((plain, optimizers[0], None), (scaled, optimizers[1], scale)):
            optimizer.zero_grad()
            losses = model(step)
            if factor is not None:
                losses = {n: loss * torch.tensor(factor) for n, loss in losses.items()}
            optimizer.backward(losses)
        torch.testing.assert_close(gradient(scaled) / scale, gradient(plain))
    before = copy.deepcopy([history.averages for history in optimizers[1].pipeline.order.histories])
    losses = {
        n: loss * torch.tensor(2.0**4) * (float("inf") if n == "boundary" else 1) for n, loss in scaled(9).items()
    }
    optimizers[1].zero_grad()
    optimizers[1].backward(losses)
    for old, history in zip(before, optimizers[1].pipeline.order.histories, strict=True):
        for number, of in old.items():
            for key, average in of.items():
                assert torch.equal(average.mean, history.averages[number][key].mean)


def test_a_step_that_fails_leaves_the_averages_as_they_were():
    class Fails(GramianTransform):
        uses_values = False
        wrong = False

        def weights(self, gramian, losses):
            if self.wrong:
                raise ArithmeticError("no weights")
            return torch.ones(len(gramian), dtype=torch.float64)

    model, fails, momentum, whitening = Problem(), Fails(), Momentum(), Whitening()
    optimizer = MultiLossOptimizer(sgd(model), [momentum, fails, whitening], at="parameters")
    optimizer.backward(model(0))
    before = copy.deepcopy([momentum.history.averages, whitening.history.averages])
    fails.wrong = True
    with pytest.raises(ArithmeticError):
        optimizer.backward(model(1))
    for old, history in zip(before, (momentum.history, whitening.history), strict=True):
        for number, of in old.items():
            for key, average in of.items():
                assert average.steps == history.averages[number][key].steps
                assert torch.equal(average.mean, history.averages[number][key].mean)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [Momentum(), Whitening()], ids=["Momentum", "Whitening"])
def test_what_is_about_parameters_wants_rows_there(transform):
    model = Problem()
    name = type(transform).__name__
    for at in ("activations", "nested", model.trunk):
        with pytest.raises(ValueError, match=f'{name} is about each parameter.*at="parameters"'):
            MultiLossOptimizer(sgd(model), [transform], at=at)
    with pytest.raises(ValueError, match=f"{name}.*MultiLossLayer sees one activation"):
        MultiLossLayer(2, [transform])
    with pytest.raises(ValueError, match=f"{name} counts steps, but LBFGS"):
        MultiLossOptimizer(torch.optim.LBFGS(model.parameters()), [transform], at="parameters")


def test_a_metric_wants_rows_at_parameters_and_a_name_or_a_function():
    model = Problem()
    with pytest.raises(ValueError, match="`metric` is about each parameter"):
        MultiLossOptimizer(sgd(model), [UPGrad()], metric="inner")
    with pytest.raises(TypeError, match='`metric` must be None, "inner" or a function'):
        MultiLossOptimizer(sgd(model), [UPGrad()], at="parameters", metric="adam")
    optimizer = MultiLossOptimizer(sgd(model), [UPGrad()], at="parameters", metric=lambda o, p, rows: rows.sum(0))
    with pytest.raises(TypeError, match="`metric` must return one row of numbers for each of"):
        optimizer.backward(model(0))
    assert all(p.grad is None for p in model.parameters())


def test_momenta_are_not_averaged_twice():
    model = Problem()
    for inner in (torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)):
        with pytest.raises(ValueError, match=r"averages what is combined again: it has (betas|momentum)="):
            MultiLossOptimizer(inner, [Momentum()], at="parameters")
    inner = torch.optim.Adam(model.parameters(), betas=(0.0, 0.9))
    optimizer = MultiLossOptimizer(inner, [Momentum()], at="parameters")
    inner.param_groups[0]["betas"] = (0.9, 0.9)  # as a scheduler does
    with pytest.raises(ValueError, match="averages what is combined again"):
        optimizer.step(model(0))


def test_their_places_in_the_list_are_checked():
    model = Problem()

    def refused(transforms, error, words):
        with pytest.raises(error, match=words):
            MultiLossOptimizer(sgd(model), transforms, at="parameters")

    refused([UPGrad(), Momentum()], ValueError, r"`transforms\[1\]` is a Momentum, which must stand before")
    refused([Momentum(), Momentum()], ValueError, r"`transforms\[1\]` is a Momentum, which must stand before.*once")
    refused([Whitening(), UPGrad()], ValueError, r"`transforms\[1\]` stands behind a Whitening")
    refused([Whitening(), Whitening()], ValueError, r"`transforms\[1\]` stands behind a Whitening")
    refused([Momentum(absent=True), GradNorm()], ValueError, r"GradNorm reads the losses.*absent=False")

    class Clamp(RowTransform):
        def transform(self, rows, site):
            return rows.clamp(-1, 1)

    refused([Clamp(), Whitening()], TypeError, "how much of each row Clamp keeps. Give Clamp a method `shares`")
    for wrong, words in (({"beta": 1.0}, "`beta` must be between 0 and 1"), ({"eps": 0}, "`eps` must be above 0")):
        with pytest.raises(ValueError, match=words):
            Whitening(**wrong)
    with pytest.raises(ValueError, match="`beta` must be between 0 and 1"):
        Momentum(beta=1)


def test_a_row_transform_of_the_users_tells_what_it_keeps():
    class Half(RowTransform):
        uses_values, scale_equivariant = False, True

        def transform(self, rows, site):
            return rows * self.shares(rows, site)

        def shares(self, rows, site):
            return torch.full_like(rows, 0.5)

    one, other = Problem(), Problem()
    for model, transforms in ((one, [Half(), Whitening()]), (other, [Whitening()])):
        optimizer = MultiLossOptimizer(sgd(model), transforms, at="all parameters")
        optimizer.backward(model(0))
    shared = one.trunk[0].weight.grad.abs() > 1e-3  # the half is in the gradient and in its moment
    torch.testing.assert_close(one.trunk[0].weight.grad[shared], other.trunk[0].weight.grad[shared])
