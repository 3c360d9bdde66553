"""conflict_report: its numbers are those of autograd's own rows, its advice works, and nothing is changed."""

from __future__ import annotations

import copy
import gc
import json
import re
import subprocess
import sys
import time
from functools import partial
from itertools import accumulate

import pytest
import torch
import torch.distributed as dist
from models import MODELS as AWKWARD
from torch import nn
from torch.autograd.profiler import profile
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import mtopt
from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer, conflict_report

NAMES = ("seg", "depth", "normal")


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


@pytest.mark.long  # by the clock, so not where other programs run
@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_the_predicted_time_is_that_of_a_step(at):
    """Within a factor of 3, at the best of several tries: other programs run at the same time."""
    net = large(512, 4, 256, torch.float32)
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=1), at=at)
    predicted, measured, plain = [], [], []
    for attempt in range(12):
        report = conflict_report(net.losses(), net)
        predicted += [cost.seconds for cost in report.costs if cost.at == at]
        for into, backward in ((measured, optimizer.backward), (plain, plain_sum)):
            net.zero_grad()
            losses = net.losses()
            before = time.perf_counter()
            backward(losses)
            into.append(time.perf_counter() - before)
        good = attempt > 2 and 1 / 3 < min(predicted) / min(measured) < 3
        if good and 1 / 3 < report.plain_seconds / min(plain) < 3:
            return
    pytest.fail(f"predicted {min(predicted)}, measured {min(measured)} s; plain {report.plain_seconds}, {min(plain)} s")


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
    bars, cosines, _ = figure.axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["trunk.0 (30)", "trunk.2 (35)"]
    assert [label.get_text() for label in cosines.get_xticklabels()] == list(NAMES)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (bars, cosines))


def test_the_picture_of_many_modules_and_losses_is_drawn(tmp_path):
    net, losses = deep(n=40, losses=11)
    figure = conflict_report(losses, net).plot(tmp_path / "conflict.svg")
    assert len(figure.axes[0].patches) == 24
    assert "of 40" in figure.axes[0].get_title()
    assert len(figure.axes[1].texts) == 0


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
    with pytest.raises(RuntimeError, match="graph that an earlier backward has freed"):
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
