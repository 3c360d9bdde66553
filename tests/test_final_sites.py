"""The default site on the structures of real programs: every loss takes part in a decision, or is named."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mtopt
from mtopt import GradDrop, MultiLossOptimizer, PCGrad, RowTransform
from mtopt._torch import HOOKS_CAN_BE_SEEN


class Seen(RowTransform):
    """The identity, which notes for each decision the losses and the shape of their rows."""

    uses_values, scale_equivariant = False, True

    def __init__(self):
        self.decisions = []

    def transform(self, rows, site):
        self.decisions.append((tuple(site.losses.label(i) for i in range(len(rows))), tuple(rows.shape[1:])))
        return rows


class Larger(RowTransform):
    """At each coordinate the largest row alone: not linear, so that it tells where it is taken."""

    uses_values, scale_equivariant = False, True

    def transform(self, rows, site):
        return rows * (rows.abs() == rows.abs().amax(0))


def wrapped(model, transforms, **settings):
    inner = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return MultiLossOptimizer(inner, transforms, **settings)


def gradients(model):
    return [p.grad for p in model.parameters()]


def decisions(model, losses, **settings):
    """Which losses, in their order, and where: one for each decision."""
    seen = Seen()
    wrapped(model, seen, **settings).backward(losses)
    order = list(losses) if isinstance(losses, dict) else [str(i) for i in range(len(losses))]
    return sorted((tuple(sorted(labels, key=order.index)), shape) for labels, shape in seen.decisions)


def by_hand(model, losses, site):
    """The plain gradient, but below the site `Larger` of the rows that plain autograd gives there."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = list(losses.values()) if isinstance(losses, dict) else losses
    rows = torch.stack([torch.autograd.grad(loss, site, retain_graph=True)[0] for loss in losses])
    plain = torch.autograd.grad(sum(losses), parameters, retain_graph=True, allow_unused=True)
    change = Larger().transform(rows, None).sum(0) - rows.sum(0)
    below = torch.autograd.grad(site, parameters, change, retain_graph=True, allow_unused=True)
    return [a if b is None else a + b for a, b in zip(plain, below, strict=True)]


class Program(nn.Module):
    """Layers by name; `forward` gives the losses and the tensor at which all of them have met."""

    def __init__(self, **layers):
        super().__init__()
        torch.manual_seed(0)
        for name, (kind, *sizes) in layers.items():
            setattr(self, name, kind(*sizes))


class ActorCritic(Program):
    """PPO: policy and entropy share the policy's head, the value has a head of its own."""

    def __init__(self):
        super().__init__(trunk=(nn.Linear, 8, 32), policy=(nn.Linear, 32, 3), value=(nn.Linear, 32, 1))

    def forward(self):
        torch.manual_seed(1)
        features = self.trunk(torch.randn(64, 8)).tanh()
        actions = torch.distributions.Categorical(logits=self.policy(features))
        ratio = actions.log_prob(torch.randint(3, (64,))).exp() * 3
        advantage = torch.randn(64)
        surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        value = F.mse_loss(self.value(features).flatten(), torch.randn(64))
        return {"policy": -surrogate.mean(), "value": value, "entropy": -0.01 * actions.entropy().mean()}, features


class SegmentationAndDepth(Program):
    """Cross-entropy and Dice read the same logits, depth has a head of its own."""

    def __init__(self):
        super().__init__(trunk=(nn.Conv2d, 3, 6, 3), seg=(nn.Conv2d, 6, 4, 1), depth=(nn.Conv2d, 6, 1, 1))

    def forward(self):
        torch.manual_seed(1)
        features, target = self.trunk(torch.randn(2, 3, 8, 8)).relu(), torch.randint(4, (2, 6, 6))
        logits = self.seg(features)
        share, hot = logits.softmax(1), F.one_hot(target, 4).movedim(-1, 1)
        dice = 1 - (2 * (share * hot).sum((2, 3)) / (share + hot).sum((2, 3))).mean()
        depth = self.depth(features).exp().sub(1).abs().mean()
        return {"ce": F.cross_entropy(logits, target), "dice": dice, "depth": depth}, features


class UNet(Program):
    """A skip around the bottleneck, and two heads at the end: segmentation and depth."""

    def __init__(self):
        super().__init__(
            down=(nn.Conv2d, 1, 4, 3, 1, 1), bottom=(nn.Conv2d, 4, 4, 3, 1, 1), up=(nn.Conv2d, 8, 4, 3, 1, 1),
            seg=(nn.Conv2d, 4, 3, 1), depth=(nn.Conv2d, 4, 1, 1),
        )  # fmt: skip

    def forward(self):
        torch.manual_seed(1)
        high = self.down(torch.randn(2, 1, 8, 8)).relu()
        low = F.interpolate(self.bottom(F.max_pool2d(high, 2)).relu(), scale_factor=2)
        features = self.up(torch.cat([high, low], 1)).relu()
        seg = F.cross_entropy(self.seg(features), torch.randint(3, (2, 8, 8)))
        return [seg, self.depth(features).square().mean()], features


class Columns(Program):
    """One head of four columns: two losses share three of them, the third reads its own."""

    def __init__(self):
        super().__init__(trunk=(nn.Linear, 8, 16), head=(nn.Linear, 16, 4))

    def forward(self):
        torch.manual_seed(1)
        features = self.trunk(torch.randn(32, 8)).tanh()
        out, target = self.head(features), torch.randint(3, (32,))
        right = out[:, :3].softmax(1)[torch.arange(32), target]
        return [F.cross_entropy(out[:, :3], target), 1 - right.mean(), F.mse_loss(out[:, 3], torch.ones(32))], features


class AuxiliaryHeads(Program):
    """A head after each of three layers: all have met at the output of the first."""

    def __init__(self):
        super().__init__(
            **{f"layer{i}": (nn.Linear, 8, 8) for i in range(3)}, **{f"head{i}": (nn.Linear, 8, 1) for i in range(3)}
        )

    def forward(self):
        torch.manual_seed(1)
        first = self.layer0(torch.randn(16, 8)).tanh()
        second = self.layer1(first).tanh()
        third = self.layer2(second).tanh()
        heads = zip((self.head0, self.head1, self.head2), (first, second, third), strict=True)
        return [head(z).sub(i).square().mean() for i, (head, z) in enumerate(heads)], first


class WeightNormHead(Program):
    """A head whose weight is made of two parameters: no activation, though two losses reach it."""

    def __init__(self):
        super().__init__(trunk=(nn.Linear, 8, 16), head=(nn.Linear, 16, 3), value=(nn.Linear, 16, 1))
        nn.utils.parametrizations.weight_norm(self.head)

    def forward(self):
        torch.manual_seed(1)
        features = self.trunk(torch.randn(16, 8)).tanh()
        out = self.head(features)
        return [out.logsumexp(1).mean(), out.square().mean(), self.value(features).abs().mean()], features


PROGRAMS = [ActorCritic, SegmentationAndDepth, UNet, Columns, AuxiliaryHeads, WeightNormHead]


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_losses_are_rows_of_one_decision_where_they_have_met(program):
    model = program()
    losses, site = model()
    labels = tuple(losses) if isinstance(losses, dict) else tuple(map(str, range(len(losses))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the price is told where it is high
        assert decisions(model, losses) == [(labels, tuple(site.shape))]


@pytest.mark.parametrize("program", PROGRAMS)
def test_below_the_site_flows_what_a_method_makes_of_plain_autograds_rows(program):
    model = program()
    losses, site = model()
    expected = by_hand(model, losses, site)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped(model, Larger()).backward(losses)
    torch.testing.assert_close(gradients(model), expected)


@pytest.mark.parametrize("program", PROGRAMS)
def test_with_a_full_leak_it_is_the_plain_sum(program):
    model = program()
    losses, _ = model()
    each = list(losses.values()) if isinstance(losses, dict) else losses
    expected = torch.autograd.grad(sum(each), list(model.parameters()), retain_graph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped(model, GradDrop(leak=1.0)).backward(losses)
    torch.testing.assert_close(gradients(model), list(expected))


def test_explain_says_what_is_differentiated_once_per_loss():
    model = ActorCritic()
    optimizer = wrapped(model, GradDrop(seed=0))
    optimizer.backward(model()[0])
    told = " ".join(optimizer.explain().split())
    assert "after VJPs of what several losses share above" in told
    assert "Tanh (64, 32): losses policy, value, entropy" in told
    plain = SegmentationAndDepth()
    losses = plain()[0]
    optimizer = wrapped(plain, GradDrop(seed=0))
    optimizer.backward({name: losses[name] for name in ("ce", "depth")})
    assert "VJPs" not in optimizer.explain()  # each has a head of its own


# -- towers ------------------------------------------------------------------------------------------------------------


def test_two_towers_meet_at_each_towers_output():
    """A contrastive loss in both directions reads both towers, a third loss one of them."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(6, 8), "b": nn.Linear(5, 8), "head": nn.Linear(8, 1)})
    a, b = model["a"](torch.randn(16, 6)), model["b"](torch.randn(16, 5))
    scores, pairs = a @ b.T, torch.arange(16)
    losses = {"ab": F.cross_entropy(scores, pairs), "ba": F.cross_entropy(scores.T, pairs)}
    found = decisions(model, {**losses, "a": model["head"](a).square().mean()})
    assert found == [(("ab", "ba"), (8, 16)), (("ab", "ba", "a"), (16, 8))]


# -- losses after each layer: DETR -------------------------------------------------------------------------------------


class Detector(nn.Module):
    """As DETR: a decoder whose layers each read the encoder's memory, and have losses after each layer."""

    def __init__(self, layers=4):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(6, 8)
        self.query = nn.Parameter(torch.randn(5, 8))
        self.layers = nn.ModuleList(nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(layers))
        self.classes, self.boxes = nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self):
        torch.manual_seed(1)
        memory = self.encoder(torch.randn(2, 7, 6)).relu()
        decoded, losses = self.query.expand(2, 5, 8), {}
        for i, layer in enumerate(self.layers):
            decoded = layer(decoded, memory)
            suffix = "" if i == len(self.layers) - 1 else f"_{i}"
            losses[f"loss_ce{suffix}"] = F.cross_entropy(self.classes(decoded).flatten(0, 1), torch.randint(3, (10,)))
            losses[f"loss_bbox{suffix}"] = self.boxes(decoded).sigmoid().sub(0.5).abs().mean()
        return losses, memory


def test_all_losses_of_a_decoder_with_losses_after_each_layer_are_in_one_decision():
    model = Detector()
    losses, memory = model()
    with pytest.warns(RuntimeWarning, match='`at="nested"` takes one backward pass'):
        found = decisions(model, losses)
    assert tuple(losses) in [labels for labels, _ in found]
    assert any(shape == tuple(memory.shape) for _, shape in found)


def test_the_price_of_the_joint_rule_is_told_once_for_an_optimizer():
    model = Detector()
    optimizer = wrapped(model, GradDrop(seed=0))
    with pytest.warns(RuntimeWarning, match="differentiated once for each"):
        optimizer.backward(model()[0])
    optimizer.backward(model()[0])  # filterwarnings is error


def test_a_full_leak_is_the_plain_sum_where_sites_lie_below_others():
    model = Detector()
    losses, _ = model()
    expected = torch.autograd.grad(sum(losses.values()), list(model.parameters()), retain_graph=True, allow_unused=True)
    with pytest.warns(RuntimeWarning):
        wrapped(model, GradDrop(leak=1.0)).backward(losses)
    torch.testing.assert_close(gradients(model), list(expected))


# -- nested ------------------------------------------------------------------------------------------------------------


def count_backwards(monkeypatch, run):
    calls = []
    real = torch.autograd.backward, torch.autograd.grad
    monkeypatch.setattr("torch.autograd.backward", lambda *a, **k: calls.append("backward") or real[0](*a, **k))
    monkeypatch.setattr("torch.autograd.grad", lambda *a, **k: calls.append("grad") or real[1](*a, **k))
    run()
    monkeypatch.undo()
    return calls


@pytest.mark.parametrize("make", [Detector, AuxiliaryHeads, ActorCritic])
def test_nested_decisions_take_one_backward_and_every_loss_takes_part(make, monkeypatch):
    model, seen = make(), Seen()
    losses, _ = model()
    optimizer = wrapped(model, seen, at="nested")
    assert count_backwards(monkeypatch, lambda: optimizer.backward(losses)) == ["backward"]
    labels = losses if isinstance(losses, dict) else [str(i) for i in range(len(losses))]
    assert {label for labels, _ in seen.decisions for label in labels} == set(labels)


@pytest.mark.parametrize("make", [Detector, AuxiliaryHeads, ActorCritic, UNet])
def test_nested_decisions_that_drop_nothing_are_the_plain_sum(make):
    model = make()
    losses, _ = model()
    each = list(losses.values()) if isinstance(losses, dict) else losses
    expected = torch.autograd.grad(sum(each), list(model.parameters()), retain_graph=True, allow_unused=True)
    wrapped(model, GradDrop(leak=1.0), at="nested").backward(losses)
    torch.testing.assert_close(gradients(model), list(expected))


def test_where_a_further_loss_joins_what_was_combined_above_is_one_row():
    model = AuxiliaryHeads()
    losses, first = model()
    second = losses[1].grad_fn  # only to keep the graph alive
    found = decisions(model, losses, at="nested")
    assert found == [(("0", "1"), tuple(first.shape)), (("1", "2"), tuple(first.shape))]
    assert second is not None
    # By hand: at the second layer's output Larger of two rows, at the first's Larger of that one and the third.
    torch.manual_seed(1)
    z0 = model.layer0(torch.randn(16, 8)).tanh()
    z1 = model.layer1(z0).tanh()
    z2 = model.layer2(z1).tanh()
    parts = [
        head(z).sub(i).square().mean()
        for i, (head, z) in enumerate(zip((model.head0, model.head1, model.head2), (z0, z1, z2), strict=True))
    ]
    at_second = torch.stack([torch.autograd.grad(parts[i], z1, retain_graph=True)[0] for i in (1, 2)])
    combined = Larger().transform(at_second, None).sum(0)
    below = torch.autograd.grad(z1, z0, combined, retain_graph=True)[0]
    at_first = torch.stack([torch.autograd.grad(parts[0], z0, retain_graph=True)[0], below])
    expected = torch.autograd.grad(z0, model.layer0.weight, Larger().transform(at_first, None).sum(0))[0]
    model.zero_grad()
    wrapped(model, Larger(), at="nested").backward(model()[0])
    torch.testing.assert_close(model.layer0.weight.grad, expected)


# -- losses that no decision has ---------------------------------------------------------------------------------------


def heads_on_a_trunk():
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(4, 8), "a": nn.Linear(8, 1), "b": nn.Linear(8, 1)})
    features = model["trunk"](torch.randn(6, 4)).tanh()
    return model, {"a": model["a"](features).square().mean(), "b": model["b"](features).abs().mean()}


@pytest.mark.parametrize("kind", ["a penalty", "a model of its own"])
def test_a_loss_that_no_decision_has_is_named_once_and_added_as_it_is(kind):
    model, losses = heads_on_a_trunk()
    other = nn.Linear(3, 1)
    penalty = model["trunk"].weight.square().sum() if kind == "a penalty" else other(torch.ones(2, 3)).square().mean()
    everything = nn.ModuleList([model, other])
    optimizer = wrapped(everything, GradDrop(leak=1.0))
    with pytest.warns(RuntimeWarning, match=r"`losses\[extra\]` shares no number of an activation with another loss"):
        optimizer.backward({**losses, "extra": penalty}, retain_graph=True)
    expected = [p.grad.clone() for p in everything.parameters() if p.grad is not None]
    everything.zero_grad()
    optimizer.backward({**losses, "extra": penalty}, retain_graph=True)  # not told again
    assert torch.equal(
        torch.cat([g.flatten() for g in expected]),
        torch.cat([p.grad.flatten() for p in everything.parameters() if p.grad is not None]),
    )


# -- nothing to combine ------------------------------------------------------------------------------------------------


# Before torch 2.9 rows are not taken ahead, as a checkpoint would not be seen: it is told after the first step.
sees_ahead = pytest.mark.skipif(not HOOKS_CAN_BE_SEEN, reason="torch below 2.9")


def residual(net, x):
    u = net(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)
    return u[:, 0], u[:, 0] * slope[:, 0] - curvature[:, 0]


@sees_ahead
@pytest.mark.parametrize("layers", [2, 3])
def test_physics_with_all_points_in_one_forward_is_refused_with_the_way_out(layers):
    torch.manual_seed(0)
    hidden = [part for _ in range(layers - 1) for part in (nn.Linear(12, 12), nn.Tanh())]
    net = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), *hidden, nn.Linear(12, 1))
    u, r = residual(net, (2 * torch.rand(60, 2) - 1).requires_grad_())
    optimizer = wrapped(net, GradDrop(seed=0))
    with pytest.raises(RuntimeError, match=r'read different parts.*at="parameters"'):
        optimizer.backward([r[20:].square().mean(), (u[:20] - 1).square().mean()])
    assert all(p.grad is None for p in net.parameters())


def test_physics_with_a_forward_for_each_loss_is_refused_with_the_way_out():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 1))
    _, r = residual(net, (2 * torch.rand(40, 2) - 1).requires_grad_())
    optimizer = wrapped(net, PCGrad())
    with pytest.raises(RuntimeError, match='at="parameters"'):
        optimizer.backward([r.square().mean(), (net(torch.rand(20, 2)) - 1).square().mean()])
    assert all(p.grad is None for p in net.parameters())


@sees_ahead
def test_examples_of_each_loss_apart_are_found_however_far_up_they_were_parted():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8)),
            "a": nn.Linear(8, 1),
            "b": nn.Linear(8, 1),
        }
    )
    features = model["trunk"](torch.randn(12, 4))
    losses = [model["a"](features)[:6].square().mean(), model["b"](features)[6:].abs().mean()]
    with pytest.raises(RuntimeError, match="read different parts"):
        wrapped(model, GradDrop(seed=0)).backward(losses)
    assert all(p.grad is None for p in model.parameters())


@sees_ahead
def test_a_loss_on_other_examples_than_the_others_is_named():
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(4, 8), **{name: nn.Linear(8, 1) for name in "abc"}})
    features = model["trunk"](torch.randn(12, 4)).tanh()
    outputs = {name: model[name](features)[:6] if name != "c" else model[name](features)[6:] for name in "abc"}
    with pytest.warns(RuntimeWarning, match=r"`losses\[c\]` shares no number"):
        wrapped(model, GradDrop(seed=0)).backward({name: out.sub(1).square().mean() for name, out in outputs.items()})


@pytest.mark.parametrize("how", ["requires_grad", "no_grad", "detach"])
def test_a_frozen_trunk_is_called_frozen(how):
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(4, 8), "a": nn.Linear(8, 1), "b": nn.Linear(8, 1)})
    if how == "requires_grad":
        model["trunk"].requires_grad_(False)
    with torch.set_grad_enabled(how != "no_grad"):
        features = model["trunk"](torch.randn(6, 4))
    features = features.detach() if how == "detach" else features
    with pytest.raises(RuntimeError, match="the shared part is frozen"):
        wrapped(model, GradDrop(seed=0)).backward([model["a"](features).mean(), model["b"](features).square().mean()])


# -- what a user writes ------------------------------------------------------------------------------------------------


def test_the_names_of_sites_are_told_where_another_is_given():
    with pytest.raises(ValueError, match='"activations", "nested", "parameters", "all parameters", a module'):
        MultiLossOptimizer(torch.optim.SGD([nn.Parameter(torch.ones(1))]), at="activation")
    assert mtopt  # the names are those of the public class
