"""Activation checkpointing: the same gradients bit for bit, wherever the regions lie, or a clear error."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from mtopt import GradDrop, GramianTransform, MultiLossLayer, MultiLossOptimizer

selective = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default, torch.ops.aten.tanh.default])
KINDS = {
    "reentrant": partial(checkpoint, use_reentrant=True),
    "not reentrant": partial(checkpoint, use_reentrant=False),
    "selective": partial(checkpoint, use_reentrant=False, context_fn=selective),
}
WITH_TRUNK = ["trunk", "trunk and heads", "whole"]
REGIONS = [*WITH_TRUNK, "heads", "layer"]
SITES = ["layer", "marginalized layer", "activations", "parameters", "stem", "trunk", "inside", "marginalized inside"]


def once(function, *args):
    """No checkpoint."""
    return function(*args)


class Net(nn.Module):
    """With dropout in the trunk and in the heads, some of which may be checkpointed."""

    def __init__(self, transforms=None, dropout=0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.region, self.kind = "", once
        drop = nn.Dropout(dropout)
        self.stem = nn.Linear(4, 5)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), drop, nn.Linear(6, 5), nn.Tanh())
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(5, 4), drop, nn.Linear(4, 1)) for _ in range(3))
        self.share = None if transforms is None else MultiLossLayer(3, transforms)
        self.x = torch.randn(6, 4).requires_grad_()  # a reentrant checkpoint asks for it

    def run(self, name, function, *args):
        """Checkpointed, if the region has this part."""
        return self.kind(function, *args) if name in self.region.split(" and ") else function(*args)

    def aliases(self, features):
        return (features,) * 3 if self.share is None else self.share(features)

    def outputs(self, x):
        features = self.run("trunk", self.trunk, self.stem(x))
        aliases = self.run("layer", self.aliases, features)
        return tuple(self.run("heads", head, alias) for head, alias in zip(self.heads, aliases, strict=True))

    def losses(self):
        return [(output - i).square().mean() for i, output in enumerate(self.run("whole", self.outputs, self.x))]

    def gradients(self):
        return [p.grad for p in self.parameters()]


def build(site, dropout=0.3, chunk_size=1):
    """A net, its GradDrop, and the backward of a list of losses."""
    rule = GradDrop(seed=3, marginalize=0 if "marginalized" in site else None)
    net = Net(rule if "layer" in site else None, dropout)
    if net.share is not None:
        return net, rule, lambda losses: sum(losses).backward()
    at = {"stem": net.stem, "trunk": net.trunk}.get(site, net.trunk[1] if "inside" in site else site)
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters()), rule, at=at, chunk_size=chunk_size)
    return net, rule, optimizer.backward


def assert_same(ours, theirs):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def unchecked():
    """For each site the gradients without checkpoints, and the global generator's state then."""
    results = {}
    for site in SITES:
        net, _, backward = build(site)
        backward(net.losses())
        results[site] = net.gradients(), torch.get_rng_state()
    return results


HIDDEN = (
    r"incompatible with \.grad|never meet at one tensor"
    r"|The module named by `at` made nothing that the `losses` depend on"
)
TWICE = (  # in the words of torch since 2.9, and before
    r"use_reentrant=True.*incompatible with \.grad|only allowed to backward once on any region computed under sele"
    r"|Recomputed values for the following tensors have different metadata"
)


def refusal(site, region, kind):
    """What cannot be seen from outside, or must not be gone through twice."""
    hidden = [("activations", "whole"), ("stem", "whole"), *product(SITES[5:], WITH_TRUNK)]
    if kind == "reentrant" and (site, region) in hidden:
        return HIDDEN
    ahead = ["stem", "inside", "marginalized inside"]  # the losses share nodes above these sites
    if (kind != "not reentrant" and site in ahead) or (
        kind == "selective" and site == "parameters" and region in WITH_TRUNK
    ):
        return TWICE
    return None


CASES = [case for case in product(SITES, REGIONS, KINDS) if "layer" in case[0] or case[1] != "layer"]


@pytest.mark.parametrize(("site", "region", "kind"), [case for case in CASES if refusal(*case) is None])
def test_a_checkpointed_run_is_the_plain_run_bit_for_bit(unchecked, site, region, kind):
    net, _, backward = build(site)
    net.region, net.kind = region, KINDS[kind]
    backward(net.losses())
    gradients, state = unchecked[site]
    assert_same(net.gradients(), gradients)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("site", "region", "kind"), [case for case in CASES if refusal(*case) is not None])
def test_what_cannot_be_seen_or_taken_twice_is_refused(site, region, kind):
    net, _, backward = build(site)
    net.region, net.kind = region, KINDS[kind]
    losses = net.losses()
    with pytest.raises(RuntimeError, match=refusal(site, region, kind)):
        backward(losses)
    assert all(gradient is None for gradient in net.gradients())


@pytest.mark.parametrize("site", SITES)
def test_none_of_these_runs_is_the_plain_sum(unchecked, site):
    net = Net()
    sum(net.losses()).backward()
    assert not any(torch.allclose(a, b) for a, b in zip(net.gradients()[:2], unchecked[site][0], strict=False))
    assert_same(net.gradients()[-2:], unchecked[site][0][-2:])  # a head's own parameters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("site", SITES[:2])
def test_a_layer_draws_once_however_often_it_is_recomputed(site, region, kind):
    net, rule, backward = build(site)
    net.region, net.kind = region, KINDS[kind]
    losses = net.losses()
    assert rule.draws.count == 0
    backward(losses)
    assert rule.draws.count == 1


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("site", ["layer", "marginalized layer", "activations", "parameters"])
def test_a_trunk_checkpointed_in_segments_is_the_plain_one(unchecked, site, reentrant):
    net, _, backward = build(site)
    trunk, net.region = net.trunk, "trunk"
    net.kind = lambda _, x: checkpoint_sequential(trunk, 3, x, use_reentrant=reentrant)
    backward(net.losses())
    assert_same(net.gradients(), unchecked[site][0])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch runs the inner region without
@pytest.mark.parametrize("outer", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("inner", ["reentrant", "not reentrant"])
def test_regions_within_regions_are_fine_for_a_layer(unchecked, outer, inner):
    net, rule, backward = build("layer")
    net.region, net.kind = "trunk and layer and heads", KINDS[inner]
    outputs = net.outputs
    net.outputs = lambda x: KINDS[outer](outputs, x)
    backward(net.losses())
    assert_same(net.gradients(), unchecked["layer"][0])
    assert rule.draws.count == 1


@pytest.mark.parametrize("site", SITES)
def test_a_region_may_be_recomputed_to_its_end(unchecked, site):
    net, _, backward = build(site)
    net.region, net.kind = "whole", KINDS["not reentrant"]
    with set_checkpoint_early_stop(False):
        backward(net.losses())
    assert_same(net.gradients(), unchecked[site][0])


@pytest.mark.parametrize("region", [*WITH_TRUNK, "heads"])
@pytest.mark.parametrize("site", ["parameters", "inside"])
def test_vmap_goes_through_a_region(site, region):
    results = []
    for chunk_size in (1, 3):
        net, _, backward = build(site, dropout=0.0, chunk_size=chunk_size)
        net.region, net.kind = region, KINDS["not reentrant"]
        backward(net.losses())
        results.append(net.gradients())
    assert "vmap of 3" in backward.__self__.explain()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("site", ["parameters", "inside"])
def test_vmap_leaves_a_region_with_dropout_to_the_loop(unchecked, site):
    net, _, backward = build(site, chunk_size=3)
    net.region, net.kind = "whole", KINDS["not reentrant"]
    with pytest.warns(RuntimeWarning, match=r"one by one, since vmap could not work .* random operation"):
        backward(net.losses())
    assert_same(net.gradients(), unchecked[site][0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", ["layer", "marginalized layer", "activations", "trunk"])
def test_a_region_below_an_autocast_is_the_plain_run(site, kind):
    results = []
    for region in ("", "trunk and heads" if "layer" in site else "heads"):
        net, _, backward = build(site)
        net.region, net.kind = region, KINDS[kind]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = net.losses()
        backward(losses)
        results.append(net.gradients())
    assert_same(*results)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("site", SITES[:4])
def test_on_cuda_a_checkpointed_run_is_the_plain_run(site, kind):
    results = []
    for region in ("", "trunk and heads"):
        net, _, backward = build(site)
        net.cuda().x = net.x.detach().cuda().requires_grad_()
        net.region, net.kind = region, KINDS[kind]
        torch.cuda.manual_seed(0)
        backward(net.losses())
        results.append(net.gradients())
    torch.testing.assert_close(*results)


# -- rows at parameters that the graph does not show -------------------------------------------------------------------


class UnitRows(GramianTransform):
    def weights(self, gramian, losses):
        return gramian.diagonal().rsqrt()


@pytest.mark.parametrize("region", WITH_TRUNK)
def test_a_parameter_hidden_by_a_region_stays_exclusive_to_its_loss(region):
    """The whole model in one region gives zeros for the heads of other losses: those are no rows."""
    results = []
    for kind in (once, KINDS["reentrant"]):
        net = Net(dropout=0.0)
        net.region, net.kind = region, kind
        optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters()), UnitRows(), at="parameters", chunk_size=1)
        optimizer.backward(net.losses())
        results.append(net.gradients())
    torch.testing.assert_close(*results)


def test_a_layer_hidden_by_a_region_is_found_by_an_optimizer_that_combines_again():
    net = Net(GradDrop(seed=3))
    net.region, net.kind = "whole", KINDS["reentrant"]
    optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters()), GradDrop(seed=3), at="parameters")
    with pytest.raises(RuntimeError, match="MultiLossLayer, which combines the gradients itself"):
        optimizer.backward(net.losses())
    assert all(gradient is None for gradient in net.gradients())
