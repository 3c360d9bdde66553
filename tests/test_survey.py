"""conflict_report: its numbers are those of autograd's own rows, its advice works, and nothing is changed."""

from __future__ import annotations

import copy
import gc
import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import accumulate, combinations

import pytest
import scipy.stats
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from models import MODELS as AWKWARD
from torch import nn
from torch.autograd.profiler import profile
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import mtopt
from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer, conflict_report
from mtopt._survey import verdict as rules
from mtopt._survey.clock import seconds_of
from mtopt._survey.noise import PARTS
from mtopt._survey.verdict import Measured, Numbers, verdict

NAMES = ("seg", "depth", "normal")


pytestmark = pytest.mark.usefixtures("one_thread")


def square(output, target):
    return (output - target).square().mean()


class Net(nn.Module):
    """A trunk, a head per loss; the batch is the same at each call."""

    def __init__(self, trunk=None, width=5, n=3, dtype=torch.float64, init=0) -> None:
        super().__init__()
        torch.manual_seed(init)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, width)) if trunk is None else trunk
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in [*NAMES, *"abcdefgh"][:n]})
        self.to(dtype)
        self.x = torch.randn(8, 4, dtype=dtype)

    def losses(self):
        z = self.trunk(self.x)
        return {name: square(head(z), i) for i, (name, head) in enumerate(self.heads.items())}


class Partly(Net):
    """Of one module that all losses use, a parameter belongs to one loss, one to two, and one to none."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all, self.two, self.one, self.none = (nn.Parameter(torch.randn(5)) for _ in range(4))

        def forward(self, z):
            return [z * self.all * self.two, z * self.all * self.two + self.one, z * self.all]

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block().double()

    def losses(self):
        features = self.block(self.trunk(self.x))
        return {n: square(h(z), 1) for (n, h), z in zip(self.heads.items(), features, strict=True)}


class Tied(Net):
    """The heads read by the trunk's own last weight, and one is shared by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(6, 5, bias=False).double()
        self.decoder.weight = self.trunk[2].weight

    def losses(self):
        z = self.trunk(self.x)
        decoded = z @ self.decoder.weight
        return {
            name: square(head(z), i) + decoded.square().mean() * i for i, (name, head) in enumerate(self.heads.items())
        }


def batch_norm():
    torch.manual_seed(0)
    return Net(nn.Sequential(nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Flatten()), width=6).on(8, 1, 4)


def mixed():
    net = Net(dtype=torch.float32)
    net.trunk[2].double()
    net.trunk[1] = type("Widen", (nn.Tanh,), {"forward": lambda self, z: z.tanh().double()})()
    net.heads.double()
    return net


def on(self, *shape):
    self.x = torch.randn(*shape, dtype=self.x.dtype)
    return self


Net.on = on
MODELS = {
    "double": Net,
    "float": partial(Net, dtype=torch.float32),
    "mixed": mixed,
    "batch norm": batch_norm,
    "partly shared": Partly,
    "tied": Tied,
    "frozen": lambda: freeze(Net(), "trunk.2"),
}


def freeze(net, name):
    net.get_submodule(name).requires_grad_(False)
    return net


def rows_of(losses, inputs):
    """Autograd's own, `(T, n)`, zero where a loss does not come."""
    rows = [torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True) for loss in losses.values()]
    flat = [[torch.zeros_like(p) if g is None else g for g, p in zip(row, inputs, strict=True)] for row in rows]
    return torch.stack([torch.cat([g.flatten().double() for g in row]) for row in flat])


def reached_by(losses, parameter):
    grads = [torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)[0] for loss in losses.values()]
    return [name for name, grad in zip(losses, grads, strict=True) if grad is not None]


def assert_conflict(conflict, rows, exact=1e-6):
    close = partial(pytest.approx, rel=exact, abs=exact)
    assert conflict.norms.tolist() == close(rows.norm(dim=1).tolist())
    cosines = [[torch.cosine_similarity(a, b, dim=0).item() for b in rows] for a in rows]
    assert conflict.cosines.tolist() == [close(row) for row in cosines]
    here = rows.abs().sum(0) > 0
    assert conflict.coordinates == here.sum()
    assert conflict.purity == close(mtopt.sign_purity(rows)[here].mean().item())
    assert conflict.share == close(((rows > 0).any(0) & (rows < 0).any(0))[here].double().mean().item())


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("kind", MODELS)
def test_the_numbers_are_those_of_autograd_s_rows(kind, chunk_size):
    net = MODELS[kind]()
    losses = net.losses()
    report = conflict_report(losses, net, chunk_size=chunk_size)
    everything, seen = [], set()
    expected = {}
    for name, module in net.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in seen]
        own = [p for p in own if len(reached_by(losses, p)) > 1]
        seen |= {id(p) for p in own}
        everything += own
        if own:
            expected[name] = own
    assert {module.name for module in report.modules} == set(expected)
    for module in report.modules:
        own = expected[module.name]
        assert module.size == sum(p.numel() for p in own)
        assert set(module.losses) == {name for p in own for name in reached_by(losses, p)}
        assert_conflict(module.conflict, rows_of(losses, own))
    assert_conflict(report.total, rows_of(losses, everything))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_activation_has_autograd_s_rows_too(dtype):
    net = Net(dtype=dtype)
    z = net.trunk(net.x)
    losses = {name: square(head(z), i) for i, (name, head) in enumerate(net.heads.items())}
    (meeting,) = conflict_report(losses, net).meetings
    assert (meeting.name, meeting.shape, meeting.size, meeting.losses) == ("Addmm", (8, 5), 40, NAMES)
    assert_conflict(meeting.conflict, rows_of(losses, [z]), exact=1e-5)


def test_what_meets_below_another_meeting_is_what_each_loss_brings_there_itself():
    """A skip connection: the default decides apart, at the upper activation and at the lower one."""
    net = Net()
    z = net.trunk[:2](net.x)
    upper = net.trunk[2](z)
    losses = {name: square(head(upper), i) + z.mean() * (i - 1) for i, (name, head) in enumerate(net.heads.items())}
    low, high = sorted(conflict_report(losses, net).meetings, key=lambda m: m.shape, reverse=True)
    assert_conflict(high.conflict, rows_of(losses, [upper]))
    direct = torch.stack([torch.full((48,), (i - 1) / 48, dtype=torch.float64) for i in range(3)])
    assert_conflict(low.conflict, direct)
    assert (low.shape, high.shape) == ((8, 6), (8, 5))


def test_half_precision_is_summed_wide():
    net = Net(dtype=torch.bfloat16)
    losses = net.losses()
    report = conflict_report(losses, net)
    rows = rows_of(losses, list(net.trunk.parameters()))
    assert_conflict(report.total, rows, exact=1e-3)


def test_modules_are_in_the_order_of_the_forward_pass():
    net = Net()
    net.trunk = nn.ModuleDict({"last": nn.Linear(6, 5), "first": nn.Linear(4, 6)}).double()
    z = net.trunk["last"](net.trunk["first"](net.x))
    report = conflict_report([square(head(z), i) for i, head in enumerate(net.heads.values())], net)
    assert [module.name for module in report.modules] == ["trunk.first", "trunk.last"]
    assert report.losses == ("0", "1", "2")


def test_an_absent_loss_is_not_in_the_report():
    net = Net()
    losses = net.losses()
    whole = conflict_report({**losses, "depth": None}, net)
    assert whole.losses == ("seg", "normal")
    assert "1 of 3 losses are absent" in whole.notes[0]
    assert_conflict(whole.total, rows_of({n: losses[n] for n in whole.losses}, list(net.trunk.parameters())))


def test_a_stack_of_losses_is_the_list_of_them():
    net = Net()
    losses = net.losses()
    stacked = conflict_report(torch.stack(list(losses.values())), net)
    assert stacked.total.gramian.equal(conflict_report(list(losses.values()), net).total.gramian)


# -- nothing is changed ------------------------------------------------------------------------------------------------


class Checkpointed(Net):
    def losses(self):
        z = checkpoint(self.trunk, self.x, use_reentrant=False)
        return {name: square(head(z), i) for i, (name, head) in enumerate(self.heads.items())}


def with_everything():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 5))
    return Checkpointed(trunk)


@pytest.mark.parametrize("make", [Net, with_everything, partial(Net, dtype=torch.bfloat16)])
def test_nothing_is_changed_and_a_backward_may_follow(make):
    nets = [make(), make()]
    for net, reported in zip(nets, (True, False), strict=True):
        torch.manual_seed(1)
        losses = net.losses()
        net.trunk[0].weight.grad = torch.ones_like(net.trunk[0].weight)
        before = copy.deepcopy(net.state_dict()), torch.get_rng_state()
        if reported:
            arrived = []
            for parameter in net.parameters():
                parameter.register_post_accumulate_grad_hook(arrived.append)
            conflict_report(losses, net, chunk_size=1)
            assert arrived == []
            assert net.trunk[0].weight.grad.eq(1).all()
            assert all(p.grad is None for p in net.parameters() if p is not net.trunk[0].weight)
            assert all(map(torch.equal, net.state_dict().values(), before[0].values()))
            assert torch.equal(torch.get_rng_state(), before[1])
        sum(losses.values()).backward()
    for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_a_step_of_the_optimizer_on_the_same_losses_is_the_same_with_and_without_the_report():
    nets = [Net(), Net()]
    for net, reported in zip(nets, (True, False), strict=True):
        optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=1))
        losses = net.losses()
        if reported:
            conflict_report(losses, net, chunk_size=1)
        optimizer.step(losses)
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


@pytest.mark.parametrize("context", [torch.no_grad, partial(torch.autocast, "cpu", dtype=torch.bfloat16)])
def test_it_may_be_called_inside_a_context(context):
    net = Net(dtype=torch.float32)
    losses = net.losses()
    with context():
        report = conflict_report(losses, net)
    assert_conflict(report.total, rows_of(losses, list(net.trunk.parameters())), exact=1e-5)


# -- noise -------------------------------------------------------------------------------------------------------------


class Weighted(nn.Module):
    """A batch of 24 examples, each of which may count less, or not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(6, 1), nn.Linear(6, 1)])
        self.x, self.targets = torch.randn(24, 4), torch.randn(24, 2)
        self.double()
        self.x, self.targets = self.x.double(), self.targets.double()
        with torch.no_grad():
            self.heads[1].weight.copy_(-self.heads[0].weight)  # so that there is something to look at

    def losses(self, weights):
        return self.errors(self.trunk(self.x), self.targets, weights)

    def errors(self, z, targets, weights):
        apart = [head(z)[:, 0] - 1 - target for head, target in zip(self.heads, targets.T, strict=True)]
        return [(error.square() * weights).mean() for error in apart]


class AsVector(Weighted):
    """More losses than there are parts, in one tensor, of which two point apart."""

    def losses(self, weights):
        z = self.trunk(self.x)
        columns = torch.stack([h(z)[:, 0] - 1 - t for h, t in zip(self.heads, self.targets.T, strict=True)], 1)
        more = z.sum(1, keepdim=True) + 20 * torch.arange(1.0, 9)
        return (torch.cat([columns, more], 1).square() * weights[:, None]).mean(0)


class WithPenalty(Weighted):
    """A part of each loss does not come from examples: each part of the batch has its share of that."""

    def losses(self, weights):
        penalty = sum(p.square().sum() for p in self.trunk.parameters()) * weights.mean()
        return [loss + 0.1 * penalty for loss in super().losses(weights)]


class OwnPoints(Weighted):
    """Each loss has its own forward pass, of points that need a gradient themselves."""

    def losses(self, weights):
        losses = []
        for sign in (1, -1):
            x = (self.x + sign).requires_grad_()
            y = self.heads[0](self.trunk(x))[:, 0]
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            losses.append(((slope[:, 0] * 9 - 5 * sign + sign * y).square() * weights).mean())
        return losses


class Tokens(Weighted):
    """The examples lie in the first dimension of a longer one."""

    def losses(self, weights):
        z = self.trunk(self.x[:, None] + torch.arange(3)[:, None]).flatten(0, 1)
        targets = self.targets.repeat_interleave(3, 0)
        return self.errors(z, targets, weights.repeat_interleave(3))


def signal_of(rows):
    """Of the rows of the parts `(PARTS, n)` of two losses: by the definition of the jackknife."""

    def between(parts):
        n = len(parts)
        products = [a @ b for i, (a, _) in enumerate(parts) for j, (_, b) in enumerate(parts) if i != j]
        return sum(products).item() / (n * (n - 1))

    parts = list(zip(*rows, strict=True))
    left_out = [between(parts[:k] + parts[k + 1 :]) for k in range(PARTS)]
    mean = sum(left_out) / PARTS
    error = math.sqrt((PARTS - 1) / PARTS * sum((value - mean) ** 2 for value in left_out))
    return between(parts) / error


@pytest.mark.parametrize("kind", [Weighted, AsVector, WithPenalty, OwnPoints, Tokens])
def test_signals_are_the_jackknife_s_over_eight_parts_of_the_batch(kind):
    model = kind()
    report = conflict_report(model.losses(torch.ones(24).double()), model)
    shared = [p for n, p in model.named_parameters() if kind is OwnPoints or "heads" not in n]
    parts = []
    for part in range(PARTS):
        alone = torch.zeros(24).double()
        alone[3 * part : 3 * part + 3] = 1
        parts.append(rows_of(dict(enumerate(list(model.losses(alone)))), shared))
    looked_at = [(i, j) for i, j in combinations(range(len(report.losses)), 2) if not report.signals[i, j].isnan()]
    assert any(report.total.cosines[i, j] < -0.1 for i, j in looked_at)
    for i, j in looked_at:
        expected = signal_of([[part[i] for part in parts], [part[j] for part in parts]])
        assert report.signals[i, j].item() == pytest.approx(expected, rel=1e-4)


def test_signals_are_taken_only_where_a_cosine_is_low_and_not_where_a_batch_cannot_be_parted():
    model = Weighted()
    model.heads[1].load_state_dict(model.heads[0].state_dict())
    model.targets = model.targets[:, :1].expand(24, 2)
    agreeing = conflict_report(model.losses(torch.ones(24).double()), model)
    assert agreeing.signals.isnan().all()
    small = Weighted()
    small.x, small.targets = small.x[:4], small.targets[:4]
    report = conflict_report(small.losses(torch.ones(4).double()), small)
    assert report.total.cosines[0, 1] < -0.1
    assert report.signals.isnan().all()
    assert "cannot be parted" in report.verdict[0]


# -- the verdict -------------------------------------------------------------------------------------------------------


class Aligned(nn.Module):
    """Two losses or more whose gradients have the lengths and the cosines that are asked for, in each of two layers.

    Examples with a mean of 1 tell much of these, those with a mean of 0 nothing.
    """

    def __init__(self, first, second=None, mean=1.0, n=64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, 8, bias=False) for _ in filter(None, (first, second)))
        self.x = mean + torch.randn(n, 3)
        self.directions = [vectors(*wanted) for wanted in (first, second) if wanted]

    def losses(self):
        both = list(zip(self.layers, self.directions, strict=True))
        return {
            name: sum((layer(self.x) @ rows[i]) for layer, rows in both).mean()
            for i, name in enumerate(NAMES[: len(self.directions[0])])
        }


def vectors(lengths, cosine):
    """Of these lengths, each with this cosine to the next one."""
    angle, n = math.acos(cosine), len(lengths)
    turned = torch.zeros(n, 8)
    for i, length in enumerate(lengths):
        turned[i, 0], turned[i, 1] = length * math.cos(i * angle), length * math.sin(i * angle)
    return turned


def said(*arguments, **settings):
    model = Aligned(*arguments, **settings)
    return conflict_report(model.losses(), model).verdict


NEAR = {
    "lengths": (((1, 11), 0.5), ((1, 9), 0.5)),
    "unrelated": (((1, 1), 0.08), ((1, 1), 0.12)),
    "agreement": (((1, 1), 0.5), ((1, 1), 0.08)),
    "conflict": (((1, 1), -0.15), ((1, 1), -0.08)),
    "uphill": (((1, 3), -0.5), ((1, 1.8), -0.5)),
    "weights first": (((1, 11), -0.5), ((1, 9), -0.5)),
}
WORDS = {
    "lengths": "times shorter than that of",
    "unrelated": "nearly unrelated. Expect no gain",
    "agreement": "the gradients agree. Expect no gain",
    "conflict": "seg and depth conflict: cosine",
    "uphill": "Their plain sum goes uphill for seg",
    "weights first": "Weights may cure that",
}


@pytest.mark.parametrize("rule", NEAR)
def test_each_rule_fires_on_a_model_built_for_it_and_not_on_its_neighbour(rule):
    model, neighbour = NEAR[rule]
    assert WORDS[rule] in " ".join(said(model))
    assert WORDS[rule] not in " ".join(said(neighbour))


def test_a_conflict_of_similar_lengths_names_methods_and_what_decides():
    (sentence,) = said(((1, 2), -0.4))
    assert "cosine -0.40, beyond chance. Their plain sum takes 80 % off the descent of seg." in sentence
    assert "A method may help, such as GradDrop, PCGrad or UPGrad; mtopt.compare decides whether it does." in sentence
    assert all(hasattr(mtopt, name) for name in re.findall(r"\w+", rules.METHODS.replace(" or ", " ")))


def test_a_gradient_that_is_300_times_shorter_is_to_be_weighted_first():
    first, second = said(((300, 1), 0.0))
    assert first.startswith("The gradient of depth is 300 times shorter than that of seg, so the plain sum hardly")
    assert "(ConstantWeights, GradientNorms)" in first
    assert "Cosine +0.00: nearly unrelated" in second
    several = said(((1, 20, 400), 0.5))[0]
    assert "seg is 400 times shorter than that of normal (1 more: over 10 times)" in several


def test_what_the_batch_does_not_tell_from_chance_is_called_no_conflict():
    assert "seg and depth conflict" in said(((1, 1), -0.6), mean=1.0)[0]
    (sentence,) = said(((1, 1), -0.6), mean=0.0)
    assert sentence.startswith("Cosine -0.60 (seg and depth), but parts of the batch differ so much")
    assert "not called a conflict" in sentence


def test_conflict_of_unrelated_losses_is_hardly_ever_claimed():
    """A cosine of a few examples is far from 0 often, and by chance."""
    low = claimed = 0
    for seed in range(60):
        torch.manual_seed(seed)
        model = Net(n=2, width=2, init=seed).on(16, 4)
        targets = torch.randn(2, 16, dtype=torch.float64) * 3
        z = model.trunk(model.x)
        losses = [square(h(z)[:, 0], t) for h, t in zip(model.heads.values(), targets, strict=True)]
        report = conflict_report(losses, model)
        low += report.total.cosines[0, 1].item() < -0.2
        claimed += "0 and 1 conflict" in " ".join(report.verdict)
    assert low >= 10
    assert claimed <= 2


def test_of_two_layers_the_one_in_conflict_is_named():
    told = said(((1, 1), -0.7), ((2, 2), 0.6))
    assert told == (
        "The conflict is at layers.0 (-0.70) only. Try a method there, at=model.layers[0].parameters(); the rest then "
        "gets the plain sum.",
    )
    assert " only." not in " ".join(said(((1, 1), -0.7), ((2, 2), -0.6)))
    assert " only." not in " ".join(said(((1, 1), -0.7), ((9, 9), 0.6)))  # it has little of the gradients
    assert "layers.0" in said(((2, 2), -0.7), ((1, 1), 0.6))[1]  # and all together are in conflict, too


def test_the_place_that_the_verdict_names_can_be_taken():
    model = Aligned(((1, 1), -0.7), ((2, 2), 0.6))
    (told,) = conflict_report(model.losses(), model).verdict
    at = eval(re.search(r"at=(.*?\)),?;", told)[1], {"model": model})
    optimizer = MultiLossOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), mtopt.UPGrad(), at=at)
    optimizer.backward(model.losses())
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    plain_sum(model.losses())
    assert not torch.allclose(ours[0], model.layers[0].weight.grad)
    torch.testing.assert_close(ours[1], model.layers[1].weight.grad)


def test_where_nothing_is_known_nothing_is_said():
    net = Net()
    losses = net.losses()
    losses["seg"] = losses["seg"] * float("inf")
    assert conflict_report(losses, net).verdict == ("Nothing can be said: a gradient is not finite.",)
    for head in net.heads.values():
        nn.init.zeros_(head.weight)
    assert conflict_report(net.losses(), net).verdict[0].startswith("Nothing can be said yet")


FRACTIONS = st.floats(-1, 1, width=32)
SIGNALS = st.sampled_from([math.nan, -50.0, -2.0, 3.0])


@st.composite
def numbers(draw):
    """Of two to five losses, in up to three modules, some without signals."""
    n = draw(st.integers(2, 5))

    def square_of(values):
        upper = {pair: draw(values) for pair in combinations(range(n), 2)}
        return [[1.0 if i == j else upper[min(i, j), max(i, j)] for j in range(n)] for i in range(n)]

    def measured(name, norms):
        return Measured(
            norms, square_of(FRACTIONS), square_of(st.sampled_from([math.nan, -50.0, -2.0, 3.0])), name, name
        )

    total = measured("", draw(st.lists(st.integers(1, 2000), min_size=n, max_size=n, unique=True)))
    modules = [measured(f"m{i}", [norm / 2 for norm in total.norms]) for i in range(draw(st.integers(0, 3)))]
    return Numbers("vwxyz"[:n], total, modules)


def changed(known, change):
    return replace(known, total=change(known.total), modules=[change(module) for module in known.modules])


def words_of(sentences):
    return [sorted(re.findall(r"\S+", re.sub(r"[(),.:]", " ", sentence))) for sentence in sentences]


@given(known=numbers(), power=st.integers(-20, 20))
def test_scaling_all_losses_by_one_factor_changes_no_word(known, power):
    scaled = changed(known, lambda m: replace(m, norms=[2.0**power * norm for norm in m.norms]))
    assert verdict(scaled) == verdict(known)


@given(known=numbers(), random=st.randoms(use_true_random=False))
def test_losses_in_another_order_are_told_in_the_same_words(known, random):
    order = list(range(len(known.losses)))
    random.shuffle(order)

    def shuffled(m):
        squares = ([[square[i][j] for j in order] for i in order] for square in (m.cosines, m.signals))
        return Measured([m.norms[i] for i in order], *squares, m.name, m.code)

    values = [v for m in (known.total, *known.modules) for i, row in enumerate(m.cosines) for v in row[:i]]
    if len(set(values)) == len(values):  # else which pair is named first is open
        other = replace(changed(known, shuffled), losses=[known.losses[i] for i in order])
        assert words_of(verdict(other)) == words_of(verdict(known))


@given(known=numbers())
def test_other_names_change_the_names_alone(known):
    told = verdict(replace(known, losses=[f"<{name}>" for name in known.losses]))
    assert tuple(re.sub("[<>]", "", sentence) for sentence in told) == verdict(known)


@given(known=numbers())
def test_there_is_always_a_verdict_and_no_two_sentences_contradict_each_other(known):
    told = verdict(known)
    about = [any(word in s for s in told) for word in ("Expect no gain", "not called a conflict", " conflict: cosine")]
    assert sum(about) <= 1
    assert sum(about) == 1 or " only. Try a method there" in told[-1]
    assert all(sentence.endswith(".") and "nan" not in sentence for sentence in told)
    lowest = min(known.total.cosines[i][j] for i, j in combinations(range(len(known.losses)), 2))
    assert about[0] <= (lowest >= -0.1)
    assert about[2] <= (lowest < -0.1)


@pytest.mark.parametrize("products", [1, 3, 28, 780])
def test_the_more_products_are_looked_at_the_clearer_a_conflict_must_be(products):
    n = round((1 + math.sqrt(1 + 8 * products)) / 2)
    total = Measured([1.0] * n, [[0.0] * n] * n, [[0.0] * n] * n)
    limit = Numbers([str(i) for i in range(n)], total).limit
    assert products * scipy.stats.t.sf(limit, PARTS - 1) < 0.05


def test_only_losses_that_point_apart_from_another_are_looked_at_and_no_more_than_eight():
    def total(low):
        square = [[0.5] * 12 for _ in range(12)]
        for i, j in low:
            square[i][j] = square[j][i] = -0.5
        return Numbers([str(i) for i in range(12)], Measured([1.0] * 12, square, square))

    assert rules.doubtful(total([(3, 7), (3, 9)])) == [3, 7, 9]
    assert rules.doubtful(total([])) == []
    assert len(rules.doubtful(total(combinations(range(12), 2)))) == 8


# -- the best place ----------------------------------------------------------------------------------------------------


class SplitBatch(Net):
    """Each loss has examples of its own."""

    def losses(self):
        z = self.trunk(self.x)
        return {name: square(head(z[2 * i : 2 * i + 2]), i) for i, (name, head) in enumerate(self.heads.items())}


class SplitByChunks(Net):
    def losses(self):
        parts = self.trunk(self.x).split([2, 2, 4])
        return {n: square(h(z), i) for i, ((n, h), z) in enumerate(zip(self.heads.items(), parts, strict=True))}


class Masked(Net):
    """Each loss multiplies the others' examples by zero: the graph does not show it."""

    def losses(self):
        z = self.trunk(self.x)
        mask = torch.arange(8)[:, None] % 3
        return {n: ((h(z) - i) * (mask == i)).square().mean() for i, (n, h) in enumerate(self.heads.items())}


class OwnForward(Net):
    def losses(self):
        return {n: square(h(self.trunk(self.x + i)), i) for i, (n, h) in enumerate(self.heads.items())}


class Columns(Net):
    """One last layer makes a column for each loss."""

    def losses(self):
        out = self.trunk(self.x)
        return {name: square(out[:, i], i) for i, name in enumerate(NAMES)}


class Entries(Net):
    """The losses are the entries of one tensor."""

    def losses(self):
        return (self.trunk(self.x)[:, :3] - 1).square().mean(0)


class TwoScales(Net):
    """The trunk gives an early activation and a late one, and each loss reads both."""

    class Trunk(nn.Sequential):
        def forward(self, x):
            early = self[1](self[0](x))
            return early, self[2](early)

    def __init__(self) -> None:
        super().__init__()
        self.trunk = self.Trunk(*self.trunk)

    def losses(self):
        early, late = self.trunk(self.x)
        return {n: square(h(late), i) + square(early[:, i], 1) for i, (n, h) in enumerate(self.heads.items())}


class Penalty(Net):
    """One loss comes to the parameters only."""

    def losses(self):
        losses = super().losses()
        return {**losses, "normal": sum(p.square().sum() for p in self.trunk.parameters())}


class PairAbove(Net):
    """Two losses share one more layer, so the third meets them further down."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Linear(5, 5).double()

    def losses(self):
        z = self.trunk(self.x)
        n = self.neck(z).tanh()
        return {name: square(head(z if name == "normal" else n), 1) for name, head in self.heads.items()}


class ByHand(Net):
    """No module makes what the losses read, and each reads examples of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 5).double()), nn.Parameter(torch.randn(1).double())

    def losses(self):
        z = self.x @ self.weight
        first = {name: square(head(z[2 * i : 2 * i + 2]), i) for i, (name, head) in enumerate(self.heads.items())}
        return {**first, "seg": first["seg"] + self.bias.sum()}


class AllOfIt(Net):
    """The heads are no part of the model."""

    def forward(self, x):
        return self.trunk(x)

    def __init__(self) -> None:
        super().__init__()
        self.outside = [self.heads]
        del self.heads

    def losses(self):
        z = self(self.x)
        return {name: square(head(z), i) for i, (name, head) in enumerate(self.outside[0].items())}


RULES = {
    Net: ("activations", "trunk", "All losses meet at one activation, the output of Addmm .8, 5."),
    AllOfIt: ("activations", "", "The module next to it: at=model[.]"),
    TwoScales: (
        "activations",
        "trunk",
        "meet at 2 activations .*Tanh .8, 6.*To decide at the output of one module.*at=model.trunk",
    ),
    Penalty: ("activations", None, 'seg, depth meet at one.*normal: added.*at="parameters" decides among all'),
    PairAbove: ("activations", "trunk", "All losses meet at one activation, the output of Addmm"),
    SplitBatch: ("module", "trunk", "each reads other examples"),
    SplitByChunks: ("module", "trunk", "each reads other examples"),
    Masked: ("module", "trunk", "each reads other examples"),
    Columns: ("activations", None, "All losses meet at one activation, the output of Tanh"),
    Entries: ("activations", None, "All losses meet at one activation, the output of Tanh"),
    OwnForward: ("parameters", "trunk", "a forward pass of its own"),
    ByHand: ("parameters", None, "A MultiLossLayer may stand where no module does"),
}


def wrapped(report, net):
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    return eval(report.best.code, {"mtopt": mtopt, "optimizer": inner, "model": net})


def gradients(net, backward):
    net.zero_grad()
    backward(net.losses())
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def plain_sum(losses):
    sum(losses.values() if isinstance(losses, dict) else losses).backward()


@pytest.mark.parametrize("kind", RULES)
def test_the_best_place_is_named_with_its_reason(kind):
    net = kind()
    report = conflict_report(net.losses(), net)
    at, module, reason = RULES[kind]
    assert (report.best.at, report.best.module) == (at, module)
    assert re.search(reason, report.best.reason), report.best.reason
    refuses = kind in (SplitBatch, SplitByChunks, Masked)
    expected = {"parameters", *(["activations"] * (not refuses)), *(["module"] * (at == "module"))}
    assert {cost.at for cost in report.costs} == expected


@pytest.mark.filterwarnings("ignore:.*(shares no number|differentiated once for each)")
@pytest.mark.parametrize("kind", RULES)
def test_the_advice_can_be_followed_and_makes_a_difference(kind):
    net = kind()
    torch.manual_seed(0)
    for head in getattr(net, "heads", {}).values():
        nn.init.normal_(head.weight)  # so that the losses are in conflict
    optimizer = wrapped(conflict_report(net.losses(), net), net)
    assert not torch.allclose(gradients(net, optimizer.backward), gradients(net, plain_sum))


@pytest.mark.parametrize("kind", [kind for kind, (at, module, _) in RULES.items() if at != "module" and module])
def test_the_module_that_may_be_named_instead_can_be_named(kind):
    net = kind()
    report = conflict_report(net.losses(), net)
    assert f"at=model.{report.best.module}" in report.best.reason
    transform = GradDrop(seed=1, marginalize=0 if report.best.at == "parameters" else None)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer = MultiLossOptimizer(inner, transform, at=net.get_submodule(report.best.module))
    assert not torch.allclose(gradients(net, optimizer.backward), gradients(net, plain_sum))


def test_where_the_default_would_do_nothing_it_is_not_advised():
    """With masks nothing is refused, but told: the gradients of the default are those of the plain sum."""
    net = Masked()
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=1))
    with pytest.warns(RuntimeWarning, match="no number had a gradient of two"):
        optimizer.backward(net.losses())
    torch.testing.assert_close(gradients(net, optimizer.backward), gradients(net, plain_sum))


@pytest.mark.parametrize("name", sorted(set(AWKWARD) - {"complex_parameters_in_the_trunk"}))
@pytest.mark.filterwarnings("ignore:.*(one by one|shares no number|differentiated once for each)")
def test_awkward_models_have_their_rows_and_a_place_that_works(name):
    case = AWKWARD[name]()
    losses = case.run().losses
    named = losses if isinstance(losses, list) else list(losses)
    report = conflict_report(losses, case.model)
    shared = [p for p in case.parameters if len(reached_by(dict(enumerate(named)), p)) > 1]
    assert_conflict(report.total, rows_of(dict(enumerate(named)), shared))
    assert max(map(len, str(report).splitlines())) <= 100
    optimizer = wrapped(report, case.model)
    optimizer.backward(case.run().losses)


def test_a_module_is_written_as_python_has_it():
    net = Net()
    net.trunk = nn.ModuleDict({"a b": nn.Sequential(net.trunk)})
    z = net.trunk["a b"](net.x)
    report = conflict_report([square(head(z), i) for i, head in enumerate(net.heads.values())], net)
    assert report.best.reason.endswith('at=model.trunk["a b"].')


# -- cost --------------------------------------------------------------------------------------------------------------


def peak(run):
    """Most bytes that tensors took at once, above what was held before."""
    gc.collect()
    with profile(profile_memory=True) as profiler:
        run()
    memory = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns())))


def large(width, depth, batch, dtype, n=4):
    """The trunk's last activation, or its parameters, are what there is."""
    net = Net(nn.Sequential(nn.Linear(32, width), *[nn.Linear(width, width) for _ in range(depth)]), width, n, dtype)
    return net.on(batch, 32)


def more_memory(net, transform, at):
    peaks = []
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), transform, at=at)
    for backward in (plain_sum, optimizer.backward):
        net.zero_grad()
        box = [net.losses()]
        peaks.append(peak(lambda: backward(box.pop())))  # noqa: B023
    return peaks[1] - peaks[0]


ACTIVATION, PARAMETERS, SMALL_BATCH = (256, 0, 1024), (256, 3, 96), (256, 3, 8)


@pytest.mark.parametrize(
    ("at", "sizes", "dtype", "n"),
    [
        ("activations", ACTIVATION, torch.float32, 4),
        ("activations", ACTIVATION, torch.bfloat16, 9),
        ("parameters", PARAMETERS, torch.float32, 9),
        ("parameters", PARAMETERS, torch.bfloat16, 4),
        ("parameters", SMALL_BATCH, torch.float32, 9),  # by vmap
    ],
)
def test_the_predicted_memory_is_that_of_a_step(at, sizes, dtype, n):
    net = large(*sizes, dtype, n)
    (cost,) = [cost for cost in conflict_report(net.losses(), net).costs if cost.at == at]
    assert 1 / 1.5 < more_memory(net, GradDrop(seed=1), at) / cost.memory < 1.5
    assert 1 / 1.5 < more_memory(net, mtopt.MGDA(), at) / cost.memory_of_rows < 1.5


class Thirds(Net):
    def losses(self):
        parts = self.trunk(self.x).tensor_split(3)
        return {n: square(h(z), 1) for (n, h), z in zip(self.heads.items(), parts, strict=True)}


def test_the_predicted_memory_of_a_joint_decision_is_that_of_a_step():
    net = Thirds(nn.Sequential(nn.Linear(32, 256)), 256, 3, torch.float32).on(2048, 32)
    (cost,) = [cost for cost in conflict_report(net.losses(), net).costs if cost.at == "module"]
    assert 1 / 1.5 < more_memory(net, GradDrop(seed=1, marginalize=0), net.trunk) / cost.memory < 1.5


@pytest.mark.long  # by the clock
@pytest.mark.parametrize("at", ["activations", "parameters"])
@pytest.mark.parametrize("size", [(512, 4, 256), (32, 1, 32)])
def test_the_predicted_time_is_that_of_a_step(at, size):
    """Within a factor of 1.5, also where other programs run at the same time."""
    net = large(*size, torch.float32)
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=1), at=at)
    report = conflict_report(net.losses(), net)
    (cost,) = [cost for cost in report.costs if cost.at == at]
    assert 1 / 1.5 < measured(net, plain_sum) / report.plain_seconds < 1.5
    assert 1 / 1.5 < measured(net, optimizer.backward) / cost.seconds < 1.5


def measured(net, backward):
    """The time of a backward on one thread; the least of several."""
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for _ in range(12):
        net.zero_grad()
        losses = net.losses()
        before = time.thread_time()
        backward(losses)
        seconds.append(time.thread_time() - before)
    torch.set_num_threads(threads)
    return min(seconds)


def test_the_clock_counts_neither_what_others_do_nor_what_is_slow_once():
    """A pause is the time of other programs; the first run is ten times as long."""
    runs = iter([10_000_000] + [1_000_000] * 99)
    threads = torch.get_num_threads()

    def run():
        time.sleep(0.02)
        sum(range(next(runs)))

    start = time.thread_time()
    sum(range(1_000_000))
    once = time.thread_time() - start
    assert once / 3 < seconds_of(run, torch.device("cpu")) < min(3 * once, once + 0.02)
    assert torch.get_num_threads() == threads


def test_costs_are_told_as_multiples_of_the_plain_sum():
    net = Net()
    report = conflict_report(net.losses(), net)
    for cost in report.costs:
        assert cost.times == pytest.approx(cost.seconds / report.plain_seconds)
        assert cost.times > 1


# -- printing ----------------------------------------------------------------------------------------------------------


def test_the_table_tells_what_there_is():
    net = Net()
    report = conflict_report(net.losses(), net)
    text = str(report)
    for word in ("Gradients of 3 losses on one batch: seg, depth, normal", "trunk.2", "Addmm (8, 5)", report.best.code):
        assert word in text
    assert "At the 65 shared parameters" in text
    assert "A backward pass, predicted in CPU time of one thread (the plain sum of the losses: " in text
    share = f"{100 * report.modules[0].conflict.share:.0f} %"
    assert re.search(rf"trunk.0 +30 +{share}", text)
    assert repr(report) == "<ConflictReport: 3 losses, 2 modules; print it to read it>"


def deep(n=40, losses=9):
    torch.manual_seed(0)
    blocks = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(n)])
    net = Net(nn.Sequential(), 4, losses)
    net.trunk = nn.Module()
    net.trunk.a_backbone_with_a_very_long_name = blocks.double()
    z = blocks(net.x)
    return net, {f"a long name {name}": square(head(z), i) for i, (name, head) in enumerate(net.heads.items())}


def test_many_modules_and_losses_and_long_names_are_shortened():
    net, losses = deep()
    report = conflict_report(losses, net)
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert max(map(len, report.text(80).splitlines())) <= 80
    assert "  ... and 28 more, with fewer numbers in conflict" in lines
    assert any(line.startswith("  t.a.0.0 ") for line in lines)
    assert any("c/e" in line for line in lines)  # what their names begin with is left out
    assert "and 3 more" in " ".join(lines[:3])
    shown = [module for module in report.modules if f"a{module.name.rpartition('name')[2]} " in "\n".join(lines[2:17])]
    assert len(report.modules) == 40
    assert len(shown) >= 12


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_verdict_stands_at_the_end_whole_and_in_the_columns_that_there_are(width):
    net, losses = deep()
    report = conflict_report({**losses, "a long name seg": 1e4 * losses["a long name seg"]}, net)
    head, _, end = report.text(width).rpartition("\n\nVerdict\n")
    assert head
    assert " ".join(end.split()) == " ".join(report.verdict)
    assert max(map(len, end.splitlines())) <= width
    assert all(line.startswith("  ") for line in end.splitlines())


def test_many_activations_are_shortened():
    net = Net()
    z, scales = net.trunk(net.x), []
    for _ in range(15):
        z = z.tanh()
        scales.append(z)
    losses = {name: sum(square(head(z), i) for z in scales) for i, (name, head) in enumerate(net.heads.items())}
    report = conflict_report(losses, net)
    assert len(report.meetings) == 15
    assert "  ... and 3 more" in str(report).splitlines()
    assert "15 activations (Tanh (8, 5), Tanh (8, 5), Tanh (8, 5), ...)" in report.best.reason


def test_the_dict_has_all_numbers_and_goes_into_json():
    net = Net()
    report = conflict_report(net.losses(), net)
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["losses"] == list(NAMES)
    assert [module["name"] for module in told["modules"]] == ["trunk.0", "trunk.2"]
    assert told["total"]["norms"]["depth"] == report.total.norms[1]
    assert told["total"]["cosines"] == report.total.cosines.tolist()
    assert sum(told["total"]["histogram"]) == told["total"]["coordinates"]
    assert told["meetings"][0]["shape"] == [8, 5]
    assert told["best"]["at"] == "activations"
    assert {cost["at"] for cost in told["costs"]} == {"activations", "parameters"}
    assert told["verdict"] == list(report.verdict)
    assert told["clock"] == "CPU time of one thread"
    assert told["signals"] == [[None if math.isnan(s) else s for s in row] for row in report.signals.tolist()]


def test_a_gradient_that_is_not_finite_is_told():
    net = Net()
    losses = net.losses()
    losses["seg"] = losses["seg"] * float("inf")
    report = conflict_report(losses, net)
    assert "not finite, first in trunk.0" in report.notes[0]
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["total"]["norms"]["seg"] is None
    assert "not finite" in str(report)


def test_heads_that_start_at_zero_are_told():
    net = Net()
    for head in net.heads.values():
        nn.init.zeros_(head.weight)
    report = conflict_report(net.losses(), net)
    assert "no gradient of seg, depth, normal comes to a shared parameter" in report.notes[0]
    assert report.best.at == "activations"
    assert report.total.lowest is None
    assert re.search("all +65 +0 % +0.50 +- +-", str(report))


def test_shared_parameters_outside_of_the_model_are_told():
    net = Net()
    report = conflict_report(net.losses(), net.trunk[2])
    assert [module.name for module in report.modules] == [""]
    assert "2 shared parameters are not in `model`" in report.notes[0]
    assert "(model itself)" in str(report)


def test_sparse_and_complex_parameters_are_looked_at_though_not_combined():
    net = Net(nn.Sequential(nn.Embedding(7, 5, sparse=True)))
    net.x = torch.arange(8) % 7
    net.trunk.append(Rotation())
    losses = net.losses()
    report = conflict_report(losses, net, chunk_size=1)
    assert {cost.at for cost in report.costs} == {"activations"}
    assert 'at="parameters" would refuse' in report.notes[0]
    dense, turned = Net.losses(net), net.trunk[1].turn
    assert turned.is_complex()
    rows = torch.stack(
        [
            torch.view_as_real(torch.autograd.grad(loss, turned, retain_graph=True)[0]).flatten()
            for loss in dense.values()
        ]
    )
    assert_conflict(report.modules[1].conflict, rows)


def test_where_losses_meet_at_sparse_parameters_nothing_can_be_combined():
    net = Net(nn.Embedding(7, 5, sparse=True))
    words = torch.arange(8) % 7
    losses = {name: square(head(net.trunk(words)), 1) for name, head in net.heads.items()}
    report = conflict_report(losses, net)
    assert (report.costs, report.best.at) == ((), "parameters")
    assert "would refuse" in report.notes[0]


class Rotation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.randn(5, dtype=torch.complex128))

    def forward(self, z):
        return (z * self.turn).real


def test_the_picture_is_drawn(tmp_path):
    net = Net()
    path = tmp_path / "conflict.png"
    figure = conflict_report(net.losses(), net).plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    bars, lengths, cosines, _ = figure.axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["trunk.0 (30)", "trunk.2 (35)"]
    assert [label.get_text() for label in cosines.get_xticklabels()] == list(NAMES)
    assert [label.get_text() for label in lengths.get_yticklabels()] == list(NAMES)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (bars, lengths, cosines))


def test_the_picture_of_many_modules_and_losses_is_drawn(tmp_path):
    net, losses = deep(n=40, losses=11)
    figure = conflict_report(losses, net).plot(tmp_path / "conflict.svg")
    assert len(figure.axes[0].patches) == 24
    assert "of 40" in figure.axes[0].get_title()
    assert len(figure.axes[2].texts) == 0


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    net = Net()
    report = conflict_report(net.losses(), net)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "mtopt\[plot\]"'):
        report.plot()


def test_matplotlib_is_not_imported_before_it_is_needed():
    code = "import mtopt, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_it_takes_a_module_and_two_losses():
    net = Net()
    losses = net.losses()
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module, but it is list"):
        conflict_report(losses, [net])
    with pytest.raises(ValueError, match="`losses` has only one loss that is present"):
        conflict_report({**losses, "depth": None, "normal": None}, net)
    with pytest.raises(ValueError, match="`chunk_size` must be None or a whole number above 0"):
        conflict_report(losses, net, chunk_size=0)
    with pytest.raises(ValueError, match="must be a scalar"):
        conflict_report([net.x.requires_grad_(), losses["seg"]], net)


def test_losses_that_share_nothing_are_refused():
    nets = [Net(), Net()]
    with pytest.raises(RuntimeError, match="The `losses` share no parameter, so there is nothing to combine"):
        conflict_report([net.losses()["seg"] for net in nets], nets[0])


def test_another_model_is_refused():
    with pytest.raises(RuntimeError, match="`model` has none of the 4 parameters that the `losses` share"):
        conflict_report(Net().losses(), Net())


def test_a_graph_that_is_freed_is_refused():
    net = Net()
    losses = net.losses()
    sum(losses.values()).backward()
    with pytest.raises(RuntimeError, match="graph that an earlier backward pass has freed"):
        conflict_report(losses, net)


def test_a_complex_activation_is_refused():
    net = Net()
    z = torch.fft.rfft(net.trunk(net.x))
    losses = [square(head(z.real @ net.x[:3, :1].expand(3, 5)), 0) for head in net.heads.values()]
    with pytest.raises(TypeError, match=r"meet at a tensor of dtype torch\.complex128"):
        conflict_report(losses, net)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own doings
@pytest.mark.parametrize("part", ["whole", "whole, stacked", "heads"])
def test_a_compiled_part_that_hides_what_is_shared_is_refused(part):
    net = Net(dtype=torch.float32)
    torch.compiler.reset()
    if part == "whole":
        losses = torch.compile(lambda: list(net.losses().values()), backend="aot_eager")()
    elif part == "whole, stacked":
        losses = torch.compile(lambda: torch.stack(list(net.losses().values())), backend="aot_eager")()
    else:
        z = net.trunk(net.x)
        losses = torch.compile(lambda z: [h(z).square().mean() for h in net.heads.values()], backend="aot_eager")(z)
    with pytest.raises(RuntimeError, match=r"torch.compile made one node .* run the model as it was"):
        conflict_report(losses, net)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_trunk_is_fine():
    net = Net(dtype=torch.float32)
    torch.compiler.reset()
    z = torch.compile(net.trunk, backend="aot_eager")(net.x)
    losses = {name: square(head(z), i) for i, (name, head) in enumerate(net.heads.items())}
    report = conflict_report(losses, net)
    assert_conflict(report.total, rows_of(losses, list(net.trunk.parameters())), exact=1e-4)
    assert report.best.module == "trunk"
    torch.compiler.reset()


def test_a_reentrant_checkpoint_is_refused():
    net = Net()
    z = checkpoint(net.trunk, net.x.requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"reentrant checkpoint hides .*use_reentrant=False"):
        conflict_report([square(head(z), 0) for head in net.heads.values()], net)


def test_a_selective_checkpoint_is_refused():
    net = Net()
    contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
    z = checkpoint(net.trunk, net.x, use_reentrant=False, context_fn=contexts)
    with pytest.raises(RuntimeError, match=r"differentiated only once .a selective checkpoint"):
        conflict_report([square(head(z), 0) for head in net.heads.values()], net)


@pytest.mark.parametrize("transforms", [None, []])
def test_a_layer_at_work_is_refused_and_one_that_lets_through_is_fine(transforms):
    net = Net()
    layer = MultiLossLayer(3, transforms)

    def run():
        return [square(head(z), 0) for head, z in zip(net.heads.values(), layer(net.trunk(net.x)), strict=True)]

    if transforms is None:
        with pytest.raises(RuntimeError, match=r"MultiLossLayer, which would combine .*Call its `.eval\(\)`"):
            conflict_report(run(), net)
        layer.eval()
    assert conflict_report(run(), net).best.at == "activations"


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_wrapped_model_is_refused_and_the_bare_one_is_fine(one_rank):
    net = Net()
    wrapper = DistributedDataParallel(net)
    for call in (lambda: conflict_report(net.losses(), wrapper), lambda: conflict_report(net.losses(), sharded())):
        with pytest.raises(RuntimeError, match="bare model, in one process"):
            call()
    assert conflict_report(net.losses(), net).best.at == "activations"


def sharded():
    net = Net()
    fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    return net


def test_losses_of_a_wrapped_model_are_refused(one_rank):
    net = Net()
    net.forward = lambda: tuple(net.losses().values())
    losses = DistributedDataParallel(net, static_graph=True)()
    with pytest.raises(RuntimeError, match="come from a DistributedDataParallel"):
        conflict_report(list(losses), net)
