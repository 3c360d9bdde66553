"""What stands around a backward: accumulation, averages, clipping, anomaly mode, parametrizations, CUDA graphs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations, parametrize
from torch.optim import swa_utils

from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer, sign_dropout
from mtopt._draws import Draws

SITES = ["layer", "activations", "module", "parameters"]


class Net(nn.Module):
    """A trunk, three heads, and a layer between them or not."""

    def __init__(self, rule=None, make_trunk=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = make_trunk() if make_trunk else nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))
        self.share = MultiLossLayer(3, rule) if rule else None
        self.batches = [torch.randn(6, 4) for _ in range(5)]

    def forward(self, x):
        features = self.trunk(x)
        aliases = [features] * 3 if self.share is None else self.share(features)
        pairs = enumerate(zip(self.heads, aliases, strict=True))
        return [(head(alias) - i).square().mean() for i, (head, alias) in pairs]

    def gradients(self):
        return [p.grad.clone() for p in self.parameters()]

    def weights(self):
        return [p.detach().clone() for p in self.parameters()]


def build(site, make_trunk=None, parameters=None):
    """A net, its optimizer, the backward of a list of losses, and the rule."""
    rule = GradDrop(seed=3)
    net = Net(rule if site == "layer" else None, make_trunk)
    inner = torch.optim.SGD(net.parameters() if parameters is None else parameters, lr=0.1)
    if site == "layer":
        return net, inner, lambda losses: sum(losses).backward(), rule
    optimizer = MultiLossOptimizer(inner, rule, at=net.trunk if site == "module" else site, chunk_size=1)
    return net, optimizer, optimizer.backward, rule


def assert_same(ours, theirs):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(params=SITES)
def site(request):
    return request.param


# -- accumulation --


def test_micro_batches_add_up_to_their_separate_runs(site):
    net, _, backward, _ = build(site)
    for batch in net.batches:
        backward([loss / 5 for loss in net(batch)])
    accumulated = net.gradients()
    net, optimizer, backward, _ = build(site)
    runs = []
    for batch in net.batches:
        optimizer.zero_grad()
        backward([loss / 5 for loss in net(batch)])
        runs.append(net.gradients())
    assert_same(accumulated, [sum(parts[1:], parts[0]) for parts in zip(*runs, strict=True)])


def test_each_micro_batch_has_a_decision_of_its_own(site):
    net, optimizer, backward, rule = build(site)
    first = rule.state_dict()
    runs = []
    for state in (first, None, first):
        rule.load_state_dict(state or rule.state_dict())
        optimizer.zero_grad()
        backward(net(net.batches[0]))
        runs.append(net.gradients()[0])
    assert torch.equal(runs[2], runs[0])
    assert not torch.equal(runs[1], runs[0])


def test_accumulated_gradients_can_be_kept_in_place(site):
    net, optimizer, backward, _ = build(site)
    backward(net(net.batches[0]))
    buffers = [p.grad for p in net.parameters()]
    optimizer.zero_grad(set_to_none=False)
    backward(net(net.batches[1]))
    assert all(p.grad is buffer for p, buffer in zip(net.parameters(), buffers, strict=True))


# -- averages --


def train(net, optimizer, backward, *, after=lambda: None):
    for batch in net.batches:
        optimizer.zero_grad()
        backward(net(batch))
        optimizer.step()
        after()


def mean(snapshots):
    return torch.stack(snapshots).mean(0)


def ema(snapshots):
    average = snapshots[0]
    for weight in snapshots[1:]:
        average = 0.9 * average + 0.1 * weight
    return average


@pytest.mark.parametrize(
    ("settings", "by_hand"),
    [({}, mean), ({"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)}, ema)],
    ids=["mean", "moving"],
)
def test_an_averaged_model_holds_the_average_and_leaves_the_run_alone(site, settings, by_hand):
    net, optimizer, backward, _ = build(site)
    average = swa_utils.AveragedModel(net, **settings)
    snapshots = []

    def after():
        average.update_parameters(net)
        snapshots.append(net.weights())

    train(net, optimizer, backward, after=after)
    expected = [by_hand(list(weights)) for weights in zip(*snapshots, strict=True)]
    torch.testing.assert_close([p.detach() for p in average.parameters()], expected)
    alone, optimizer, backward, _ = build(site)
    train(alone, optimizer, backward)
    assert_same(alone.weights(), net.weights())


def test_update_bn_of_an_average_draws_nothing(site):
    net, optimizer, backward, _ = build(site)
    average = swa_utils.AveragedModel(net)
    train(net, optimizer, backward, after=lambda: average.update_parameters(net))
    swa_utils.update_bn(net.batches, average)
    below = average.module.trunk[0](torch.cat(net.batches))
    torch.testing.assert_close(average.module.trunk[1].running_mean, below.mean(0))
    if site == "layer":
        assert average.module.share.transforms[0].state_dict()["draws"] == {"seed": 3, "count": 0}
    losses = average.eval()(net.batches[0])
    assert all(loss.isfinite() for loss in losses)


def test_an_averaged_model_with_a_layer_can_be_trained_on():
    net, *_ = build("layer")
    average = swa_utils.AveragedModel(net)
    for model in (net, average):
        sum(model(net.batches[0])).backward()
    assert_same(average.module.gradients(), net.gradients())


def test_a_recipe_of_weight_averaging_is_the_plain_one_without_transforms():
    results = []
    for wrap in (True, False):
        net = Net()
        inner = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        optimizer = MultiLossOptimizer(inner, []) if wrap else inner
        average, scheduler = swa_utils.AveragedModel(net), swa_utils.SWALR(optimizer, 0.05, anneal_epochs=2)
        for batch in net.batches:
            optimizer.zero_grad()
            optimizer.backward(net(batch)) if wrap else sum(net(batch)).backward()
            optimizer.step()
            scheduler.step()
            average.update_parameters(net)
        swa_utils.update_bn(net.batches, average)
        results.append([*average.parameters(), *average.buffers()])
    assert_same(*results)


# -- clipping, anomaly mode --


@pytest.mark.parametrize("foreach", [True, False])
def test_a_clipped_norm_is_that_of_the_combined_gradient(site, foreach):
    net, optimizer, backward, _ = build(site)
    before = net.weights()
    backward(net(net.batches[0]))
    gradients = net.gradients()
    total = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    torch.testing.assert_close(clip_grad_norm_(net.parameters(), 0.01, foreach=foreach), total)
    optimizer.step()
    expected = [w - 0.1 * 0.01 * g / total for w, g in zip(before, gradients, strict=True)]
    torch.testing.assert_close(net.weights(), expected)


def test_clipped_values_are_those_of_the_combined_gradient(site):
    net, optimizer, backward, _ = build(site)
    before = net.weights()
    backward(net(net.batches[0]))
    gradients = net.gradients()
    clip_grad_value_(net.parameters(), 0.01)
    optimizer.step()
    expected = [w - 0.1 * g.clamp(-0.01, 0.01) for w, g in zip(before, gradients, strict=True)]
    torch.testing.assert_close(net.weights(), expected)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode_changes_no_bit(site):
    results = []
    for mode in (True, False):
        with torch.autograd.set_detect_anomaly(mode):
            net, _, backward, _ = build(site)
            backward(net(net.batches[0]))
        results.append(net.gradients())
    assert_same(*results)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in")
def test_anomaly_mode_finds_a_nan_above_the_site(site):
    net, _, backward, _ = build(site)
    with torch.autograd.set_detect_anomaly(True):
        first, *others = net(net.batches[0])
        losses = [(first - first).sqrt() * 0, *others]
        with pytest.raises(RuntimeError, match="returned nan values"):
            backward(losses)
    assert all(p.grad is None for p in net.trunk.parameters())


# -- parametrized weights, functional calls --


def expected_gradients(site, make_trunk):
    """The trunk's gradients by `sign_dropout`, from one plain `autograd.grad` per loss."""
    net, draws = Net(make_trunk=make_trunk), Draws(3)
    features = net.trunk(net.batches[0])
    losses = [(head(features) - i).square().mean() for i, head in enumerate(net.heads)]
    parameters = list(net.trunk.parameters())

    def combined(tensor):
        rows = torch.stack([torch.autograd.grad(loss, tensor, retain_graph=True)[0] for loss in losses])
        return sign_dropout(rows, uniform=torch.rand(tensor.shape, generator=draws.next(torch.device("cpu"))))

    if site == "parameters":
        return [combined(p) for p in parameters]
    return torch.autograd.grad(features, parameters, combined(features))


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).T


def symmetric():
    linear = nn.Linear(5, 5)
    parametrize.register_parametrization(linear, "weight", Symmetric())
    return nn.Sequential(nn.Linear(4, 5), linear)


TRUNKS = {
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh()),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 5)), nn.Tanh()),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 5)),
    "own": symmetric,
}


@pytest.mark.parametrize("name", TRUNKS)
def test_parametrized_weights_get_the_gradient_of_what_makes_them(site, name):
    net, _, backward, _ = build(site, TRUNKS[name])
    backward(net(net.batches[0]))
    torch.testing.assert_close([p.grad for p in net.trunk.parameters()], list(expected_gradients(site, TRUNKS[name])))
    plain = Net(make_trunk=TRUNKS[name])
    sum(plain(plain.batches[0])).backward()
    assert not torch.allclose(next(plain.trunk.parameters()).grad, next(net.trunk.parameters()).grad)


@pytest.mark.parametrize("name", TRUNKS)
def test_parametrizations_may_be_cached_for_a_step(site, name):
    results = []
    for cached in (True, False):
        net, optimizer, backward, _ = build(site, TRUNKS[name])
        if cached:
            with parametrize.cached():
                backward(net(net.batches[0]))
        else:
            backward(net(net.batches[0]))
        optimizer.step()
        results.append(net.weights())
    assert_same(*results)


def test_a_functional_call_gives_its_tensors_the_gradients_of_the_modules_own(site):
    net, optimizer, backward, _ = build(site)
    backward(net(net.batches[0]))
    own = net.gradients()
    tensors = {name: p.detach().clone().requires_grad_() for name, p in Net().named_parameters()}
    net, optimizer, backward, _ = build(site, parameters=tensors.values())
    backward(functional_call(net, tensors, (net.batches[0],)))
    assert_same([tensor.grad for tensor in tensors.values()], own)
    assert all(p.grad is None for p in net.parameters())
    optimizer.step()
    assert any(not torch.equal(tensor, p) for tensor, p in zip(tensors.values(), net.parameters(), strict=True))


def test_function_transforms_do_not_go_through_a_layer_but_in_eval():
    net = Net(GradDrop(), lambda: nn.Linear(4, 5))
    tensors = {name: p.detach() for name, p in net.named_parameters()}
    differentiate = torch.func.grad(lambda tensors: sum(functional_call(net, tensors, (net.batches[0],))))
    with pytest.raises(RuntimeError, match=r"autograd\.Function with functorch transforms"):
        differentiate(tensors)
    net.eval()
    sum(net(net.batches[0])).backward()
    torch.testing.assert_close(list(differentiate(tensors).values()), net.gradients())


# -- on a GPU --


@pytest.mark.cuda
@pytest.mark.parametrize("marginalize", [None, 0])
def test_on_cuda_graddrop_draws_privately_and_repeatably(marginalize):
    x = torch.randn(63, 32, device="cuda", requires_grad=True)
    runs = []
    before = torch.cuda.get_rng_state()
    rules = [GradDrop(seed=1, marginalize=marginalize) for _ in range(2)]
    for rule in [*rules, rules[0]]:
        a, b = MultiLossLayer(2, rule)(x)
        runs.extend(torch.autograd.grad(a.sum() - b.sum(), x))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert set(runs[0].unique().tolist()) == {-1.0, 1.0}


@pytest.mark.cuda
def test_on_cuda_a_captured_step_replays_with_fresh_draws():
    share = MultiLossLayer(2, GradDrop(seed=1))
    weight = nn.Parameter(torch.ones(256, device="cuda"))
    inner = torch.optim.SGD([weight], lr=1.0)

    def step():
        inner.zero_grad(set_to_none=True)
        a, b = share(weight * 1)
        (a.sum() - 3 * b.sum()).backward()
        inner.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    picks = []
    for _ in range(4):
        before = weight.detach().clone()
        graph.replay()
        picks.append(before - weight.detach())  # 1 or -3 at each coordinate
    assert all(set(pick.unique().tolist()) == {1.0, -3.0} for pick in picks)
    assert not any(torch.equal(a, b) for a, b in pairwise(picks))
