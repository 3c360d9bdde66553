"""Monitor: what it says is what autograd's own rows say, and training goes on as if nobody looked."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from ranks import run_ranks
from strategies import stacked_rows
from tensorboard.backend.event_processing import event_accumulator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

import mtopt
from mtopt import ConstantWeights, GradDrop, Monitor, MultiLossLayer, MultiLossOptimizer, UPGrad
from mtopt._combine.conflict import Conflict


class Net(nn.Module):
    def __init__(self, layer=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
        self.layer = layer

    def forward(self, step):
        z = self.trunk(torch.randn(8, 4, generator=torch.Generator().manual_seed(step)))
        aliases = [z] * 3 if self.layer is None else self.layer(z)
        return z, {
            n: (h(a) - i).square().mean() for i, (n, h, a) in enumerate(zip("abc", self.heads, aliases, strict=True))
        }


def wrapped(net, transforms, at="activations"):
    place = net.trunk if at == "module" else at
    return MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), transforms, at=place)


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        optimizer.step(net(step)[1])


@pytest.mark.parametrize("at", ["activations", "parameters", "module"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: GradDrop(seed=1),
        lambda: [mtopt.UncertaintyWeighting(), mtopt.PCGrad(seed=1), GradDrop(seed=1, leak=0.2)],
        lambda: [mtopt.GradNorm(), mtopt.MGDA()],
    ],
    ids=["GradDrop", "three kinds", "weights"],
)
def test_training_goes_on_as_if_nobody_looked(make, at):
    nets = []
    for watched in (True, False):
        net = Net()
        optimizer = wrapped(net, make(), at)
        if watched:
            Monitor(optimizer, every=2)
        train(net, optimizer, range(6))
        nets.append(net)
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


@pytest.mark.parametrize("at", ["activations", "parameters", "module", "layer"])
def test_the_numbers_are_those_of_autograd_s_rows(at):
    if at == "layer":
        watched = MultiLossLayer(["a", "b", "c"], GradDrop(seed=1))
        net = Net(watched)
        other = Net()
    else:
        net = other = Net()
        watched = wrapped(net, GradDrop(seed=1), at)
    monitor = Monitor(watched)
    z, losses = other(0)
    inputs = list(net.trunk.parameters()) if at == "parameters" else [z]
    rows = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, inputs, retain_graph=True)])
            for loss in losses.values()
        ]
    )
    values = net(0)[1]
    if at == "layer":
        sum(values.values()).backward()
    else:
        watched.backward(values)
    latest = monitor.latest
    site = "site0"
    for i, name in enumerate("abc"):
        assert latest[f"{site}/norm/{name}"] == pytest.approx(rows[i].norm().item(), rel=1e-5)
    cosine = torch.cosine_similarity(rows[0], rows[2], dim=0).item()
    assert latest[f"{site}/cosine/a/c"] == pytest.approx(cosine, abs=1e-5)
    purity = mtopt.sign_purity(rows)[rows.abs().sum(0) > 0]
    assert latest[f"{site}/purity"] == pytest.approx(purity.mean().item(), rel=1e-5)
    conflict = ((rows > 0).any(0) & (rows < 0).any(0)).float().mean().item()
    assert latest[f"{site}/conflict"] == pytest.approx(conflict)
    (record,) = monitor.history
    assert sum(record.purity[site]) == len(purity)


@pytest.mark.parametrize("size", [7, 2**15], ids=["small", "large enough for the fast draw"])
@pytest.mark.parametrize("keep", [0.0, 0.7, 1.0])
def test_without_leak_what_graddrop_kept_adds_up_to_the_gradient(size, keep):
    """All rows that are kept at a coordinate have one sign, so nothing cancels; and the draws are the step's own."""
    weight = nn.Parameter(torch.zeros(size))
    rows = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    optimizer = MultiLossOptimizer(torch.optim.SGD([weight]), GradDrop(keep=keep, seed=1), at="parameters")
    monitor = Monitor(optimizer)
    optimizer.backward([weight @ row for row in rows])
    shares = torch.tensor([monitor.latest[f"site0/kept/{i}"] for i in range(3)])
    assert (shares @ rows.abs().sum(1)).item() == pytest.approx(weight.grad.abs().sum().item(), rel=1e-4)


def test_what_graddrop_kept_is_what_it_left():
    """By a rows' transform that can be repeated: the same seed at the same count."""
    net = Net()
    optimizer = wrapped(net, GradDrop(seed=3))
    monitor = Monitor(optimizer)
    z, losses = net(0)
    rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses.values()])
    of = mtopt.Losses((0, 1, 2), 3, ("a", "b", "c"))
    left = GradDrop(seed=3).transform(rows, mtopt.Site(of))
    optimizer.backward(losses)
    for i, name in enumerate("abc"):
        share = (left[i].abs().sum() / rows[i].abs().sum()).item()
        assert monitor.latest[f"site0/kept/{name}"] == pytest.approx(share, rel=1e-4)


def test_it_looks_at_every_nth_step_and_keeps_the_newest():
    net = Net()
    optimizer = wrapped(net, GradDrop())
    monitor = Monitor(optimizer, every=3, keep=2)
    assert monitor.latest == {}
    train(net, optimizer, range(10))
    assert [record.step for record in monitor.history] == [6, 9]
    monitor.remove()
    train(net, optimizer, range(10))
    assert [record.step for record in monitor.history] == [6, 9]


def test_weights_and_losses_are_told():
    net = Net()
    monitor = Monitor(optimizer := wrapped(net, [mtopt.ConstantWeights({"a": 0.5}), GradDrop()]))
    _, losses = net(0)
    optimizer.backward(losses)
    assert monitor.latest["weight/a"] == 0.5
    assert monitor.latest["weight/b"] == 1
    assert monitor.latest["loss/c"] == pytest.approx(losses["c"].item())


def test_the_factor_of_a_gradscaler_is_taken_out():
    norms = []
    for scale in (1.0, 1024.0):
        net = Net()
        monitor = Monitor(optimizer := wrapped(net, GradDrop()))
        factor = torch.tensor(scale)
        optimizer.backward({name: loss * factor for name, loss in net(0)[1].items()})
        norms.append(monitor.latest["site0/norm/a"])
    assert norms[0] == pytest.approx(norms[1])


def test_an_absent_and_a_lone_loss_are_no_problem():
    net = Net()
    monitor = Monitor(optimizer := wrapped(net, GradDrop()), every=1)
    for present in ("abc", "ac", "b"):
        losses = net(0)[1]
        optimizer.step({name: loss if name in present else None for name, loss in losses.items()})
    first, second, third = (set(record.numbers) for record in monitor.history)
    assert "site0/cosine/a/b" in first
    assert "site0/cosine/a/b" not in second
    assert "site0/cosine/a/c" in second
    assert not any(name.startswith("site") for name in third)


def test_copies_are_not_watched():
    layer = MultiLossLayer(2, GradDrop())
    Monitor(layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        Monitor(twin)


@given(stacked_rows(min_losses=2))
def test_conflict_counts_the_coordinates_with_both_signs(rows):
    conflict = Conflict([str(i) for i in range(len(rows))])
    conflict.add(rows, range(len(rows)))
    here = rows.abs().sum(0) > 0
    assert conflict.coordinates == here.sum() == conflict.histogram.sum()
    assert conflict.conflicting == ((rows > 0).any(0) & (rows < 0).any(0)).sum()
    purity = mtopt.sign_purity(rows)[here]
    assert conflict.purity == pytest.approx(purity.mean().item() if here.any() else 0.5)
    torch.testing.assert_close(conflict.norms, rows.norm(dim=1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Monitor(torch.optim.SGD(Net().parameters())), TypeError, "`watched` must be a MultiLossOptimizer"),
        (lambda: Monitor(wrapped(Net(), [])), ValueError, "GradDrop\\(leak=1.0\\) gives the plain sum"),
        (lambda: Monitor(wrapped(Net(), GradDrop()), every=0), ValueError, "`every` must be a whole number from 1"),
        (lambda: Monitor(wrapped(Net(), GradDrop()), keep=1.5), ValueError, "`keep` must be a whole number from 1"),
    ],
    ids=["type", "plain", "every", "keep"],
)
def test_what_cannot_be_watched_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_only_one_looks_at_a_time():
    optimizer = wrapped(Net(), GradDrop())
    first = Monitor(optimizer)
    with pytest.raises(ValueError, match="has a Monitor already"):
        Monitor(optimizer)
    first.remove()
    Monitor(optimizer)


def test_tensorboard_reads_back_what_was_seen(tmp_path):
    net = Net()
    with SummaryWriter(tmp_path) as writer:
        monitor = Monitor(optimizer := wrapped(net, GradDrop()), every=2, writer=writer)
        train(net, optimizer, range(5))
    events = event_accumulator.EventAccumulator(str(tmp_path), {"histograms": 0}).Reload()
    scalars = events.Scalars("site0/conflict")
    assert [event.step for event in scalars] == [0, 2, 4]
    assert scalars[-1].value == pytest.approx(monitor.latest["site0/conflict"])
    histogram = events.Histograms("site0/purity histogram")[-1].histogram_value
    assert list(histogram.bucket) == monitor.history[-1].purity["site0"]


def train_on_a_rank(rank, at, watch):
    net = Net()
    model = DistributedDataParallel(net)
    transforms = [mtopt.MGDA(), GradDrop(seed=1)] if at == "activations" else GradDrop(seed=1)
    optimizer = wrapped(net, transforms, at)
    monitor = Monitor(optimizer, every=2) if watch and rank == 0 else None
    for step in range(4):
        optimizer.zero_grad()
        optimizer.step(model(10 * step + rank)[1])
    return [p.tolist() for p in net.parameters()], {} if monitor is None else monitor.latest


@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_one_rank_may_look_alone(at):
    """Looking makes no collective call, so the others need not know."""
    watched = run_ranks(train_on_a_rank, 2, at, True)
    unwatched = run_ranks(train_on_a_rank, 2, at, False)
    assert [weights for weights, _ in watched] == [weights for weights, _ in unwatched]
    assert watched[0][0] == watched[1][0]
    latest = watched[0][1]
    assert latest["site0/norm/a"] > 0
    assert ("site0/kept/a" in latest) == (at == "parameters")  # at activations the ranks decide together


# -- harm --


@pytest.mark.parametrize("inner", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("transforms", [UPGrad, lambda: [ConstantWeights([2.0, 0.5]), GradDrop(seed=1)]])
@pytest.mark.parametrize("at", ["parameters", "all parameters"])
def test_the_step_that_was_taken_is_held_against_each_losss_gradient(inner, transforms, at):
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(3, 4), "a": nn.Linear(4, 1), "b": nn.Linear(4, 1)}).double()
    settings = {} if inner == "SGD" else {"weight_decay": 0.1}
    made = getattr(torch.optim, inner)(model.parameters(), lr=0.1, **settings)
    optimizer = MultiLossOptimizer(made, transforms(), at=at)
    monitor = Monitor(optimizer, every=2)
    raised = {"a": [], "b": []}
    for step in range(5):
        x = torch.randn(6, 3, dtype=torch.float64)
        z = model["trunk"](x).tanh()
        losses = {"a": (model["a"](z) - x[:, :1]).square().mean(), "b": (model["b"](z) + x[:, :1]).square().mean()}
        parameters = list(model.parameters())
        rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses.values()]
        before = [p.detach().clone() for p in parameters]
        optimizer.zero_grad()
        optimizer.backward(losses)
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        for name, row in zip(losses, rows, strict=True):
            moved = zip(row, parameters, before, strict=True)
            change = sum(float((g * (p.detach() - old)).sum()) for g, p, old in moved if g is not None)
            if step % 2 == 0:
                assert monitor.latest[f"change/{name}"] == pytest.approx(change)
                raised[name].append(change > 0)
    assert monitor.raised == {name: sum(above) / 3 for name, above in raised.items()}
    assert "the steps that were looked at raised to first order: a in" in optimizer.explain()


def test_at_activations_the_change_is_not_known():
    model = nn.ModuleDict({"trunk": nn.Linear(3, 4), "a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
    optimizer = MultiLossOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    monitor = Monitor(optimizer)
    z = model["trunk"](torch.ones(2, 3)).tanh()
    optimizer.step([model["a"](z).mean(), model["b"](z).mean()])
    assert not any(name.startswith("change/") for name in monitor.latest)
    assert monitor.raised == {}


def test_alignment_is_1_for_one_direction_and_minus_1_for_opposite_ones():
    for second, expected in ((2.0, 1.0), (-3.0, -1.0)):
        w = nn.Parameter(torch.ones(4))
        optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), at="parameters")
        monitor = Monitor(optimizer)
        optimizer.step([w.sum(), second * w.sum()])
        assert monitor.latest["site0/alignment"] == pytest.approx(expected)


@pytest.mark.parametrize(("beta", "shrinks", "told"), [(0.99, 0.97, True), (0.99, 1.0, False), (0.9, 0.97, False)])
def test_a_memory_that_is_long_against_the_gradients_changes_is_told(beta, shrinks, told):
    """Lengths that fall by 3 % a step: 16 times within three quarters of 100 steps, 1.2 times within those of 10."""
    w = nn.Parameter(torch.ones(3))
    optimizer = MultiLossOptimizer(torch.optim.Adam([w], lr=1e-3, betas=(0.9, beta)), UPGrad(), at="parameters")
    monitor = Monitor(optimizer, every=5)
    for step in range(120):
        optimizer.zero_grad()
        optimizer.step({"falls": shrinks**step * w.sum(), "stays": w[0] - w[1]})
    assert bool(monitor.memory) == told
    assert (monitor.memory in optimizer.explain().replace("\n    ", " ")) or not told
    if told:
        assert "within the 100 steps over which the inner optimizer averages squares" in monitor.memory
        assert "a beta2 of 0.9)" in monitor.memory


def test_without_a_memory_of_squares_nothing_is_told_of_it():
    w = nn.Parameter(torch.ones(3))
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=1e-3), UPGrad(), at="parameters")
    monitor = Monitor(optimizer, every=1)
    for step in range(40):
        optimizer.step([0.8**step * w.sum(), w[0]])
    assert monitor.memory == ""


def test_the_picture_has_what_the_steps_change_as_a_share_of_each_loss():
    w = nn.Parameter(torch.ones(2))
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), UPGrad(), at="parameters")
    monitor = Monitor(optimizer, every=1)
    shares = []
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.step({"a": 5 + w.sum(), "b": 3 + w[0] - w[1]})
        shares.append(monitor.latest["change/a"] / monitor.latest["loss/a"])
    axes = next(axes for axes in monitor.plot().axes if "change" in axes.get_title())
    assert axes.lines[0].get_ydata() == pytest.approx(shares)
