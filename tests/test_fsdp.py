"""Parameters split over the ranks by FSDP2: what N ranks give is what one process gives on all their batches."""

from __future__ import annotations

import gc
from functools import partial
from itertools import accumulate

import pytest
import torch
from ranks import run_ranks
from test_ranks import METHODS, N_LOSSES, N_STEPS, OF_PAPERS, Net, assert_equal, attempt, batch, losses_of
from test_ranks import train as train_alone
from torch import nn
from torch.autograd.profiler import profile
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard

from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer

pytestmark = pytest.mark.timeout(240)

CASES = {
    "resharded": {"reshard_after_forward": True},
    "kept whole": {"reshard_after_forward": False},
    "one group": {"groups": False},
}


def train(
    method, size, rank, *, groups=True, n_steps=N_STEPS, dtype=torch.float64, mesh=None, device="cpu", **settings
):
    at, transforms, kind = {**METHODS, **OF_PAPERS}[method]
    torch.manual_seed(0)
    net = Net(MultiLossLayer(N_LOSSES, transforms()) if at == "layer" else None).to(device, dtype)
    mesh = init_device_mesh(device, (size,)) if mesh is None else mesh
    if groups:
        for module in (net.trunk[0], net.trunk[2], *net.heads):
            fully_shard(module, mesh=mesh, **settings)
    fully_shard(net, mesh=mesh, **settings)
    momentum = 0.0 if "momentum" in method else 0.9
    inner = torch.optim.SGD(net.parameters(), lr=0.05, momentum=momentum)
    place = {"module": net.trunk, "layer": "activations"}.get(at, at)
    optimizer = MultiLossOptimizer(inner, [] if at == "layer" else transforms(), at=place)
    for step in range(n_steps):
        optimizer.zero_grad()
        x, y = (t.to(device, dtype) for t in batch(step, rank, size))
        optimizer.step(losses_of(net(x, y, kind), y))
    return [p.full_tensor().tolist() for p in net.parameters()]


def train_all(rank, size, cases):
    return {(name, case): attempt(train, name, size, rank, **CASES[case]) for name in METHODS for case in cases}


@pytest.fixture(scope="module", params=["2 ranks", "4 ranks", pytest.param("4 ranks, all", marks=pytest.mark.long)])
def trained(request):
    size = int(request.param[0])
    return run_ranks(train_all, size, size, ["resharded"] if request.param == "4 ranks" else list(CASES), timeout=400)


@pytest.mark.parametrize("name", METHODS)
def test_n_ranks_are_one_process_on_all_batches(trained, name):
    for case in {case for _, case in trained[0]}:
        assert_equal([result[name, case] for result in trained], train_alone(name))


def train_of_papers(rank):
    told = ("DWA", "FAMO", "STCH")  # these want to be told of the end of a step or an epoch
    return {name: attempt(train, name, 2, rank, n_steps=5) for name in OF_PAPERS if not name.startswith(told)}


def test_every_method_gives_on_two_ranks_what_it_gives_in_one_process():
    for name in (results := run_ranks(train_of_papers, 2))[0]:
        assert_equal([result[name] for result in results], train_alone(name, n_steps=5))


def train_on_a_grid(rank):
    """Two replicas, each split in two (HSDP)."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    results = {}
    for name in ("parameters", "parameters, all kinds", "layer, marginalized", "activations, weights of the Gramian"):
        results[name] = attempt(train, name, 4, rank, mesh=mesh)
    return results


def test_replicas_of_shards_are_one_process_too():
    for name in (results := run_ranks(train_on_a_grid, 4))[0]:
        assert_equal([result[name] for result in results], train_alone(name))


def train_mixed(rank):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    settings = {"dtype": torch.float32, "n_steps": 3, "mp_policy": policy}
    return {name: attempt(train, name, 2, rank, **settings) for name in METHODS}


def test_mixed_precision_stays_near_and_the_ranks_together():
    """The signs of bfloat16 gradients are drawn on other numbers, so only methods without a draw stay near."""
    for name in (results := run_ranks(train_mixed, 2))[0]:
        assert results[0][name] == results[1][name]
        assert isinstance(results[0][name], list), results[0][name]
        if "Gramian" in name or "plain" in name:
            for together, parameter in zip(results[0][name], train_alone(name, n_steps=3), strict=True):
                torch.testing.assert_close(torch.tensor(together), torch.tensor(parameter), rtol=0.05, atol=0.05)


def peaks(rank, size, n_layers=32, width=128):
    """Peak memory of a step, as multiples of the parameters' whole size; the least of three steps."""
    mesh = init_device_mesh("cpu", (size,))
    found = {}
    for site in ("plain", "activations", "layer", "loss by loss", "parameters"):
        trunk = nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(n_layers)])
        heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(4))
        for module in (*trunk, *heads):
            fully_shard(module, mesh=mesh)
        inner = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
        transforms = GradDrop() if site in ("activations", "parameters") else []
        optimizer = MultiLossOptimizer(inner, transforms, at="parameters" if site == "parameters" else "activations")
        backward = loss_by_loss if site == "loss by loss" else optimizer.backward
        step = partial(one_step, trunk, heads, MultiLossLayer(4) if site == "layer" else None, inner, backward)
        step()
        found[site] = min(peak_of(step) for _ in range(3)) / (n_layers * (width * width + width) * 4)
    return found


def one_step(trunk, heads, share, optimizer, backward):
    optimizer.zero_grad()
    z = trunk(torch.ones(8, trunk[0][0].in_features))
    aliases = share(z) if share else [z] * len(heads)
    backward([head(alias).square().mean() for head, alias in zip(heads, aliases, strict=True)])


def loss_by_loss(losses):
    """What rows at parameters ask of FSDP2 itself."""
    for loss in losses:
        loss.backward(retain_graph=loss is not losses[-1])


def peak_of(run):
    gc.collect()
    with profile(profile_memory=True) as profiler:
        run()
    memory = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns())))


def test_no_rank_holds_a_whole_copy_because_of_us():
    """At parameters: two running sums and one row, each a quarter; elsewhere nothing of the parameters' size."""
    of_all = run_ranks(peaks, 4, 4)
    found = {site: sum(of_rank[site] for of_rank in of_all) / len(of_all) for site in of_all[0]}
    assert found["activations"] - found["plain"] < 0.4
    assert found["layer"] - found["plain"] < 0.4
    assert found["parameters"] - found["loss by loss"] < 0.9


def refusals(rank):
    mesh, (x, y) = init_device_mesh("cpu", (2,)), batch(0, rank, 2)

    def backward(net, *others):
        inner = torch.optim.SGD([*net.parameters(), *others], lr=0.1)
        MultiLossOptimizer(inner, at="parameters").backward(losses_of(net(x, y), y))

    split, unsynchronized = fully_shard(Net(), mesh=mesh), fully_shard(Net(), mesh=mesh)
    unsynchronized.set_requires_gradient_sync(False)
    flat = FullyShardedDataParallel(Net(), use_orig_params=True, device_id=torch.device("cpu"))
    plain = nn.Parameter(torch.ones(2, dtype=torch.float64))
    return [attempt(backward, split, plain), attempt(backward, unsynchronized), attempt(backward, flat)]


def test_what_cannot_be_combined_shard_by_shard_is_refused_on_every_rank():
    for mixed, unsynchronized, flattened in run_ranks(refusals, 2):
        assert mixed.startswith("RuntimeError: Some of the optimizer's parameters are sharded and some are not")
        assert unsynchronized.startswith("RuntimeError: No parameter got a gradient")
        assert flattened.startswith("RuntimeError: The parameters are flattened by FullyShardedDataParallel (FSDP1)")
