"""The wrapper passes as an optimizer: each line of its contract, over every class of torch.optim."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
import subprocess
import sys
import warnings

import pytest
import torch
from methods import WEIGHTINGS
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer, lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import mtopt
from mtopt import GradDrop, MultiLossOptimizer

pytestmark = pytest.mark.filterwarnings("ignore:LBFGS has line_search_fn")  # with GradDrop: it is told, see below

CLASSES = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, Optimizer) and cls is not Optimizer
}
VARIANTS = {
    **{name: (name, {}) for name in CLASSES},
    **{f"{name}, foreach": (name, {"foreach": True}) for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")},
    **{f"{name}, fused": (name, {"fused": True}) for name in ("SGD", "Adam", "AdamW", "Adagrad")},
    "SGD, momentum": ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    "Adam, amsgrad": ("Adam", {"amsgrad": True}),
    "LBFGS, line search": ("LBFGS", {"line_search_fn": "strong_wolfe"}),
}


class Net(nn.Module):
    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.sparse = sparse
        bias = False  # Muon takes matrices only
        self.trunk = nn.Embedding(8, 4, sparse=True) if sparse else nn.Linear(4, 4, bias=bias)
        self.a, self.b = nn.Linear(4, 2, bias=bias), nn.Linear(4, 2, bias=bias)
        if sparse:
            self.requires_grad_(False)
            self.trunk.requires_grad_()

    def forward(self, x):
        features = self.trunk(x).tanh()
        return [self.a(features).square().mean(), (self.b(features) - 1).square().mean()]


def make(variant: str, transforms=None, **settings):
    """A model, its batches, its optimizer and the wrapped one."""
    torch.manual_seed(0)
    name, options = VARIANTS[variant]
    net = Net(sparse=name == "SparseAdam")
    parameters = [p for p in net.parameters() if p.requires_grad]
    lr = {"LBFGS": 0.5, "Adadelta": 1.0}.get(name, 0.02)
    inner = CLASSES[name](parameters, lr=lr, **options)
    optimizer = MultiLossOptimizer(inner, GradDrop(seed=3) if transforms is None else transforms, **settings)
    batches = [torch.randint(8, (6,)) if net.sparse else torch.randn(6, 4) for _ in range(6)]
    return net, batches, inner, optimizer


def train(net, batches, optimizer, *, plain: bool = False) -> None:
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            losses = net(batch)
            if not plain:
                return losses
            total = sum(losses)
            total.backward()
            return total

        if isinstance(getattr(optimizer, "inner", optimizer), torch.optim.LBFGS):
            optimizer.step(closure)
        elif plain:
            closure()
            optimizer.step()
        else:
            optimizer.zero_grad()
            optimizer.step(net(batch))


def weights(net) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def assert_same(ours, theirs) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def round_trip(value):
    """Through torch.save and the strict loader."""
    file = io.BytesIO()
    torch.save(value, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


# -- the inner optimizer is what steps --


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # LBFGS itself does so in torch 2.8
def test_without_transforms_it_is_the_inner_optimizer_bit_for_bit(variant):
    net, batches, inner, _ = make(variant)
    train(net, batches, inner, plain=True)
    wrapped_net, batches, _, optimizer = make(variant, [])
    train(wrapped_net, batches, optimizer)
    assert_same(weights(wrapped_net), weights(net))


def test_graddrop_trains_and_is_repeatable(variant):
    first, batches, _, optimizer = make(variant)
    start = weights(first)
    train(first, batches, optimizer)
    second, batches, _, optimizer = make(variant)
    train(second, batches, optimizer)
    assert_same(weights(first), weights(second))
    assert any(not torch.equal(a, b) for a, b in zip(weights(first), start, strict=True))


def test_groups_state_and_defaults_are_the_inner_ones(variant):
    net, batches, inner, optimizer = make(variant)
    assert isinstance(optimizer, Optimizer)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    train(net, batches[:2], optimizer)
    allowed = {key for state in inner.state.values() for key in state}
    assert not any("mtopt" in str(key) for key in allowed)
    optimizer.param_groups = groups = list(inner.param_groups)
    optimizer.state, optimizer.defaults = state, defaults = copy.copy(inner.state), dict(inner.defaults)
    assert inner.param_groups is groups
    assert inner.state is state
    assert inner.defaults is defaults


def test_a_resumed_run_goes_on_bit_for_bit(variant):
    net, batches, _, optimizer = make(variant)
    train(net, batches[:3], optimizer)
    saved_net, saved = round_trip(net.state_dict()), round_trip(optimizer.state_dict())
    train(net, batches[3:], optimizer)
    resumed, _, _, fresh = make(variant, GradDrop(seed=99))
    resumed.load_state_dict(saved_net)
    fresh.load_state_dict(saved)
    train(resumed, batches[3:], fresh)
    assert_same(weights(resumed), weights(net))


def test_plain_and_wrapped_checkpoints_load_into_each_other(variant):
    net, batches, inner, optimizer = make(variant)
    train(net, batches[:2], optimizer)
    wrapped, plain = optimizer.state_dict(), inner.state_dict()
    assert set(wrapped) - set(plain) == {"mtopt"}
    inner.load_state_dict(wrapped)
    optimizer.load_state_dict(plain)
    train(net, batches[2:], optimizer)


def test_pickle_and_deepcopy_go_on_bit_for_bit(variant):
    net, batches, inner, optimizer = make(variant)
    if isinstance(inner, torch.optim.LBFGS):
        with pytest.raises(AttributeError, match="_params"):  # torch's own LBFGS does not survive a copy
            copy.deepcopy(inner).step(lambda: 0.0)
        return
    train(net, batches[:2], optimizer)
    copies = [copy.deepcopy((net, optimizer)), pickle.loads(pickle.dumps((net, optimizer)))]
    train(net, batches[2:], optimizer)
    for other_net, other in copies:
        train(other_net, batches[2:], other)
        assert_same(weights(other_net), weights(net))


def test_step_hooks_fire_exactly_once(variant):
    net, batches, _, optimizer = make(variant)
    calls = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    train(net, batches[:1], optimizer)
    for handle in handles:
        handle.remove()
    train(net, batches[:1], optimizer)
    assert sorted(calls) == ["global post", "global pre", "post", "pre"]


def test_state_dict_hooks_work(variant):
    net, batches, _, optimizer = make(variant)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda _, state: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: calls.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    train(net, batches[:1], optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["save", "saved", "load", "loaded"]


def test_a_step_with_nothing_pending_is_the_inner_step(variant):
    net, batches, inner, optimizer = make(variant)
    if isinstance(inner, torch.optim.LBFGS):
        with pytest.raises(TypeError, match="closure"):
            optimizer.step()
        return
    before = weights(net)
    optimizer.step()
    optimizer.step(closure=None)
    assert_same(weights(net), before)
    sum(net(batches[0])).backward()
    with pytest.warns(RuntimeWarning, match="come from no losses"):
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(weights(net), before, strict=True))


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.10
def test_the_profiler_sees_one_step():
    net, batches, _, optimizer = make("Adam")
    with torch.profiler.profile() as profile:
        train(net, batches[:1], optimizer)
    names = [event.key for event in profile.key_averages() if event.key.startswith("Optimizer.step")]
    assert names == ["Optimizer.step#Adam.step"]


def test_private_flags_of_the_inner_optimizer_stay_private():
    # A GradScaler that found this flag on the wrapper would leave the unscaling to a fused step that does not do it.
    _, _, inner, optimizer = make("Adam, fused")
    assert inner._step_supports_amp_scaling
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
    with pytest.raises(AttributeError):
        optimizer.no_such_attribute  # noqa: B018


def test_added_groups_reach_the_inner_optimizer():
    net, batches, inner, optimizer = make("SGD")
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.5})
    assert len(inner.param_groups) == 2
    train(net, batches, optimizer)


def test_zero_grad_clears():
    net, batches, _, optimizer = make("SGD")
    optimizer.backward(net(batches[0]))
    optimizer.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in net.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


# -- closures --


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_sees_one_mask_for_a_whole_step(line_search):
    net, batches, _, _ = make("SGD")
    inner = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=5, line_search_fn=line_search)
    optimizer = MultiLossOptimizer(inner, GradDrop(seed=0))
    start = optimizer.transforms[0].state_dict()
    picked = []

    def closure():
        optimizer.zero_grad()
        picked.append(optimizer.transforms[0].state_dict())
        return net(batches[0])

    optimizer.step(closure)
    after = optimizer.transforms[0].state_dict()
    assert len(picked) > 2
    assert after != start
    optimizer.transforms[0].load_state_dict(start)
    optimizer.zero_grad()
    optimizer.backward(net(batches[0]))
    assert after == optimizer.transforms[0].state_dict()  # one draw in all


class Probe(torch.optim.SGD):
    """Evaluates twice to both sides of where it is, along the gradient."""

    def step(self, closure):
        with torch.enable_grad():
            closure()
            (weight,) = self.param_groups[0]["params"]
            at, self.gradient, self.values = weight.detach().clone(), weight.grad.clone(), []
            for way in (1e-5, -1e-5):
                weight.data = at + way * self.gradient
                self.values.append(float(closure()))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_an_inner_optimizer_is_told_the_loss_whose_gradient_it_has(name):
    """By differences: the value falls as steeply as the gradient is long, also where weights are drawn or trained."""
    weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    probe = Probe([weight], lr=0.1)
    optimizer = MultiLossOptimizer(probe, WEIGHTINGS[name]())

    def closure():
        optimizer.zero_grad()
        return {"a": 3 * weight.square().sum(), "b": (weight - 1).exp().sum(), "c": weight.cosh().mean()}

    for _ in range(3):
        optimizer.step(closure)
        steep = (probe.values[0] - probe.values[1]) / 2e-5
        assert steep == pytest.approx(float(probe.gradient.square().sum()), rel=1e-5)


def test_a_line_search_over_weighted_losses_goes_where_it_goes_with_weights_by_hand():
    ends = []
    for by_hand in (True, False):
        net, batches, _, _ = make("SGD")
        inner = torch.optim.LBFGS(net.parameters(), max_iter=20, line_search_fn="strong_wolfe")
        optimizer = MultiLossOptimizer(inner, [] if by_hand else mtopt.ConstantWeights([100.0, 0.01]))

        def closure(net=net, optimizer=optimizer, batch=batches[0], by_hand=by_hand):
            optimizer.zero_grad()
            a, b = net(batch)
            return [100.0 * a, 0.01 * b] if by_hand else [a, b]

        optimizer.step(closure)
        ends.append(weights(net))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


LINE_SEARCHES = {
    "GradDrop": ("strong_wolfe", mtopt.GradDrop, 1),
    "behind a weighting": ("strong_wolfe", lambda: [mtopt.RLW(), mtopt.MGDA()], 1),
    "a weighting": ("strong_wolfe", mtopt.UncertaintyWeighting, 0),
    "the plain sum": ("strong_wolfe", lambda: [], 0),
    "no line search": (None, mtopt.GradDrop, 0),
}


@pytest.mark.parametrize("case", LINE_SEARCHES)
def test_a_line_search_is_told_once_where_no_loss_has_the_gradient(case):
    line_search, transforms, times = LINE_SEARCHES[case]
    net, batches, _, _ = make("SGD")
    inner = torch.optim.LBFGS(net.parameters(), max_iter=3, line_search_fn=line_search)
    optimizer = MultiLossOptimizer(inner, transforms())

    def closure():
        optimizer.zero_grad()
        return net(batches[0])

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        optimizer.step(closure)
        optimizer.step(closure)
    assert len(told) == times
    assert all("Take line_search_fn=None, or weight the losses instead" in str(word.message) for word in told)


@pytest.mark.parametrize("keyword", [True, False])
def test_a_closure_may_do_its_own_backward(keyword):
    net, batches, _, optimizer = make("SGD")

    def closure():
        optimizer.zero_grad()
        losses = net(batches[0])
        optimizer.backward(losses)
        return sum(losses)

    returned = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert returned.ndim == 0


@pytest.mark.parametrize("kind", ["list", "dict", "tensor"])
def test_a_closure_may_return_losses_to_any_optimizer(kind):
    net, batches, _, optimizer = make("Adam")

    def closure():
        optimizer.zero_grad()
        a, b = net(batches[0])
        return {"list": [a, b, None], "dict": {"a": a, "b": b}, "tensor": torch.stack([a, b])}[kind]

    expected = sum(net(batches[0])).item()
    assert optimizer.step(closure).item() == pytest.approx(expected)


def test_losses_for_lbfgs_need_a_closure():
    net, batches, _, optimizer = make("LBFGS")
    with pytest.raises(TypeError, match="Give a closure"):
        optimizer.step(net(batches[0]))
    assert all(p.grad is None for p in net.parameters())


def test_losses_and_a_closure_do_not_go_together():
    net, batches, _, optimizer = make("SGD")
    with pytest.raises(ValueError, match="both given"):
        optimizer.step(net(batches[0]), closure=lambda: None)
    with pytest.raises(ValueError, match="Give one of them"):
        optimizer.step(lambda: None, closure=lambda: None)


# -- forms of losses --


@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_list_dict_and_stacked_tensor_are_the_same_losses(at):
    results = []
    for form in (list, lambda losses: dict(zip("ab", losses, strict=True)), torch.stack, tuple):
        net, batches, _, optimizer = make("SGD", at=at)
        optimizer.step(form(net(batches[0])))
        results.append(weights(net))
    for other in results[1:]:
        assert_same(other, results[0])


def test_an_absent_loss_is_no_row():
    net, batches, _, optimizer = make("SGD")
    a, b = net(batches[0])
    optimizer.step({"a": a, "no": None, "b": b})
    plain, batches, _, other = make("SGD")
    other.step(plain(batches[0]))
    assert_same(weights(net), weights(plain))
    optimizer.step([None, net(batches[1])[1]])  # one loss alone: its plain gradient


def test_leaks_go_by_name_whoever_is_absent():
    net, batches, _, optimizer = make("SGD", GradDrop(leak={"a": 1.0, "b": 1.0}))
    a, b = net(batches[0])
    optimizer.backward({"none": None, "b": b, "a": a})
    other, batches, _, _ = make("SGD")
    sum(other(batches[0])).backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_one_element_tensors_are_scalars():
    net, batches, _, optimizer = make("SGD", [])
    a, b = net(batches[0])
    optimizer.step([a.reshape(1), b.reshape(1, 1)])
    other, batches, _, plain = make("SGD", [])
    plain.step(other(batches[0]))
    assert_same(weights(net), weights(other))


# -- schedulers, scalers, averages, compile --

SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=3),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR's own, up to torch 2.9
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_stay_linked_also_after_a_load(name):
    rates = []
    for wrap in (False, True):
        net, batches, inner, optimizer = make("SGD, momentum")
        target = optimizer if wrap else inner
        scheduler = SCHEDULERS[name](target)
        seen = []
        for i, batch in enumerate(batches):
            target.zero_grad()
            if wrap:
                target.step(net(batch))
            else:
                sum(net(batch)).backward()
                target.step()
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            seen.append(inner.param_groups[0]["lr"])
            if i == 2:
                target.load_state_dict(copy.deepcopy(target.state_dict()))
        rates.append(seen)
    assert rates[0] == rates[1]
    assert len(set(rates[1])) > 1


def test_pickle_after_a_scheduler_patched_step():
    net, batches, _, optimizer = make("SGD")
    lr_scheduler.StepLR(optimizer, 1)
    train(net, batches[:1], optimizer)
    other_net, other = pickle.loads(pickle.dumps((net, optimizer)))
    train(other_net, batches[1:], other)


@pytest.mark.parametrize("at", ["activations", "parameters"])
@pytest.mark.parametrize("variant", ["Adam", "Adam, fused", "SGD, momentum"])
def test_a_grad_scaler_changes_nothing_but_the_scale(at, variant):
    runs = []
    for enabled in (False, True):
        net, batches, _, optimizer = make(variant, at=at)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        for batch in batches[:3]:
            optimizer.zero_grad()
            optimizer.backward(scaler.scale(net(batch)))
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        runs.append(weights(net))
    for ours, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_an_overflow_in_one_loss_skips_the_step(at):
    net, batches, _, optimizer = make("Adam", at=at)
    before = weights(net)
    scaler = torch.amp.GradScaler("cpu")
    a, b = net(batches[0])
    optimizer.backward(scaler.scale([a * torch.inf, b]))
    scaler.step(optimizer)
    scaler.update()
    assert_same(weights(net), before)
    assert scaler.get_scale() < 2.0**16


def test_distributed_checkpoints_hold_what_torch_keeps():
    """`torch.distributed.checkpoint` steps the optimizer with no gradients, and keeps state and groups."""
    net, batches, _, optimizer = make("AdamW")
    train(net, batches[:2], optimizer)
    saved = round_trip(get_optimizer_state_dict(net, optimizer))
    states = round_trip([transform.state_dict() for transform in optimizer.transforms])
    fresh_net, _, _, fresh = make("AdamW", GradDrop(seed=9))
    fresh_net.load_state_dict(net.state_dict())
    set_optimizer_state_dict(fresh_net, fresh, saved)
    for transform, state in zip(fresh.transforms, states, strict=True):
        transform.load_state_dict(state)
    train(net, batches[2:], optimizer)
    train(fresh_net, batches[2:], fresh)
    assert_same(weights(fresh_net), weights(net))


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own doings
def test_a_compiled_step_is_the_step():
    results = []
    for compiled in (False, True):
        net, batches, _, optimizer = make("AdamW")
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for batch in batches[:3]:
            optimizer.zero_grad()
            optimizer.backward(net(batch))
            step()
        results.append(weights(net))
    torch.compiler.reset()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_averaged_models_work():
    net, batches, _, optimizer = make("SGD")
    average = swa_utils.AveragedModel(net)
    for batch in batches:
        optimizer.zero_grad()
        optimizer.step(net(batch))
        average.update_parameters(net)
    assert average.n_averaged == len(batches)


def test_accumulation_adds_micro_batches():
    net, batches, _, optimizer = make("SGD", [])
    for batch in batches:
        optimizer.backward([loss / len(batches) for loss in net(batch)])
    accumulated = [p.grad.clone() for p in net.parameters()]
    optimizer.zero_grad()
    sum(sum(net(batch)) / len(batches) for batch in batches).backward()
    for p, q in zip(net.parameters(), accumulated, strict=True):
        torch.testing.assert_close(p.grad, q)


def test_post_accumulate_hooks_fire_once_with_the_combined_gradient():
    net, batches, _, optimizer = make("SGD", at="parameters")
    seen = []
    net.trunk.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    optimizer.backward(net(batches[0]))
    assert len(seen) == 1
    assert torch.equal(seen[0], net.trunk.weight.grad)


def test_gradients_have_the_parameters_layout():
    weight = nn.Parameter(torch.randn(4, 3).t())
    optimizer = MultiLossOptimizer(torch.optim.SGD([weight], lr=0.1), at="parameters")
    optimizer.backward([(torch.randn(5, 3) @ weight).sum(), (torch.randn(5, 3) @ weight).square().mean()])
    assert weight.grad.stride() == weight.stride()


def test_hooks_of_activations_see_the_combined_gradient():
    net, batches, _, optimizer = make("SGD", GradDrop(keep=torch.ones_like))
    features = net.trunk(batches[0])
    losses = [net.a(features).square().mean(), (net.b(features) - 1).square().mean()]
    rows = torch.stack([torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in losses])
    features.retain_grad()
    features.register_hook(lambda gradient: gradient * 0.5)
    optimizer.backward(losses)
    torch.testing.assert_close(features.grad, rows.clamp_min(0).sum(0) * 0.5)


def test_repr_and_explain_say_what_happens():
    net, batches, _, optimizer = make("AdamW", GradDrop(leak=0.5))
    assert repr(optimizer) == 'MultiLossOptimizer(AdamW, GradDrop(leak=0.5), at="activations")'
    assert "no losses yet" in optimizer.explain()
    optimizer.step(dict(zip(["seg", "depth"], net(batches[0]), strict=True)))
    told = optimizer.explain()
    for part in ("one ordinary backward pass", "1 shared by several losses", "(6, 4): losses seg, depth"):
        assert part in told
    net, batches, _, at_parameters = make("AdamW", at="parameters")
    at_parameters.backward(net(batches[0]))
    assert "vmap of 8" in at_parameters.explain()


def test_a_stand_in_that_shares_the_attributes_works():
    """Lightning copies `__dict__` to an object of a mixed class and runs the methods there."""
    net, batches, _, optimizer = make("SGD")
    stand_in = type("StandIn", (MultiLossOptimizer,), {"__init__": lambda self: None})()
    stand_in.__dict__ = dict(optimizer.__dict__)
    stand_in.step(net(batches[0]))
    assert "one ordinary backward pass" in optimizer.explain()


def test_importing_mtopt_imports_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules); import mtopt;"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() in ("['mtopt']", "['mtopt', 'torch']")


@pytest.mark.parametrize(
    ("at", "transforms", "reason", "slow"),
    [
        ("activations", None, "where all losses have met", "one backward pass, as for the plain sum"),
        ("parameters", None, "a backward pass of the shared part per loss", 'at="activations" takes one backward pass'),
        ("module", None, "each loss has a part of its own", "one backward pass, as for the plain sum"),
        ("activations", [], "no transform asks for single gradients", "one backward pass, as for the plain sum"),
    ],
)
def test_explain_says_why_and_what_to_do_if_it_is_slow(at, transforms, reason, slow):
    trunk, heads = nn.Linear(4, 3), [nn.Linear(3, 1), nn.Linear(3, 1)]
    inner = torch.optim.SGD([*trunk.parameters(), *heads[0].parameters(), *heads[1].parameters()])
    optimizer = MultiLossOptimizer(inner, transforms, at=trunk if at == "module" else at)
    z = trunk(torch.ones(2, 4))
    optimizer.step([head(z).square().mean() for head in heads])
    lines = re.sub(r"\n {6,}", " ", optimizer.explain()).splitlines()  # wrapped lines in one
    told = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
    assert reason in told["why"]
    assert slow in told["if it is slow"]


def test_explain_says_of_each_transform_what_it_is_and_fits_on_a_screen():
    class Halved(mtopt.RowTransform):
        def transform(self, rows, site):
            return rows / 2

    net, batches, _, optimizer = make("AdamW", [mtopt.DWA(), GradDrop(), Halved()])
    optimizer.step(net(batches[0]))
    lines = optimizer.explain().splitlines()
    first = lines.index("transforms, in this order:")
    assert lines[first + 1].startswith("  DWA: Dynamic Weight Average")
    assert any(line.startswith("  GradDrop: Gradient Sign Dropout") for line in lines)
    assert any(line.startswith("  Halved") for line in lines)
    assert lines[-1] == "inner optimizer: AdamW, which takes the step"
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 100
    plain = make("AdamW", [])[3]
    assert "transforms: none, which is the plain sum of the losses" in plain.explain()
