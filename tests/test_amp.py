"""Mixed precision: half rows are decided in float32, and a GradScaler changes nothing but the scale."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from mtopt import (
    GradDrop,
    GramianTransform,
    LossWeighting,
    MultiLossLayer,
    MultiLossOptimizer,
    RowTransform,
    sign_dropout,
)
from mtopt._draws import Draws

SITES = ["layer", "activations", "module", "parameters"]
CPU = torch.device("cpu")


class Clamp(RowTransform):
    """Depends on the scale of the rows."""

    def transform(self, rows, site):
        return rows.clamp(-0.3, 0.3)


class UnitRows(GramianTransform):
    """Does not depend on it at all, so that it is not equivariant either."""

    def weights(self, gramian, losses):
        return gramian.diagonal().rsqrt()


class Mix(GramianTransform):
    """A mixing matrix, of the Gramian and of the values."""

    def weights(self, gramian, losses):
        return torch.eye(len(gramian)) + 1 / (1 + gramian.abs()) + losses.values[:, None]


class Inverse(LossWeighting):
    def weights(self, losses):
        return 1 / losses.values


class Same(RowTransform):
    """Makes the transforms before it keep their rows."""

    scale_equivariant = True

    def transform(self, rows, site):
        return rows


METHODS = {
    "streamed": lambda: GradDrop(seed=1),
    "leak": lambda: GradDrop(seed=1, leak=0.3),
    "renormalized": lambda: GradDrop(seed=1, renormalize=True),
    "held": lambda: [GradDrop(seed=1), Same()],
    "marginalized": lambda: GradDrop(seed=1, marginalize=0),
    "clamp": lambda: [Clamp(), GradDrop(seed=1)],
    "unit": lambda: UnitRows(),
    "mix": lambda: [Mix(), Clamp()],
    "weighting": lambda: [Inverse(), GradDrop(seed=1)],
    "all kinds": lambda: [Inverse(), Mix(), Clamp(), GradDrop(seed=1)],
}
EQUIVARIANT = ["streamed", "leak", "renormalized", "held", "marginalized"]
CASES = [
    (site, method)
    for site in SITES
    for method in METHODS
    if not (method == "marginalized" and site in ("activations", "parameters"))
    and not (method not in EQUIVARIANT and site == "layer")
]


class Net(nn.Module):
    """A trunk and three heads, with a layer between them or without."""

    def __init__(self, transforms=None, trunk=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = trunk or nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 6))
        self.share = None if transforms is None else MultiLossLayer(3, transforms)
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))
        self.x = torch.randn(5, 4)

    def aliases(self, features):
        return [features] * 3 if self.share is None else self.share(features)

    def above(self, features):
        pairs = enumerate(zip(self.heads, self.aliases(features), strict=True))
        return [(head(alias) - i).float().square().sum() for i, (head, alias) in pairs]

    def losses(self, dtype=torch.float32):
        with torch.autocast(self.x.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return self.above(self.trunk(self.x.to(self.heads[0].weight.dtype)))


def build(site, transforms, trunk=None):
    """A net, its optimizer, and the backward of a list of losses."""
    net = Net(transforms if site == "layer" else None, trunk)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    if site == "layer":
        return net, inner, lambda losses: sum(losses).backward()
    at = net.trunk if site == "module" else site
    optimizer = MultiLossOptimizer(inner, transforms, at=at, chunk_size=1)
    return net, optimizer, optimizer.backward


def gradients(net):
    return [p.grad.clone() for p in net.parameters()]


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def assert_same(ours, theirs):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# -- autocast, and parameters of half precision --


def decided(rows, draws, activation=None):
    """The rows, combined by the plain function in float32."""
    rows = torch.stack(rows)
    shape = rows.shape[1:] if activation is None else (1, *rows.shape[2:])
    uniform = torch.rand(shape, generator=draws.next(CPU))
    settings = {} if activation is None else {"activation": activation.detach().float(), "marginalize": 0}
    return sign_dropout(rows.float(), uniform=uniform, **settings).to(rows.dtype)


def rows_of(losses, tensor):
    return [torch.autograd.grad(loss, tensor, retain_graph=True)[0] for loss in losses]


def expected(site, marginalized, autocast, parameters):
    """The trunk's gradients by `sign_dropout`, from one plain `autograd.grad` per loss."""
    net, draws = Net().to(parameters), Draws(1)
    trunk = list(net.trunk.parameters())
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        features = net.trunk(net.x.to(parameters))
        losses = net.above(features)
    if site == "parameters":
        return [decided(rows_of(losses, p), draws) for p in trunk]
    combined = decided(rows_of(losses, features), draws, features if marginalized else None)
    return torch.autograd.grad(features, trunk, combined)


PRECISIONS = [
    pytest.param(torch.bfloat16, torch.float32, id="autocast bf16"),
    pytest.param(torch.float16, torch.float32, id="autocast fp16"),
    pytest.param(None, torch.bfloat16, id="parameters bf16"),
    pytest.param(None, torch.float16, id="parameters fp16"),
]


@pytest.mark.parametrize(("autocast", "parameters"), PRECISIONS)
@pytest.mark.parametrize(("site", "method"), [case for case in CASES if case[1] in ("streamed", "marginalized")])
def test_half_rows_are_decided_as_float32_ones(site, method, autocast, parameters):
    net, _, backward = build(site, METHODS[method]())
    net.to(parameters)
    backward(net.losses(autocast or torch.float32))
    ours = [p.grad for p in net.trunk.parameters()]
    assert_same(ours, expected(site, method == "marginalized", autocast, parameters))
    plain = Net().to(parameters)
    sum(plain.losses(autocast or torch.float32)).backward()
    assert not torch.allclose(ours[0], plain.trunk[0].weight.grad)


@pytest.mark.parametrize("method", ["streamed", "unit", "mix", "clamp"])
@pytest.mark.parametrize("site", SITES[1:])
def test_a_backward_inside_the_autocast_is_the_one_outside(site, method):
    results = []
    for inside in (True, False):
        net, _, backward = build(site, METHODS[method]())
        losses = net.losses(torch.float16)
        with torch.autocast("cpu", dtype=torch.float16, enabled=inside):
            backward(losses)
        results.append(gradients(net))
    assert_same(*results)


def test_vmap_below_an_autocast_is_the_loop():
    results = []
    for chunk_size in (1, 3):
        torch.manual_seed(0)
        net, optimizer, backward = build("parameters", GradDrop(seed=1), nn.Sequential(nn.Linear(4, 6), nn.Tanh()))
        optimizer.batching.chunk_size = chunk_size
        backward(net.losses(torch.bfloat16))
        results.append(gradients(net))
    assert "vmap of 3" in optimizer.explain()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_weights_beyond_half_precision_do_not_overflow(size):
    net, _, backward = build("activations", UnitRows())
    features = net.trunk(net.x).half()
    losses = [(features * size).sum(), (features.float().square() * size).sum()]
    rows = torch.stack(rows_of(losses, features)).float()
    features.retain_grad()
    backward(losses)
    unit = rows / rows.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(features.grad, unit.sum(0).half(), rtol=2e-3, atol=2e-4)


# -- a GradScaler --


def scaled_run(site, method, scale, dtype, losses_of=lambda scale, losses: scale(losses)):
    """The gradients after `unscale_`; without a GradScaler if the scale is None."""
    net, optimizer, backward = build(site, METHODS[method]())
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    backward(losses_of(scaler.scale, net.losses(dtype)))
    scaler.unscale_(optimizer)
    return gradients(net)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("site", "method"), CASES)
def test_a_scale_that_is_a_power_of_two_changes_no_bit(site, method, dtype):
    assert_same(scaled_run(site, method, 2.0**8, dtype), scaled_run(site, method, None, dtype))


HALF = torch.tensor(0.5)

# How a user may write it: given what scales (or does not), and the losses.
FORMS = {
    "each": lambda scale, losses: [scale(loss) for loss in losses],
    "dict": lambda scale, losses: {name: scale(loss) for name, loss in zip("abc", losses, strict=True)},
    "divided, then scaled": lambda scale, losses: scale([loss / 4 for loss in losses]),
    "scaled, then divided": lambda scale, losses: [loss / 4 for loss in scale(losses)],
    "scaled, then multiplied": lambda scale, losses: [0.25 * scale(loss) for loss in losses],
    "scaled, then divided by a tensor": lambda scale, losses: [scale(loss) / HALF for loss in losses],
    "scaled, then in front of a tensor": lambda scale, losses: [HALF * scale(loss) for loss in losses],
    "wider after": lambda scale, losses: [scale(loss).double() for loss in losses],
    "one entry": lambda scale, losses: [scale(loss.reshape(1)) for loss in losses],
    "reshaped after": lambda scale, losses: [scale(loss).reshape(1, 1) for loss in losses],
    "stacked": lambda scale, losses: torch.stack(scale(losses)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("site", ["activations", "parameters"])
def test_transforms_are_handed_what_they_were_without_a_scaler(site, form):
    ours, plain = (scaled_run(site, "all kinds", scale, torch.float32, FORMS[form]) for scale in (2.0**8, None))
    assert_same(ours, plain)


@pytest.mark.parametrize("site", ["module", "parameters"])
def test_losses_scaled_as_one_tensor_are_fine_for_graddrop_below(site):
    ours = scaled_run(site, "streamed", 2.0**8, torch.float32, lambda scale, losses: scale(torch.stack(losses)))
    plain = scaled_run(site, "streamed", None, torch.float32)
    torch.testing.assert_close(ours, plain)


def test_losses_scaled_as_one_tensor_are_told_apart_at_activations():
    ours = scaled_run(
        "activations", "streamed", 2.0**8, torch.float32, lambda scale, losses: scale(torch.stack(losses))
    )
    torch.testing.assert_close(ours, scaled_run("activations", "streamed", None, torch.float32))


class Look(GramianTransform):
    """Keeps the values that it is handed."""

    def weights(self, gramian, losses):
        self.seen = losses.values.tolist()
        return torch.ones(len(losses))


def seen(losses_of):
    """The values that a transform is handed, and those of the losses as they are."""
    look = Look()
    net, _, backward = build("activations", look)
    losses = losses_of(net.losses())
    backward(losses)
    return look.seen, [loss.item() for loss in losses]


class OwnScaler(torch.amp.GradScaler):
    pass


@pytest.mark.parametrize("kind", [torch.amp.GradScaler, OwnScaler])
def test_the_scale_is_known_to_be_one_by_the_scaler(kind):
    scaler = kind("cpu", init_scale=3.0)
    values, scaled = seen(scaler.scale)
    assert values == pytest.approx([value / 3 for value in scaled])
    scaler.update(5.0)
    values, scaled = seen(scaler.scale)
    assert values == pytest.approx([value / 5 for value in scaled])


OWN_FACTORS = {
    "numbers": lambda losses: [loss * 3.0 for loss in losses],
    "a tensor for each loss": lambda losses: [loss * torch.tensor(i + 1.0) for i, loss in enumerate(losses)],
    "a tensor of another dtype": lambda losses: [loss * torch.tensor(3.0, dtype=torch.float64) for loss in losses],
    "a part of a tensor that is trained": lambda losses: [
        loss * torch.ones(1, requires_grad=True)[0] for loss in losses
    ],
}


@pytest.mark.parametrize("name", OWN_FACTORS)
def test_a_users_own_factors_are_no_scale(name):
    values, losses = seen(OWN_FACTORS[name])
    assert values == losses


def test_a_constant_tensor_that_multiplies_every_loss_is_taken_for_a_scale():
    values, losses = seen(lambda losses: [loss * torch.tensor(3.0) for loss in losses])
    assert values == pytest.approx([loss / 3 for loss in losses])


def test_a_scaler_that_is_disabled_scales_nothing():
    values, losses = seen(torch.amp.GradScaler("cpu", enabled=False).scale)
    assert values == losses


def test_a_scale_behind_saved_tensor_hooks_is_seen():
    scaler = torch.amp.GradScaler("cpu")
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        values, scaled = seen(scaler.scale)
    assert values == [value / 2**16 for value in scaled]


def test_scaled_losses_of_a_freed_graph_are_refused_as_such():
    net, _, backward = build("activations", Mix())
    losses = torch.amp.GradScaler("cpu").scale(net.losses())
    backward(losses)
    with pytest.raises(RuntimeError, match="graph that an earlier backward pass has freed"):
        backward(losses)


def test_a_scale_that_was_updated_since_is_refused():
    net, _, backward = build("activations", Mix())
    scaler = torch.amp.GradScaler("cpu")
    losses = [scaler.scale(loss) for loss in net.losses()]
    scaler.update(2.0)
    with pytest.raises(RuntimeError, match=r"`losses` cannot be differentiated: .* inplace operation"):
        backward(losses)


def test_what_a_scaler_keeps_from_underflow_is_not_lost():
    """Unscaled, these rows are far below what half precision can hold."""
    net, _, backward = build("activations", Clamp())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    features = net.trunk(net.x).half()
    features.retain_grad()
    backward(scaler.scale([(features.float() * 2.0**-27).sum(), (features.float() * 2.0**-28).sum()]))
    assert torch.equal(features.grad, torch.full_like(features, 2.0**-11 + 2.0**-12))


def test_a_layer_refuses_what_depends_on_the_scale_where_a_scaler_is_to_be_expected():
    net, _, backward = build("layer", Clamp())
    with pytest.raises(RuntimeError, match=r"Clamp depends on the scale of the losses"):
        net.losses(torch.float16)
    backward(net.losses(torch.bfloat16))


# -- overflow, clipping, growth --


@pytest.mark.parametrize("picked", [torch.ones_like, torch.zeros_like], ids=["dropped", "kept"])
@pytest.mark.parametrize(("site", "method"), [case for case in CASES if case[1] in EQUIVARIANT])
def test_an_overflow_in_one_coordinate_of_one_loss_skips_the_step(site, method, picked):
    transforms = METHODS[method]()
    (transforms[0] if method == "held" else transforms).keep = picked  # always the positive sign, or the negative one
    net, optimizer, backward = build(site, transforms, nn.Linear(4, 6))
    before = weights(net)
    scaler = torch.amp.GradScaler("cpu")
    one, two, three = net.aliases(net.trunk(net.x.abs()))
    factor = torch.ones_like(one)
    factor[2, 3] = -torch.inf
    backward(scaler.scale([(one * factor).sum(), two.sum(), three.square().sum()]))
    scaler.step(optimizer)
    scaler.update()
    assert_same(weights(net), before)
    assert scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("method", ["clamp", "unit", "mix", "weighting"])
@pytest.mark.parametrize("site", ["activations", "parameters"])
def test_an_overflow_skips_the_step_of_transforms_that_are_handed_unscaled_rows(site, method):
    net, optimizer, backward = build(site, METHODS[method]())
    before = weights(net)
    scaler = torch.amp.GradScaler("cpu")
    first, *others = net.losses()
    backward(scaler.scale([first * torch.inf, *others]))
    scaler.step(optimizer)
    scaler.update()
    assert_same(weights(net), before)
    assert scaler.get_scale() == 2.0**15


def train(net, optimizer, backward, scaler, steps, dtype=torch.float16):
    """The scale after each step."""
    scales = []
    for _ in range(steps):
        optimizer.zero_grad()
        backward([scaler.scale(loss) for loss in net.losses(dtype)])
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


@pytest.mark.parametrize(("site", "method"), [case for case in CASES if case[1] in ("streamed", "marginalized", "mix")])
def test_a_run_with_a_scaler_clips_and_steps_as_one_without(site, method):
    runs = []
    for enabled in (True, False):
        net, *others = build(site, METHODS[method]())
        train(net, *others, torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=enabled), 3)
        runs.append(weights(net))
    assert_same(*runs)


@pytest.mark.parametrize("site", SITES)
def test_the_scale_shrinks_until_half_holds_the_rows_and_grows_again(site):
    net, *others = build(site, GradDrop(seed=1))
    before = weights(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=1)
    scales = [2.0**14, *train(net, *others, scaler, 8)]
    steps = [after / before for before, after in pairwise(scales)]
    assert set(steps) == {0.5, 2.0}
    assert steps[0] == 0.5
    assert all(p.isfinite().all() for p in net.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(weights(net), before, strict=True))


@pytest.mark.parametrize("site", SITES)
def test_a_run_resumed_with_the_scalers_state_goes_on_bit_for_bit(site):
    net, optimizer, backward = build(site, rule := GradDrop(seed=1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    train(net, optimizer, backward, scaler, 3)
    resumed, other, other_backward = build(site, other_rule := GradDrop(seed=2))
    fresh = torch.amp.GradScaler("cpu", init_scale=1.0)
    for old, new in ((net, resumed), (optimizer, other), (scaler, fresh), (rule, other_rule)):
        new.load_state_dict(old.state_dict())
    scales = train(net, optimizer, backward, scaler, 3)
    assert train(resumed, other, other_backward, fresh, 3) == scales
    assert_same(weights(resumed), weights(net))


# -- on a GPU --


@pytest.mark.cuda
@pytest.mark.parametrize(("site", "method"), [case for case in CASES if case[1] in ("streamed", "all kinds")])
def test_on_cuda_a_scaler_changes_nothing_but_the_scale(site, method):
    results = []
    for enabled in (True, False):
        net, optimizer, backward = build(site, METHODS[method]())
        net.cuda().x = net.x.cuda()
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**8, enabled=enabled)
        backward(scaler.scale(net.losses(torch.float16)))
        scaler.unscale_(optimizer)
        results.append(gradients(net))
    torch.testing.assert_close(*results)


@pytest.mark.cuda
@pytest.mark.parametrize("site", SITES)
def test_on_cuda_an_overflow_in_one_loss_skips_the_step(site):
    net, optimizer, backward = build(site, GradDrop(seed=1))
    net.cuda().x = net.x.cuda()
    before = weights(net)
    scaler = torch.amp.GradScaler("cuda")
    first, *others = net.losses(torch.float16)
    backward(scaler.scale([first * torch.inf, *others]))
    scaler.step(optimizer)
    scaler.update()
    assert_same(weights(net), before)
    assert scaler.get_scale() == 2.0**15


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_scale_that_was_copied_to_another_device_is_seen():
    scaler = torch.amp.GradScaler("cuda")
    values, scaled = seen(lambda losses: scaler.scale([loss.to(f"cuda:{i % 2}") for i, loss in enumerate(losses)]))
    assert values == [value / 2**16 for value in scaled]
