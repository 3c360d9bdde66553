"""The loss weightings: each is the gradient of its method's total, as others have it, and its state is what it says."""

from __future__ import annotations

import copy
import io
import math
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
import torchjd.scalarization as peers
from models import MODELS
from ranks import run_ranks
from torch import nn

from mtopt import GradDrop, Losses, MultiLossOptimizer, UncertaintyWeighting
from mtopt._combine.pipeline import Pipeline
from mtopt._draws import Draws
from mtopt._methods.causal import CausalWeights
from mtopt._methods.constant import ConstantWeights
from mtopt._methods.dwa import DWA
from mtopt._methods.famo import FAMO
from mtopt._methods.geometric_mean import GeometricMean
from mtopt._methods.imtl_l import IMTLL
from mtopt._methods.relobralo import ReLoBRaLo
from mtopt._methods.rlw import RLW
from mtopt._methods.soft_adapt import SoftAdapt
from mtopt._methods.stch import STCH
from mtopt._ranks import Ranks

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf

# Unseeded where they draw, with settings that let a few steps show everything.
METHODS = {
    "ConstantWeights": lambda: ConstantWeights(0.3),
    "CausalWeights": lambda: CausalWeights(eps=0.3),
    "UncertaintyWeighting": lambda: UncertaintyWeighting(lr=0.1),
    "DWA": lambda: DWA(tau=0.5),
    "RLW": lambda: RLW(seed=5),
    "GeometricMean": GeometricMean,
    "IMTLL": lambda: IMTLL(lr=0.1),
    "STCH": lambda: STCH(mu=0.5, warmup_epochs=2),
    "FAMO": lambda: FAMO(lr=0.1, decay=0.1),
    "SoftAdapt": lambda: SoftAdapt(window=3),
    "SoftAdapt normalized": lambda: SoftAdapt(beta=2, normalized=True),
    "SoftAdapt loss_weighted": lambda: SoftAdapt(loss_weighted=True),
    "ReLoBRaLo": lambda: ReLoBRaLo(alpha=0.7, beta=0.7, seed=5),
}
every_method = pytest.mark.parametrize("name", METHODS)
every_stateful_method = pytest.mark.parametrize(
    "name", [n for n in METHODS if n not in ("ConstantWeights", "CausalWeights", "RLW")]
)


def known(values, dtype=torch.float64, names=None):
    """Losses with these values, of which None is absent."""
    present = tuple(i for i, value in enumerate(values) if value is not None)
    return Losses(present, len(values), names, tuple(torch.tensor(values[i], dtype=dtype) for i in present))


def after(values):
    """What the losses are after the step."""
    return [None if value is None else torch.tensor(0.9 * value + 0.01, dtype=torch.float64) for value in values]


def play(method, steps, *, first=0, dtype=torch.float64, epoch=2):
    """The weights in some steps, the first of which has a given number; an epoch has two."""
    pipeline, weights = Pipeline(method), []
    for number, values in enumerate(steps, first):
        losses = known(values, dtype)
        pipeline.check(losses)
        weights.append(pipeline.weights(losses))
        if isinstance(method, FAMO):
            method.observe(after(values))
        if hasattr(method, "epoch_end") and epoch and number % epoch == epoch - 1:
            method.epoch_end()
    return weights


def random_steps(n_steps, n_losses=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n_steps, n_losses, dtype=torch.float64, generator=generator)).exp().tolist()


def assert_close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_equal(actual, expected):
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# -- what others have for the total of each method ---------------------------------------------------------------------


class Oracle:
    """The total of a method, of which its weights are the derivative by the losses."""

    def total(self, losses):
        raise AssertionError

    def after_step(self, total, after):
        pass

    def epoch_end(self):
        pass


class Peer(Oracle):
    """A scalarizer of TorchJD."""

    def __init__(self, scalarizer):
        self.scalarizer = scalarizer.double()

    def total(self, losses):
        return self.scalarizer(losses)


class TrainedPeer(Peer):
    """One whose parameters are trained by torch's Adam. Where they begin is no part of the papers.

    TorchJD begins uncertainty weighting with 0, we and LibMTL with -0.5.
    """

    def __init__(self, scalarizer, parameter, lr, start):
        super().__init__(scalarizer)
        self.parameter = getattr(self.scalarizer, parameter)
        self.parameter.data.fill_(start)
        self.adam = torch.optim.Adam([self.parameter], lr=lr)

    def after_step(self, total, after):
        self.adam.zero_grad()
        total.backward(inputs=[self.parameter], retain_graph=True)
        self.adam.step()


class PeerWithEpochs(Peer):
    def epoch_end(self):
        self.scalarizer.step()


class PeerThatObserves(Peer):
    def after_step(self, total, after):
        self.scalarizer.update(torch.stack(after))


class RandomPeer(Peer):
    """TorchJD's sum to 1, as LibMTL's do; ours to T. From the same state of a generator they are otherwise equal."""

    def __init__(self, seed):
        super().__init__(peers.Random())
        self.draws = Draws(seed)

    def total(self, losses):
        with torch.random.fork_rng():
            torch.set_rng_state(self.draws.next(CPU).get_state())
            return len(losses) * self.scalarizer(losses)


class LogarithmicPeer(Oracle):
    """TorchJD's STCH is on the losses themselves, its λ sum to 1, and it has no warm-up.

    The authors' code for several tasks is on the losses' logarithms, less those of their means in the last epoch of a
    warm-up; its λ are 1, and its total is multiplied by T.
    """

    def __init__(self, mu, warmup_epochs, preference=(1.0, 1.0, 1.0)):
        self.mu, self.left, self.preference = mu, warmup_epochs, torch.tensor(preference, dtype=torch.float64)
        self.epoch = []

    def total(self, losses):
        if self.left > 0:
            self.epoch.append(losses.detach())
            return losses.log().sum()
        nadir = torch.stack(self.epoch).mean(0)
        return len(losses) * peers.STCH(self.mu, self.preference, nadir.log())(losses.log())

    def epoch_end(self):
        self.left -= 1
        if self.left > 0:
            self.epoch = []


class Weighted(Oracle):
    """The weighted sum, from weights in plain Python floats."""

    def total(self, losses):
        weights = self.weights(losses.tolist())
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))


class Constant(Weighted):
    def weights(self, values):
        return [0.5, 2.0, 1.0]


class SlowCausal(Weighted):
    """The temporal weights of jaxpi, by the matrix that adds up the losses before each."""

    def __init__(self, eps):
        self.eps = eps

    def weights(self, values):
        held = [eps * value for eps, value in zip(self.eps, values, strict=True)]
        return [math.exp(-sum(held[:i])) for i in range(len(values))]


class SlowSoftAdapt(Weighted):
    """Section 3.1 of the paper, with slopes that are exact for polynomials as long as the window."""

    def __init__(self, beta, window, normalized=False, loss_weighted=False):
        self.beta, self.window, self.normalized, self.loss_weighted = beta, window, normalized, loss_weighted
        self.past = []

    def weights(self, values):
        self.past = [*self.past, values][-self.window :]
        columns = list(zip(*self.past, strict=True))
        slopes = [slope(column) for column in columns]
        if self.normalized:
            slopes = [s / (sum(abs(other) for other in slopes) or 1) for s in slopes]
        weights = [math.exp(self.beta * (s - max(slopes))) for s in slopes]
        if self.loss_weighted:
            weights = [w * sum(column) / len(column) for w, column in zip(weights, columns, strict=True)]
        return [w / sum(weights) for w in weights]


def slope(values):
    """The slope at the last of equidistant values of the polynomial through them."""
    times = torch.arange(1.0 - len(values), 1.0, dtype=torch.float64)
    coefficients = torch.linalg.solve(torch.vander(times, increasing=True), torch.tensor(values, dtype=torch.float64))
    return coefficients[1].item() if len(values) > 1 else 0.0


class SlowReLoBRaLo(Weighted):
    """Eq. (11) of the paper, with the 1e-12 of the authors' code."""

    def __init__(self, alpha, beta, tau, seed):
        self.alpha, self.beta, self.tau, self.draws = alpha, beta, tau, Draws(seed)
        self.first, self.last, self.kept = None, None, None

    def weights(self, values):
        if self.first is None:
            self.first, self.last, self.kept = values, values, [1.0] * len(values)
        uniform = torch.rand((), dtype=torch.float64, generator=self.draws.next(CPU)).item()
        rho = 1 if uniform < self.beta else 0
        start, step = self.balanced(values, self.first), self.balanced(values, self.last)
        history = [rho * w + (1 - rho) * b for w, b in zip(self.kept, start, strict=True)]
        self.kept = [self.alpha * h + (1 - self.alpha) * b for h, b in zip(history, step, strict=True)]
        self.last = values
        return self.kept

    def balanced(self, values, before):
        ratios = [v / (self.tau * b + 1e-12) for v, b in zip(values, before, strict=True)]
        shares = [math.exp(ratio - max(ratios)) for ratio in ratios]
        return [len(values) * share / sum(shares) for share in shares]


ORACLES = {
    "ConstantWeights": lambda: (ConstantWeights([0.5, 2, 1]), Constant()),
    "CausalWeights": lambda: (CausalWeights(), SlowCausal([1, 1, 1])),
    "CausalWeights, each its own": lambda: (CausalWeights(eps=[0, 0.1, 2]), SlowCausal([0, 0.1, 2])),
    "UncertaintyWeighting": lambda: (UncertaintyWeighting(), TrainedPeer(peers.UW(3), "log_var", 1e-3, -0.5)),
    "UncertaintyWeighting, fast": lambda: (
        UncertaintyWeighting(lr=0.3, start=1),
        TrainedPeer(peers.UW(3), "log_var", 0.3, 1.0),
    ),
    "IMTLL": lambda: (IMTLL(), TrainedPeer(peers.IMTLL(3), "log_scale", 1e-3, 0.0)),
    "IMTLL, fast": lambda: (IMTLL(lr=0.3, start=-1), TrainedPeer(peers.IMTLL(3), "log_scale", 0.3, -1.0)),
    "DWA": lambda: (DWA(), PeerWithEpochs(peers.DWA())),
    "DWA, cold": lambda: (DWA(tau=0.3), PeerWithEpochs(peers.DWA(0.3))),
    "RLW": lambda: (RLW(seed=5), RandomPeer(5)),
    "GeometricMean": lambda: (GeometricMean(), Peer(peers.GeometricMean())),
    "STCH": lambda: (STCH(warmup_epochs=1), LogarithmicPeer(1.0, 1)),
    "STCH, longer warm-up": lambda: (STCH(mu=0.1, warmup_epochs=2), LogarithmicPeer(0.1, 2)),
    "STCH, preferences": lambda: (
        STCH(mu=0.5, warmup_epochs=1, preference=[0.2, 1, 3]),
        LogarithmicPeer(0.5, 1, (0.2, 1.0, 3.0)),
    ),
    "FAMO": lambda: (FAMO(), PeerThatObserves(peers.FAMO(3))),
    "FAMO, bounds": lambda: (
        FAMO(lr=0.5, decay=0.1, min_losses=[-1, -0.5, 0]),
        PeerThatObserves(peers.FAMO(3, torch.tensor([-1.0, -0.5, 0.0]), lr=0.5, weight_decay=0.1)),
    ),
    "SoftAdapt": lambda: (SoftAdapt(), SlowSoftAdapt(0.1, 5)),
    "SoftAdapt, change of a step": lambda: (SoftAdapt(beta=-1.5, window=2), SlowSoftAdapt(-1.5, 2)),
    "SoftAdapt, normalized": lambda: (SoftAdapt(beta=2, normalized=True), SlowSoftAdapt(2, 5, normalized=True)),
    "SoftAdapt, loss_weighted": lambda: (
        SoftAdapt(window=4, loss_weighted=True),
        SlowSoftAdapt(0.1, 4, loss_weighted=True),
    ),
    "SoftAdapt, both": lambda: (
        SoftAdapt(normalized=True, loss_weighted=True),
        SlowSoftAdapt(0.1, 5, normalized=True, loss_weighted=True),
    ),
    "ReLoBRaLo": lambda: (ReLoBRaLo(seed=3), SlowReLoBRaLo(0.95, 0.99, 1.0, 3)),
    "ReLoBRaLo, looks back": lambda: (
        ReLoBRaLo(alpha=0.6, beta=0.5, tau=0.2, seed=3),
        SlowReLoBRaLo(0.6, 0.5, 0.2, 3),
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_weights_are_the_derivative_of_the_total_that_others_have(name):
    method, oracle = ORACLES[name]()
    for number, values in enumerate(random_steps(12)):
        losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        total = oracle.total(losses)
        (expected,) = torch.autograd.grad(total, losses, retain_graph=True)
        assert_close(method.weights(known(values)), expected)
        oracle.after_step(total, after(values))
        if isinstance(method, FAMO):
            method.observe(after(values))
        if number % 3 == 2 and hasattr(method, "epoch_end"):
            method.epoch_end()
            oracle.epoch_end()


@pytest.mark.parametrize("behind", [[], [GradDrop(leak=1.0)]], ids=["alone", "before GradDrop"])
@pytest.mark.parametrize("name", ORACLES)
def test_gradients_are_those_of_the_total(name, behind):
    method, oracle = ORACLES[name]()
    case = MODELS["mlp"]()
    optimizer = MultiLossOptimizer(torch.optim.SGD(case.parameters, lr=0.02), [method, *behind])
    for number in range(6):
        total = oracle.total(torch.stack(case.run().losses))
        expected = torch.autograd.grad(total, case.parameters, retain_graph=True)
        optimizer.zero_grad()
        optimizer.step(case.run().losses)
        for parameter, gradient in zip(case.parameters, expected, strict=True):
            assert_close(parameter.grad, gradient, 1e-10)
        losses = case.run().losses
        oracle.after_step(total, [loss.detach() for loss in losses])
        if isinstance(method, FAMO):
            method.observe(losses)
        if number % 2 == 1 and hasattr(method, "epoch_end"):
            method.epoch_end()
            oracle.epoch_end()


# From the README of the authors' code, https://github.com/dr-aheydari/SoftAdapt, example 1.
OFFICIAL_VALUES = [[1, 2, 3, 4, 5], [150, 100, 50, 10, 0.1], [1500, 1000, 500, 100, 1]]


@pytest.mark.parametrize(
    ("variant", "scale", "expected"),
    [
        ({}, 1.0, [9.9343e-01, 6.5666e-03, 3.8908e-22]),
        # It divides by the sum of the slopes, rather than of their absolute values: where it is negative, as here, a
        # loss that falls faster counts more.
        ({"normalized": True}, "signed", [0.3221, 0.3251, 0.3528]),
        ({"loss_weighted": True}, 1.0, [8.7978e-01, 1.2022e-01, 7.1234e-20]),
    ],
    ids=["original", "normalized", "loss-weighted"],
)
def test_softadapt_gives_the_numbers_of_its_authors_readme(variant, scale, expected):
    """Its slope is the one at the oldest value of the window (forward differences), ours the one at the newest.

    Played backwards, the oldest value is the newest, and the slope has the other sign.
    """
    if scale == "signed":
        slopes = [slope(values[::-1]) for values in OFFICIAL_VALUES]
        scale = -sum(map(abs, slopes)) / sum(slopes)
    method = SoftAdapt(beta=-0.1 * scale, **variant)
    weights = [method.weights(known(list(values))) for values in zip(*(v[::-1] for v in OFFICIAL_VALUES), strict=True)]
    torch.testing.assert_close(weights[-1], torch.tensor(expected, dtype=torch.float64), rtol=2e-4, atol=0)


# -- laws of all -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("RLW", "CausalWeights")])
def test_the_order_of_the_losses_does_not_matter(name):
    order, steps = [2, 0, 1], random_steps(8)
    torch.manual_seed(0)
    method, other = METHODS[name](), METHODS[name]()
    permuted = play(other, [[values[i] for i in order] for values in steps])
    for ours, theirs in zip(play(method, steps), permuted, strict=True):
        assert_close(ours[order], theirs)


def test_for_rlw_the_order_does_not_matter_in_distribution():
    n = 6000
    weights = torch.stack(play(RLW(seed=0), [[1.0, 1.0, 1.0]] * n))
    largest = weights.argmax(1).bincount() / n
    assert ((largest - 1 / 3).abs() < 5 * math.sqrt(2 / 9 / n)).all()  # five standard errors
    assert ((weights.mean(0) - 1).abs() < 5 * weights.std(0) / math.sqrt(n)).all()


@every_method
def test_one_loss_is_weighted_too(name):
    weights = play(METHODS[name](), random_steps(8, n_losses=1))
    assert all(w.shape == (1,) and w.dtype == torch.float64 and w.isfinite().all() for w in weights)
    if name in ("CausalWeights", "DWA", "RLW", "GeometricMean", "FAMO", "ReLoBRaLo") or "SoftAdapt" in name:
        assert_close(torch.cat(weights), torch.ones(8, dtype=torch.float64))


@every_method
def test_weights_sum_to_what_the_docs_say(name):
    steps = random_steps(8)
    total = {"DWA": 3, "RLW": 3, "ReLoBRaLo": 3, "FAMO": 1}.get(name, 1 if "SoftAdapt" in name else None)
    for weights, values in zip(play(METHODS[name](), steps), steps, strict=True):
        if total is not None:
            assert weights.sum().item() == pytest.approx(total, rel=1e-12)
        if name in ("GeometricMean", "STCH"):  # a loss in another unit has another weight, and the same gradient
            weighted = weights * torch.tensor(values, dtype=torch.float64)
            whole = math.prod(values) ** (1 / 3) if name == "GeometricMean" else 3
            assert weighted.sum().item() == pytest.approx(whole, rel=1e-12)


@every_method
def test_no_graph_is_kept(name):
    leaf, method = torch.tensor([1.0, 2.0], requires_grad=True), METHODS[name]()
    losses = (leaf * 2).sum()
    alive = weakref.ref(losses)
    weights = method.weights(Losses((0,), 1, None, (losses,)))
    del losses
    assert alive() is None
    assert not weights.requires_grad


@every_method
def test_an_absent_loss_leaves_its_state_untouched(name):
    method = METHODS[name]()
    play(method, random_steps(5))
    before = _state_of_loss(method.state_dict(), 1)
    (weights,) = play(method, [[0.5, None, 2.0]], epoch=None)
    assert weights.shape == (2,)
    assert repr(_state_of_loss(method.state_dict(), 1)) == repr(before)


def _state_of_loss(state, index):
    """The numbers of one loss in a state."""
    if isinstance(state, dict):
        return {key: _state_of_loss(part, index) for key, part in state.items() if key not in ("draws", "ended")}
    return state[index] if isinstance(state, list) else state


@pytest.mark.parametrize("name", [name for name in METHODS if name != "RLW"])
def test_a_loss_that_never_comes_is_as_if_it_were_not_in_the_list(name):
    steps = random_steps(8, n_losses=2)
    torch.manual_seed(0)
    without, within = METHODS[name](), METHODS[name]()
    assert_equal(play(without, steps), play(within, [[a, None, b] for a, b in steps]))


@every_method
def test_losses_come_and_go(name):
    steps = [[1.0, None, None], [None, 2.0, 3.0], [2.0, 1.0, None], [None, None, 4.0], [1.0, 2.0, 3.0]] * 3
    for weights, values in zip(play(METHODS[name](), steps), steps, strict=True):
        assert len(weights) == 3 - values.count(None)
        assert weights.isfinite().all()


@every_method
def test_another_number_of_losses_is_refused_by_what_keeps_numbers(name):
    method = METHODS[name]()
    play(method, random_steps(3))
    if name in ("ConstantWeights", "CausalWeights", "RLW", "GeometricMean"):
        play(method, random_steps(1, n_losses=2))
        return
    with pytest.raises(ValueError, match="`losses` has 2 entries, but 3 in the steps before"):
        play(method, random_steps(1, n_losses=2))


@every_method
def test_values_of_all_scales_give_finite_weights(name):
    steps = [[1e-15, 1e15, 1.0], [1e15, 1e-15, 1.0], [1e15, 1e15, 1e-15], [1e-15, 1e-15, 1e-15]] * 3
    for weights in play(METHODS[name](), steps):
        assert weights.isfinite().all()
        assert (weights >= 0).all()


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_narrow_values_are_weighted_as_the_same_numbers_in_double(name, dtype):
    steps = [torch.tensor(values, dtype=dtype).tolist() for values in random_steps(8)]
    torch.manual_seed(0)
    narrow, wide = METHODS[name](), METHODS[name]()
    assert_equal(play(narrow, steps, dtype=dtype), play(wide, steps))


# -- state -------------------------------------------------------------------------------------------------------------


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_method
@pytest.mark.parametrize("before", [0, 1, 3, 5, 8])
@pytest.mark.parametrize("carried", [copy.deepcopy, through_a_file], ids=["in memory", "through a file"])
def test_a_fresh_object_goes_on_bit_for_bit(name, before, carried):
    torch.manual_seed(1)
    method = METHODS[name]()
    torch.manual_seed(2)
    fresh = METHODS[name]()
    steps = random_steps(before + 10)
    play(method, steps[:before])
    fresh.load_state_dict(carried(method.state_dict()))
    on = play(method, steps[before:], first=before)
    assert_equal(play(fresh, steps[before:], first=before), on)
    assert repr(fresh.state_dict()) == repr(method.state_dict())


@every_method
def test_state_is_plain_and_has_the_same_keys_from_the_start_on(name):
    method = METHODS[name]()
    keys = _keys(method.state_dict())
    play(method, random_steps(7))
    assert _keys(method.state_dict()) == keys


def _keys(state):
    if isinstance(state, dict):
        return {key: _keys(part) for key, part in state.items()}
    if isinstance(state, list):
        assert all(type(number) is float for number in state)
        return list
    assert type(state) in (int, float)
    return type(state)


@every_stateful_method
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("before", [0, 5])
def test_a_step_that_is_not_finite_leaves_no_trace(name, bad, before):
    torch.manual_seed(0)
    method, other = METHODS[name](), METHODS[name]()
    steps = random_steps(before + 4)
    play(method, steps[:before])
    play(other, steps[:before])
    state = repr(method.state_dict())
    losses = known([1.0, bad, 2.0])
    pipeline = Pipeline(method)
    pipeline.check(losses)
    pipeline.weights(losses)
    if isinstance(method, FAMO) and before:
        method.observe(after([1.0, bad, 2.0]))
    assert repr(method.state_dict()) == state
    assert_equal(play(method, steps[before:], first=before), play(other, steps[before:], first=before))


@every_method
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_go_on_alike_and_apart(name, duplicate):
    method, steps = METHODS[name](), random_steps(9)
    play(method, steps[:5])
    other = duplicate(method)
    on = play(method, steps[5:], first=5)
    assert repr(other) == repr(method)
    assert_equal(play(other, steps[5:], first=5), on)


def test_the_optimizers_checkpoint_has_the_weighting():
    w = nn.Parameter(torch.ones(3))
    method, fresh = IMTLL(lr=0.5), IMTLL(lr=0.5)
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), method)
    optimizer.step([w.square().sum(), w.exp().sum()])
    other = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), fresh)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert fresh.state_dict() == method.state_dict() != IMTLL().state_dict()


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (ConstantWeights(2), "ConstantWeights(weight=2.0)"),
        (ConstantWeights([1, 0.5]), "ConstantWeights(weight=(1.0, 0.5))"),
        (CausalWeights(), "CausalWeights()"),
        (CausalWeights(eps={"a": 0}), "CausalWeights(eps={'a': 0.0})"),
        (DWA(), "DWA()"),
        (DWA(tau=1), "DWA(tau=1.0)"),
        (RLW(seed=2), "RLW()"),
        (GeometricMean(), "GeometricMean()"),
        (IMTLL(lr=0.1, start=1), "IMTLL(lr=0.1, start=1.0)"),
        (STCH(), "STCH()"),
        (STCH(mu=2, warmup_epochs=1, preference={"a": 2}), "STCH(mu=2.0, warmup_epochs=1, preference={'a': 2.0})"),
        (FAMO(), "FAMO()"),
        (FAMO(lr=1, decay=0, min_losses=[0, 1]), "FAMO(lr=1.0, decay=0.0, min_losses=(0.0, 1.0))"),
        (SoftAdapt(), "SoftAdapt()"),
        (SoftAdapt(beta=-1, window=2, normalized=True), "SoftAdapt(beta=-1.0, window=2, normalized=True)"),
        (ReLoBRaLo(), "ReLoBRaLo()"),
        (ReLoBRaLo(alpha=0.9, beta=1, tau=0.1, seed=1), "ReLoBRaLo(alpha=0.9, beta=1.0, tau=0.1)"),
    ],
    ids=str,
)
def test_repr_shows_what_was_chosen(method, text):
    assert repr(method) == text


@pytest.mark.parametrize(
    ("kind", "settings", "error", "match"),
    [
        (ConstantWeights, {"weight": "much"}, TypeError, r"`weight` must be a number"),
        (ConstantWeights, {"weight": [1, INF]}, ValueError, r"`weight\[1\]` must be finite"),
        (ConstantWeights, {"weight": {"a": NAN}}, ValueError, r"`weight\['a'\]` must be finite"),
        (CausalWeights, {"eps": [1, -1]}, ValueError, r"`eps\[1\]` must be 0 or more"),
        (CausalWeights, {"eps": "much"}, TypeError, r"`eps` must be a number"),
        (DWA, {"tau": 0}, ValueError, "`tau` must be above 0"),
        (RLW, {"seed": 1.5}, TypeError, "`seed` must be a whole number"),
        (IMTLL, {"lr": 0}, ValueError, "`lr` must be above 0"),
        (IMTLL, {"start": INF}, ValueError, "`start` must be finite"),
        (STCH, {"mu": -1}, ValueError, "`mu` must be above 0"),
        (STCH, {"warmup_epochs": 0}, ValueError, "`warmup_epochs` must be 1 or more"),
        (STCH, {"warmup_epochs": 1.5}, TypeError, "`warmup_epochs` must be a whole number"),
        (STCH, {"preference": [1, -1]}, ValueError, r"`preference\[1\]` must be 0 or more"),
        (FAMO, {"lr": -1}, ValueError, "`lr` must be above 0"),
        (FAMO, {"decay": -1}, ValueError, "`decay` must be 0 or more"),
        (FAMO, {"min_losses": {"a": INF}}, ValueError, r"`min_losses\['a'\]` must be finite"),
        (SoftAdapt, {"beta": NAN}, ValueError, "`beta` must be finite"),
        (SoftAdapt, {"window": 1}, ValueError, "`window` must be 2 or more"),
        (ReLoBRaLo, {"alpha": 1.5}, ValueError, "`alpha` must be between 0 and 1"),
        (ReLoBRaLo, {"beta": -0.1}, ValueError, "`beta` must be between 0 and 1"),
        (ReLoBRaLo, {"tau": 0}, ValueError, "`tau` must be above 0"),
        (ReLoBRaLo, {"seed": "1"}, TypeError, "`seed` must be a whole number"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_at_once(kind, settings, error, match):
    with pytest.raises(error, match=match):
        kind(**settings)


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (ConstantWeights([1, 2]), "`weight` has 2 values for 3 losses"),
        (ConstantWeights({"d": 1}), r"`weight` names \['d'\], but the losses are \['a', 'b', 'c'\]"),
        (CausalWeights(eps=[1, 2]), "`eps` has 2 values for 3 losses"),
        (CausalWeights(eps={"d": 1}), r"`eps` names \['d'\], but the losses are \['a', 'b', 'c'\]"),
        (STCH(preference=[1, 2]), "`preference` has 2 values for 3 losses"),
        (FAMO(min_losses={"d": 1}), r"`min_losses` names \['d'\]"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_losses_are_refused(method, match):
    with pytest.raises(ValueError, match=match):
        method.check(known([1.0, 1.0, 1.0], names=("a", "b", "c")))


@pytest.mark.parametrize(
    ("method", "values", "match"),
    [
        (GeometricMean(), [1.0, 0.0, 1.0], r"losses\[b\]. is 0, but GeometricMean needs losses above 0"),
        (GeometricMean(), [None, 1.0, -2.0], r"losses\[c\]. is -2, "),
        (CausalWeights(), [1.0, 1.0, -0.5], r"losses\[c\]. is -0.5, but CausalWeights needs losses of 0 or more. Add"),
        (STCH(), [-0.5, 1.0, 1.0], r"losses\[a\]. is -0.5, but STCH needs losses above 0"),
        (FAMO(), [1.0, 1.0, -0.5], r"losses\[c\]. is -0.5, but FAMO needs losses above their `min_losses`, 0.0. Lower"),
        (FAMO(min_losses={"b": 2}), [1.0, 1.5, 1.0], r"losses\[b\]. is 1.5, but FAMO needs losses above"),
        (SoftAdapt(loss_weighted=True), [1.0, -1.0, 1.0], r"losses\[b\]. is -1, but `loss_weighted` needs losses of 0"),
    ],
    ids=str,
)
def test_values_that_a_method_cannot_take_are_refused_by_name(method, values, match):
    w = nn.Parameter(torch.ones(()))
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), method)
    losses = {name: None if value is None else w * value for name, value in zip("abc", values, strict=True)}
    state = repr(method.state_dict())
    with pytest.raises(ValueError, match=match):
        optimizer.step(losses)
    assert w.grad is None
    assert repr(method.state_dict()) == state


@pytest.mark.filterwarnings("ignore:`losses\\[1\\]` is 0")  # UncertaintyWeighting tells of it
@pytest.mark.parametrize(
    "method",
    [FAMO(min_losses=-3), SoftAdapt(), SoftAdapt(normalized=True), DWA(), UncertaintyWeighting(), ReLoBRaLo()],
    ids=str,
)
def test_other_methods_take_losses_of_any_sign(method):
    assert all(w.isfinite().all() for w in play(method, [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [0.0, -1.0, 1.0]] * 3))


def test_a_loss_of_zero_weights_nothing_in_the_loss_weighted_softadapt():
    first, second = play(SoftAdapt(loss_weighted=True), [[0.0, 0.0], [0.0, 2.0]])
    assert first.tolist() == [0, 0]
    assert second.tolist() == [0, 1]


@pytest.mark.parametrize("name", METHODS)
def test_what_each_method_says_of_itself(name):
    """A method that reads no values needs no agreement on them, nor the factor of a GradScaler."""
    method = METHODS[name]()
    reads_none = name in ("ConstantWeights", "RLW")
    assert method.uses_values is not reads_none
    assert method.scale_equivariant is reads_none


def test_the_values_are_where_the_first_loss_is():
    scalars = (torch.ones((), device="meta"), torch.ones((), dtype=torch.float64))
    values = Losses((0, 1), 2, None, scalars).values
    assert values.device.type == "meta"
    assert values.dtype == torch.float64


# -- settings by name, epochs and looks back ---------------------------------------------------------------------------


def test_constant_weights_by_name_leave_the_others_at_1():
    losses = known([1.0, None, 1.0], names=("a", "b", "c"))
    assert ConstantWeights({"c": 0.25}).weights(losses).tolist() == [1, 0.25]
    assert ConstantWeights([1, 2, -3]).weights(losses).tolist() == [1, -3]


def test_a_loss_before_all_times_is_not_weighted_and_holds_no_other_back():
    causal = CausalWeights(eps={"boundary": 0})
    losses = known([-9.0, 1.0, None, 2.0, 0.5], names=("boundary", "early", "noon", "late", "night"))
    causal.check(losses)
    expected = [1, 1, math.exp(-1), math.exp(-3)]
    assert causal.weights(losses).tolist() == pytest.approx(expected, rel=1e-15)


def test_a_small_loss_before_a_large_one_still_holds_that_back():
    weights = CausalWeights().weights(known([5.0, 1e20, 1.0]))
    assert weights.tolist() == [1, math.exp(-5), 0]


def test_preferences_and_bounds_go_by_name():
    names = ("a", "b", "c")
    pairs = [
        (STCH(warmup_epochs=1, preference={"b": 0}), STCH(warmup_epochs=1, preference=[1, 0, 1])),
        (FAMO(min_losses={"b": 0.5}), FAMO(min_losses=[0, 0.5, 0])),
    ]
    for by_name, by_place in pairs:
        for method in (by_name, by_place):
            method.weights(known([1.0, 2.0, 3.0], names=names))
            getattr(method, "epoch_end", list)()
        weights = [method.weights(known([2.0, 1.0, 3.0], names=names)) for method in (by_name, by_place)]
        assert torch.equal(*weights)
        assert weights[0][0] != weights[0][1]


def test_dwa_weights_with_1_until_all_losses_present_were_there_in_two_epochs():
    method = DWA()
    epochs = [[2.0, 3.0, None], [1.0, 3.0, None], [1.0, 3.0, 5.0]]
    for values in epochs:
        (weights,) = play(method, [values], epoch=1)
    assert weights.tolist() == [1, 1, 1]
    (weights,) = play(method, [[1.0, 3.0, None]], epoch=None)
    assert weights[0] == weights[1] == 1  # both stood still in the last two
    (weights,) = play(method, [[1.0, 3.0, 5.0]], epoch=None)
    assert weights.tolist() == [1, 1, 1]


def test_dwa_takes_the_means_of_the_epochs():
    method = DWA(tau=1)
    play(method, [[1.0, 4.0], [3.0, 4.0]])  # means 2 and 4
    play(method, [[1.0, None], [1.0, 2.0]])  # 1 and 2: both halved
    play(method, [[1.0, 1.0], [1.0, 1.0]])  # 1 and 1
    (weights,) = play(method, [[9.0, 9.0]])
    expected = 2 * torch.tensor([1.0, 0.5], dtype=torch.float64).softmax(0)
    assert_close(weights, expected)


def test_an_epoch_without_steps_changes_nothing_in_dwa():
    weights = []
    for ends in (1, 3):
        method = DWA()
        method.epoch_end()
        play(method, random_steps(7))
        for _ in range(ends):
            method.epoch_end()
        weights += play(method, random_steps(1))
    assert torch.equal(*weights)
    assert weights[0].tolist() != [1, 1, 1]


def test_dwa_has_no_ratio_of_a_loss_that_was_0():
    weights = play(DWA(), [[0.0, 1.0], [1.0, 2.0], [1.0, 3.0]], epoch=1)
    assert weights[-1].tolist() == [1, 1]


def test_stch_takes_the_first_value_of_a_loss_that_was_not_in_the_warm_up():
    method = STCH(warmup_epochs=1)
    play(method, [[2.0, None], [4.0, None]])  # the nadir of the first is 3
    (weights,) = play(method, [[6.0, 5.0]])
    assert_close(weights, 2 * torch.tensor([2 / 3 / 6, 1 / 3 / 5], dtype=torch.float64))
    (weights,) = play(method, [[3.0, 10.0]])
    assert_close(weights, 2 * torch.tensor([1 / 3 / 3, 2 / 3 / 10], dtype=torch.float64))


def test_stch_keeps_the_nadir_of_the_last_epoch_of_its_warm_up_that_had_the_loss():
    method = STCH(warmup_epochs=2)
    play(method, [[8.0, 3.0], [8.0, 5.0], [1.0, None], [3.0, None]])  # nadirs 2 and 4
    for _ in range(3):
        (weights,) = play(method, [[2.0, 4.0]], epoch=1)  # further epochs do not move them
        assert_close(weights, torch.tensor([1 / 2, 1 / 4], dtype=torch.float64))


def test_stch_is_in_its_warm_up_until_epochs_end():
    values = [0.5, 2.0, 4.0]
    assert all(w.tolist() == [2, 0.5, 0.25] for w in play(STCH(warmup_epochs=1), [values] * 6, epoch=None))
    assert all(w.tolist() == [2, 0.5, 0.25] for w in play(STCH(), [values] * 5, epoch=1))


def test_a_loss_of_no_preference_has_no_weight():
    method = STCH(warmup_epochs=1, preference=[1, 0])
    assert play(method, random_steps(3, n_losses=2))[-1][1] == 0


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_relobralo_without_looks_back_forgets_nothing_at_once(tau):
    """With beta=1 the first losses do not matter, with beta=0 the weights of the step before do not."""
    steps = random_steps(6)
    never, always = ReLoBRaLo(alpha=1, beta=1, tau=tau), ReLoBRaLo(alpha=1, beta=0, tau=tau)
    assert all(w.tolist() == [1, 1, 1] for w in play(never, steps))
    for weights, values in zip(play(always, steps), steps, strict=True):
        ratios = torch.tensor(values, dtype=torch.float64) / torch.tensor(steps[0], dtype=torch.float64)
        assert_close(weights, 3 * (ratios / tau).softmax(0), 1e-7)


def test_relobralo_looks_back_as_often_as_beta_says():
    n, method, looked_back = 2000, ReLoBRaLo(alpha=1, beta=0.8, seed=0), 0
    play(method, [[1.0, 1.0]])
    for _ in range(n):
        method.smoothed.keep(known([1.0, 1.0]), torch.ones(2))
        (weights,) = play(method, [[2.0, 1.0]])
        looked_back += weights[0].item() != 1
    assert abs(looked_back / n - 0.2) < 5 * math.sqrt(0.16 / n)  # five standard errors


def test_softadapt_knows_no_slope_in_a_first_step():
    assert_close(play(SoftAdapt(), random_steps(1))[0], torch.full((3,), 1 / 3, dtype=torch.float64))


# -- FAMO's second look ------------------------------------------------------------------------------------------------


def famo_after_a_step(**settings):
    method = FAMO(lr=0.5, **settings)
    method.weights(known([1.0, 2.0, 4.0], names=("a", "b", "c")))
    return method


def trained(method):
    return method.state_dict()["trained"]["numbers"]["numbers"]


def numbers(*values):
    return [None if value is None else torch.tensor(value) for value in values]


def test_famo_gives_less_to_the_loss_that_fell_most():
    method = famo_after_a_step()
    method.observe(dict(zip("abc", numbers(0.5, 2.0, 4.0), strict=True)))
    first, second, third = trained(method)
    assert first < second == third


def test_famo_without_a_second_look_evens_out_magnitudes_and_stays():
    for values in random_steps(4):
        method = FAMO()
        weights = [method.weights(known(values)) for _ in range(2)]
        weighted = weights[0] * torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(weighted, weighted.mean().expand(3), rtol=1e-5, atol=0)
        assert torch.equal(*weights)


def test_famo_takes_the_losses_in_any_order_of_their_names_and_as_a_vector():
    methods = [famo_after_a_step(), famo_after_a_step()]
    methods[0].observe(dict(zip("abc", numbers(0.5, 1.0, 3.0), strict=True)))
    methods[1].observe(dict(zip("cab", numbers(3.0, 0.5, 1.0), strict=True)))
    unnamed = [FAMO(lr=0.5), FAMO(lr=0.5)]
    for method, losses in zip(unnamed, (numbers(0.5, 1.0, 3.0), torch.tensor([0.5, 1.0, 3.0])), strict=True):
        method.weights(known([1.0, 2.0, 4.0]))
        method.observe(losses)
    assert trained(methods[0]) == trained(methods[1]) == trained(unnamed[0]) == trained(unnamed[1]) != [0, 0, 0]


def test_famo_takes_losses_with_a_graph_and_keeps_none():
    method = famo_after_a_step()
    losses = torch.ones(3, requires_grad=True) * 0.5
    alive = weakref.ref(losses)
    method.observe(dict(zip("abc", losses.unbind(), strict=True)))
    del losses
    assert alive() is None


@pytest.mark.parametrize("missing", [None, NAN, -INF, -1.0], ids=str)
def test_famo_does_not_train_on_a_loss_that_it_cannot_compare(missing):
    method, other = FAMO(lr=0.5), FAMO(lr=0.5)
    method.weights(known([1.0, 2.0, 4.0]))
    method.observe(numbers(0.5, missing, 3.0))
    other.weights(known([1.0, 4.0]))
    other.observe(numbers(0.5, 3.0))
    first, second, third = trained(method)
    assert [first, third] == trained(other)
    assert second == 0


def test_famo_does_not_train_on_a_loss_that_was_not_in_the_step():
    method, other = FAMO(lr=0.5), FAMO(lr=0.5)
    for m in (method, other):
        m.weights(known([1.0, 2.0, 4.0]))
        m.weights(known([1.0, None, 4.0]))
    method.observe(numbers(0.5, 1.0, 3.0))
    other.observe(numbers(0.5, None, 3.0))
    assert trained(method) == trained(other)


def test_famo_looks_once_at_each_step():
    method = famo_after_a_step()
    losses = dict(zip("abc", numbers(0.5, 1.0, 3.0), strict=True))
    method.observe(losses)
    before = repr(method.state_dict())
    method.observe(losses)
    assert repr(method.state_dict()) == before


def test_what_famo_waits_for_is_state():
    method, fresh, stepped_back = famo_after_a_step(), FAMO(lr=0.5), FAMO(lr=0.5)
    fresh.load_state_dict(through_a_file(method.state_dict()))
    stepped_back.weights(known([9.0, 9.0, 9.0], names=("a", "b", "c")))
    stepped_back.load_state_dict(method.state_dict())
    for m in (method, fresh, stepped_back, pickle.loads(pickle.dumps(famo_after_a_step()))):
        m.observe(dict(zip("abc", numbers(0.5, 1.0, 3.0), strict=True)))
        assert trained(m) == trained(method) != [0, 0, 0]


def test_famo_compares_without_the_factor_of_a_gradscaler():
    methods = [FAMO(lr=0.5), FAMO(lr=0.5)]
    for method, scale in zip(methods, (None, 8.0), strict=True):
        scalars = tuple(torch.tensor([1.0, 2.0], dtype=torch.float64) * (scale or 1))
        method.weights(Losses((0, 1), 2, None, scalars, scale))
        method.observe(numbers(0.5, 1.5))
    assert trained(methods[0]) == trained(methods[1])


def test_famo_refuses_a_loss_below_its_bound_under_a_gradscaler_too():
    w, scaler = nn.Parameter(torch.ones(2)), torch.amp.GradScaler("cpu", init_scale=1024.0)
    method = FAMO(min_losses=2)
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), method)
    with pytest.raises(ValueError, match=r"losses\[0\]. is 1.5, but FAMO needs losses above"):
        optimizer.backward([scaler.scale(1.5 * w[0]), scaler.scale(3 * w[1])])
    assert w.grad is None
    assert method.state_dict() == FAMO().state_dict()


def test_famo_wants_a_step_before_it_looks():
    with pytest.raises(RuntimeError, match=r"`observe` compares with the losses of a step\. Call it after one"):
        FAMO().observe(numbers(1.0, 2.0))


@pytest.mark.parametrize(
    ("losses", "error", "match"),
    [
        (numbers(1.0, 2.0, 3.0), ValueError, r"must be those of the step, \['a', 'b', 'c'\], but they are 3 losses"),
        ({"a": torch.tensor(1.0)}, ValueError, r"but they are \['a'\]"),
        (dict.fromkeys("abd", torch.tensor(1.0)), ValueError, r"but they are \['a', 'b', 'd'\]"),
        (dict.fromkeys("abc", torch.ones(2)), ValueError, r"`losses\[0\]` must be a scalar, but it has shape \(2,\)"),
        (dict.fromkeys("abc", 1.0), TypeError, r"`losses\[0\]` must be a tensor, but it is float"),
    ],
    ids=["no names", "too few", "other names", "no scalars", "no tensors"],
)
def test_famo_refuses_other_losses_than_those_of_the_step(losses, error, match):
    method = famo_after_a_step()
    state = repr(method.state_dict())
    with pytest.raises(error, match=match):
        method.observe(losses)
    assert repr(method.state_dict()) == state


def test_famo_refuses_a_list_of_another_length():
    method = FAMO()
    method.weights(known([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"must be those of the step, 2 losses, but they are 3 losses"):
        method.observe(numbers(1.0, 2.0, 3.0))


# -- several ranks -----------------------------------------------------------------------------------------------------

VALUES = [[[1.0, 4.0], [3.0, 4.0]], [[2.0, 0.5], [1.0, None]], [[4.0, 1.0], [1.0, 3.0]], [[0.5, 2.0], [2.5, 1.0]]]


def weights_by_method(steps, seed):
    """The weights of each method in some steps, as an optimizer uses them: in the gradients."""
    found = {}
    for name, make in METHODS.items():
        torch.manual_seed(seed)
        method, found[name] = make(), []
        w = nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.0), method)
        for number, values in enumerate(steps):
            optimizer.zero_grad()
            optimizer.step([None if value is None else value * w[i] for i, value in enumerate(values)])
            found[name].append([gradient / (v or NAN) for v, gradient in zip(values, w.grad.tolist(), strict=True)])
            if isinstance(method, FAMO):
                method.observe([None if v is None else torch.tensor(v - 0.2, dtype=torch.float64) for v in values])
            if hasattr(method, "epoch_end") and number != 1:
                method.epoch_end()
    return found


def weights_on_rank(rank):
    return weights_by_method([step[rank] for step in VALUES], seed=0 if rank == 0 else 100)


def look_before_a_step_on_rank(rank):
    resumed = FAMO(lr=0.5)
    resumed.load_state_dict(famo_after_a_step().state_dict())
    resumed.observe(dict(zip("abc", numbers(0.5, 1.0, 3.0), strict=True)))


@pytest.mark.timeout(240)
def test_two_ranks_weight_as_one_process_on_the_mean_values():
    on_ranks = run_ranks(weights_on_rank, 2)
    means = [[2.0, 4.0], [1.5, 0.5], [2.5, 2.0], [1.5, 1.5]]
    alone = weights_by_method(means, seed=0)
    for name in METHODS:
        for rank, found in enumerate(on_ranks):
            assert not isinstance(found, str), found
            for step, expected, own in zip(found[name], alone[name], VALUES, strict=True):
                expected = [NAN if v is None else e for v, e in zip(own[rank], expected, strict=True)]
                assert step == pytest.approx(expected, rel=1e-9, nan_ok=True), name


@pytest.mark.timeout(240)
def test_famo_knows_its_ranks_only_from_a_step():
    for message in run_ranks(look_before_a_step_on_rank, 2):
        assert message.startswith("RuntimeError: `observe` compares with the losses of a step")


def test_famo_takes_no_process_group_into_a_file():
    method = FAMO()
    ranks = Ranks(group=lambda: "cannot be pickled", size=2)
    method.weights(replace(known([1.0, 2.0]), ranks=ranks))
    assert pickle.loads(pickle.dumps(method)).state_dict() == method.state_dict()
    assert "pickled" not in repr(method.state_dict())
