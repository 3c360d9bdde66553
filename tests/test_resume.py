"""Checkpoints: a resumed run is the undisturbed one, also after a kill, on other numbers of ranks, and after Ctrl-C."""

from __future__ import annotations

import io
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import CONTEXT, run_ranks
from test_ranks import N_LOSSES, Net, attempt, batch, losses_of
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR
from torch.utils._pytree import tree_flatten_with_path

from mtopt import GradDrop, GramianTransform, LossWeighting, MultiLossLayer, MultiLossOptimizer

pytestmark = pytest.mark.timeout(240)

BEFORE, AFTER = 5, 20  # steps before the checkpoint is written, and after it
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As on the ranks: more threads would only wait for each other on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Relative(LossWeighting):
    """Each loss relative to its value in the step before."""

    def __init__(self):
        self.before = torch.ones(N_LOSSES, dtype=torch.float64)

    def weights(self, losses):
        before, self.before = self.before, losses.values
        return 1 / before

    def state_dict(self):
        return {"before": self.before}

    def load_state_dict(self, state_dict):
        self.before = state_dict["before"]


class Smooth(GramianTransform):
    """Rows of unit length in a running mean of the Gramian."""

    scale_equivariant = False

    def __init__(self):
        self.gramian = torch.eye(N_LOSSES, dtype=torch.float64)

    def weights(self, gramian, losses):
        self.gramian = self.gramian.lerp(gramian, 0.2)
        return self.gramian.diagonal().rsqrt()

    def state_dict(self):
        return {"gramian": self.gramian}

    def load_state_dict(self, state_dict):
        self.gramian = state_dict["gramian"]


INNER = {
    "AdamW": lambda parameters: AdamW(parameters, lr=0.02),
    "SGD": lambda parameters: SGD(parameters, lr=0.02, momentum=0.9),
}


@dataclass
class Run:
    """A model in training."""

    net: Net
    model: Any  # the net, or what wraps it
    optimizer: Any
    scheduler: StepLR

    @property
    def of_layer(self):
        return self.net.layer.transforms if self.net.layer else []

    @property
    def transforms(self):
        return [*self.of_layer, *getattr(self.optimizer, "transforms", [])]

    def train(self, first, n_steps, rank=0, size=1):
        for step in range(first, first + n_steps):
            x, y = batch(step, rank, size)
            losses = losses_of(self.model(x, y), y)
            self.optimizer.zero_grad()
            if isinstance(self.optimizer, MultiLossOptimizer):
                self.optimizer.step(losses)
            else:
                sum(losses).backward()
                self.optimizer.step()
            self.scheduler.step()

    def state_dict(self):
        """A MultiLossLayer leaves the model's state as it is, so the state of its transforms is saved beside it."""
        parts = {"net": self.net, "optimizer": self.optimizer, "scheduler": self.scheduler}
        state = {name: part.state_dict() for name, part in parts.items()}
        return {**state, "layer": [transform.state_dict() for transform in self.of_layer]}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for transform, own in zip(self.of_layer, state["layer"], strict=True):
            transform.load_state_dict(own)


def start(at, seed, inner="AdamW", wrap=lambda net: net, **settings):
    """A run that nothing has touched yet. `at` may also be "plain", for the optimizer without the wrapper."""
    torch.manual_seed(seed)
    joint = [Smooth(), GradDrop(marginalize=0)]
    net = Net(MultiLossLayer(N_LOSSES, joint) if at == "layer" else None)
    model = wrap(net)
    optimizer = INNER[inner](net.parameters())
    transforms = {
        "layer": [Relative()],
        "activations": [Relative(), Smooth(), GradDrop()],
        "activations without draws": [Relative(), Smooth()],
        "module": [Relative(), *joint],
        "parameters": [Relative(), Smooth(), GradDrop()],
        "plain sum": [],
    }
    if at != "plain":
        site = {"module": net.trunk, "parameters": "parameters"}.get(at, "activations")
        optimizer = MultiLossOptimizer(optimizer, transforms[at], at=site, **settings)
    return Run(net, model, optimizer, StepLR(optimizer, step_size=4, gamma=0.9))


def dumps(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def loads(data):
    return torch.load(io.BytesIO(data), weights_only=True)


def assert_equal(ours, theirs, **tolerances):
    """Nested states are equal: to the last bit, unless tolerances are given."""
    ours, theirs = (dict(tree_flatten_with_path(state)[0]) for state in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        if isinstance(value, torch.Tensor):
            exact = {"rtol": 0, "atol": 0}
            torch.testing.assert_close(value, theirs[path], **(tolerances or exact), msg=lambda m, p=path: f"{p}: {m}")
        else:
            assert value == theirs[path], path


# -- one process -------------------------------------------------------------------------------------------------------

AT = ("layer", "activations", "module", "parameters")


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("at", AT)
def test_a_resumed_run_goes_on_bit_for_bit(at, inner):
    run, fresh = start(at, 0, inner), start(at, 1, inner)
    run.train(0, BEFORE)
    fresh.load_state_dict(loads(dumps(run.state_dict())))
    for each in (run, fresh):
        each.train(BEFORE, AFTER)
    assert_equal(fresh.state_dict(), run.state_dict())


@pytest.mark.parametrize("forgotten", range(3))
@pytest.mark.parametrize("at", AT)
def test_the_state_of_each_transform_matters(at, forgotten):
    run, fresh = start(at, 0), start(at, 1)
    run.train(0, BEFORE)
    first = fresh.transforms[forgotten].state_dict()
    fresh.load_state_dict(loads(dumps(run.state_dict())))
    fresh.transforms[forgotten].load_state_dict(first)
    for each in (run, fresh):
        each.train(BEFORE, AFTER)
    with pytest.raises(AssertionError, match="not equal"):
        assert_equal(fresh.net.state_dict(), run.net.state_dict())


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("ways", [("plain", "plain sum"), ("plain sum", "plain")], ids=" to ".join)
def test_a_checkpoint_goes_on_with_and_without_the_wrapper(ways, inner):
    run, other = (start(way, seed, inner) for seed, way in enumerate(ways))
    run.train(0, BEFORE)
    other.load_state_dict(loads(dumps(run.state_dict())))
    for each in (run, other):
        each.train(BEFORE, AFTER)
    ours, theirs = other.state_dict(), run.state_dict()
    assert {*ours["optimizer"]} ^ {*theirs["optimizer"]} == {"mtopt"}  # torch ignores the key, and does not keep it
    for state in (ours, theirs):
        state["optimizer"].pop("mtopt", None)
    assert_equal(ours, theirs)


@pytest.mark.parametrize("inner", INNER)
def test_a_plain_checkpoint_leaves_the_transforms_as_they_are(inner):
    run, plain = start("activations", 0, inner), start("plain", 1, inner)
    run.train(0, BEFORE)
    plain.train(0, BEFORE + 1)
    before = run.optimizer.state_dict()["mtopt"]
    run.optimizer.load_state_dict(loads(dumps(plain.optimizer.state_dict())))
    assert_equal(run.optimizer.state_dict(), plain.optimizer.state_dict() | {"mtopt": before})


@pytest.mark.parametrize("inner", INNER)
def test_the_plain_optimizer_takes_all_but_the_transforms(inner):
    run, plain = start("activations", 0, inner), start("plain", 1, inner)
    run.train(0, BEFORE)
    plain.optimizer.load_state_dict(loads(dumps(run.optimizer.state_dict())))
    assert_equal(plain.optimizer.state_dict(), run.optimizer.inner.state_dict())


def too_few(state):
    del state["mtopt"]["transforms"][0]


def too_many(state):
    state["mtopt"]["transforms"].append({"draws": {"seed": 1, "count": 1}})


def another_order(state):
    state["mtopt"]["transforms"].reverse()


def another_model(state):
    state["param_groups"][0]["params"].pop()


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (too_few, ValueError, "state of 2 transforms, but there are 3"),
        (too_many, ValueError, "state of 4 transforms, but there are 3"),
        (another_model, ValueError, "parameter group"),
        (another_order, ValueError, r"`state_dict` does not fit `transforms\[\d\]`"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(spoil, error, match):
    run, fresh = start("activations", 0), start("activations", 1)
    run.train(0, BEFORE)
    fresh.train(0, 1)
    before, spoiled = dumps(fresh.state_dict()), run.optimizer.state_dict()
    spoil(spoiled)
    with pytest.raises(error, match=match):
        fresh.optimizer.load_state_dict(spoiled)
    assert_equal(fresh.state_dict(), loads(before))


# -- several ranks -----------------------------------------------------------------------------------------------------

SAVED_ON = 2
# name: (at, wrapper, how it is saved, how many ranks load it). Where GradDrop's decisions belong to single examples,
# each rank draws its own, so that another number of ranks trains on in another way.
CASES = {
    **{f"DDP, {at}, torch.save": (at, "DDP", "file", (1, 2)) for at in ("layer", "module", "parameters")},
    **{f"DDP, {at}, dcp.save": (at, "DDP", "dcp", (1, 2, 4)) for at in ("layer", "module", "parameters")},
    "DDP, activations, torch.save": ("activations", "DDP", "file", (2,)),
    "DDP, activations, dcp.save": ("activations", "DDP", "dcp", (2,)),
    "DDP, activations without draws, dcp.save": ("activations without draws", "DDP", "dcp", (1, 2, 4)),
    "FSDP2, layer, dcp.save": ("layer", "FSDP2", "dcp", (1, 2, 4)),
    "FSDP2, layer, dcp.async_save": ("layer", "FSDP2", "async", (2,)),
    "FSDP2, parameters, dcp.save": ("parameters", "FSDP2", "dcp", (1, 2, 4)),
}


def start_on_ranks(name, size, seed):
    at, wrapper, _, _ = CASES[name]

    def shard(net):
        mesh = init_device_mesh("cpu", (size,))
        for module in (net.trunk[0], net.trunk[2], *net.heads):
            fully_shard(module, mesh=mesh)
        return fully_shard(net, mesh=mesh)

    return start(at, seed, wrap={"DDP": DistributedDataParallel, "FSDP2": shard}[wrapper] if size > 1 else lambda n: n)


def distributed_state(run):
    """What `dcp.save` and `dcp.load` take: torch's parts of model and optimizer, and what has a state of its own."""
    model, optimizer = get_state_dict(run.model, run.optimizer)
    transforms = {f"transform {i}": transform for i, transform in enumerate(run.transforms)}
    return {"model": model, "optimizer": optimizer, "scheduler": run.scheduler, **transforms}


def save(run, how, place, rank):
    """Returns what to wait for."""
    if how == "dcp":
        dcp.save(distributed_state(run), checkpoint_id=place)
    elif how == "async":
        group = dist.new_group(backend="gloo")  # the thread that writes must not use the group that trains
        return dcp.async_save(distributed_state(run), checkpoint_id=place, process_group=group).result
    elif rank == 0:
        torch.save(run.state_dict(), place)
    return lambda: None


def load(run, how, place):
    if how == "file":
        run.load_state_dict(torch.load(place, weights_only=True))
    else:
        state = distributed_state(run)
        dcp.load(state, checkpoint_id=place)
        set_state_dict(run.model, run.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def whole_state(run):
    model, optimizer = get_state_dict(run.model, run.optimizer, options=StateDictOptions(full_state_dict=True))
    transforms = [transform.state_dict() for transform in run.transforms]
    return dumps([model, optimizer, run.scheduler.state_dict(), transforms])


def saved_and_trained_on(rank, folder):
    """For each case the state at the checkpoint, and that of the undisturbed run later on."""

    def case(name):
        run = start_on_ranks(name, SAVED_ON, seed=0)
        run.train(0, BEFORE, rank, SAVED_ON)
        at_checkpoint = whole_state(run)
        wait = save(run, CASES[name][2], folder / name, rank)
        run.train(BEFORE, AFTER, rank, SAVED_ON)
        wait()
        return at_checkpoint, whole_state(run)

    return {name: attempt(case, name) for name in CASES}


def loaded_and_trained_on(rank, size, folder):
    def case(name):
        run = start_on_ranks(name, size, seed=1 + rank)
        load(run, CASES[name][2], folder / name)
        restored = whole_state(run)
        run.train(BEFORE, AFTER, rank, size)
        return restored, whole_state(run)

    return {name: attempt(case, name) for name in CASES if size in CASES[name][3]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def undisturbed(folder):
    return run_ranks(saved_and_trained_on, SAVED_ON, folder)[0]


@pytest.fixture(scope="module")
def resumed(undisturbed, folder):
    return {size: run_ranks(loaded_and_trained_on, size, size, folder) for size in (1, 2, 4)}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in CASES for size in CASES[name][3]])
def test_ranks_resume_on_any_number_of_ranks(undisturbed, resumed, name, size):
    results = [undisturbed[name], *(of_rank[name] for of_rank in resumed[size])]
    assert not any(isinstance(result, str) for result in results), results
    (at_checkpoint, later), *of_ranks = (map(loads, result) for result in results)
    for restored, trained_on in of_ranks:
        assert_equal(restored, at_checkpoint)
        assert_equal(trained_on, later, **({} if size == SAVED_ON else {"rtol": 1e-6, "atol": 1e-9}))


def load_on_one(rank, at, moment):
    """The error of a step when rank 1 alone has loaded a state, and that of the next, when rank 0 has, too."""
    run, saved = (start(at, 0, wrap=DistributedDataParallel) for _ in range(2))
    for each in (saved,) if moment == "before the first step" else (run, saved):
        each.train(0, BEFORE, rank, 2)
    state = loads(dumps(saved.state_dict()))
    if moment == "after some steps, a plain one":
        del state["optimizer"]["mtopt"]
    if rank == 1:
        run.load_state_dict(state)
    refusal = attempt(run.train, BEFORE, 1, rank, 2)
    unchanged = all(p.grad is None for p in run.net.parameters())
    if rank == 0:
        run.load_state_dict(state)
    return refusal, unchanged, attempt(run.train, BEFORE, 1, rank, 2)


MOMENTS = ("after some steps", "after some steps, a plain one", "before the first step")
SITES = ("activations", "module", "parameters")


def load_on_one_everywhere(rank):
    return {(at, moment): attempt(load_on_one, rank, at, moment) for at in SITES for moment in MOMENTS}


@pytest.fixture(scope="module")
def loaded_on_one():
    return run_ranks(load_on_one_everywhere, 2)


@pytest.mark.parametrize("at", SITES)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_state_loaded_on_one_rank_alone_is_refused_on_all(loaded_on_one, at, moment):
    words = "RuntimeError: `load_state_dict` was called on rank 1, but not on rank 0."
    for of_rank in loaded_on_one:
        refusal, unchanged, after = of_rank[at, moment]
        assert str(refusal).startswith(words)
        assert unchanged
        assert after is None


# -- killed ------------------------------------------------------------------------------------------------------------

SCRIPT = ROOT / "docs/examples/resume.py"


def run_script(folder):
    settings = {"capture_output": True, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    run = subprocess.run([sys.executable, SCRIPT, folder], timeout=60, check=False, **settings)
    assert run.returncode == 0, run.stderr
    return (folder / "curve.txt").read_text(), torch.load(folder / "checkpoint.pt", weights_only=True)


def in_backward(module, act):
    """Call `act()` whenever a backward comes to the output of a module."""

    def arrived(gradient):
        act()

    def watch(module, args, output):
        output.register_hook(arrived)

    return module.register_forward_hook(watch)


def stall_in_backward(number, here):
    """Stop forever in some step's backward: the heads have their gradients, the trunk has none."""
    steps = count(1)

    class Trunk(nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            in_backward(self, lambda: stall(here) if next(steps) == number else None)

    nn.Sequential = Trunk


def stall_in_save(number, here):
    """Stop forever in some `torch.save`: when half of the file is written."""
    calls, whole = count(1), torch.save

    def half(state, path):
        whole(state, path)
        if next(calls) == number:
            os.truncate(path, os.path.getsize(path) // 2)
            stall(here)

    torch.save = half


def stall(here):
    here.touch()
    time.sleep(600)


def run_stalled(place, number, folder):
    torch.set_num_threads(1)
    place(number, folder / "here")
    sys.argv = [str(SCRIPT), str(folder)]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def kill_script(folder, place, number):
    process = CONTEXT.Process(target=run_stalled, args=(place, number, folder))
    process.start()
    try:
        while not (folder / "here").exists():
            assert process.is_alive()
            time.sleep(0.01)
    finally:
        process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (folder / "here").unlink()


@pytest.fixture(scope="module")
def of_script(tmp_path_factory):
    """The curve and the last checkpoint of the undisturbed script."""
    return run_script(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(
    ("kills", "n_steps"),
    [
        ([(stall_in_backward, 4)], [3]),  # no checkpoint is there yet
        ([(stall_in_save, 1)], [10]),
        ([(stall_in_backward, 18), (stall_in_save, 1), (stall_in_backward, 1)], [17, 20, 10]),
    ],
)
def test_a_killed_training_has_the_curve_of_the_undisturbed_one(tmp_path, of_script, kills, n_steps):
    for (place, number), n_lines in zip(kills, n_steps, strict=True):
        kill_script(tmp_path, place, number)
        assert len((tmp_path / "curve.txt").read_text().splitlines()) == n_lines
    curve, state = run_script(tmp_path)
    assert curve == of_script[0]
    assert_equal(state, of_script[1])


def train_and_save(rank, folder, at, killed_in):
    """Twelve steps and a checkpoint after every third, by the script's rules. Rank 1 dies in the backward of one."""
    run, place, first = start(at, seed=rank, wrap=DistributedDataParallel), folder / "checkpoint.pt", 0
    if place.exists():
        saved = torch.load(place, weights_only=True)
        run.load_state_dict(saved["run"])
        first = saved["step"]
    for step in range(first, 12):
        if (rank, step) == (1, killed_in):
            in_backward(run.net.trunk[0], partial(os.kill, os.getpid(), signal.SIGKILL))
        run.train(step, 1, rank, 2)
        if rank == 0 and step % 3 == 2:
            torch.save({"run": run.state_dict(), "step": step + 1}, place.with_suffix(".unfinished"))
            os.replace(place.with_suffix(".unfinished"), place)
    return dumps(run.state_dict())


def train_and_save_all(rank, folder):
    return {at: train_and_save(rank, folder / at, at, None) for at in AT}


@pytest.fixture(scope="module")
def of_killed(tmp_path_factory):
    """For each site what became of both ranks, when one was killed, when both resumed, and when nothing happened."""
    undisturbed, folder = tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("killed")
    for at in AT:
        (undisturbed / at).mkdir()
        (folder / at).mkdir()
    killed = {at: run_ranks(train_and_save, 2, folder / at, at, 7, lost=(1,), timeout=60) for at in AT}
    return killed, run_ranks(train_and_save_all, 2, folder), run_ranks(train_and_save_all, 2, undisturbed)


@pytest.mark.parametrize("at", AT)
def test_when_one_rank_is_killed_the_others_raise_and_all_can_resume(of_killed, at):
    killed, resumed, undisturbed = of_killed
    assert killed[at][0].startswith("RuntimeError: The ranks could not combine their gradients: another rank has stop")
    assert killed[at][1].startswith("EOFError")
    for ours, theirs in zip(resumed, undisturbed, strict=True):
        assert_equal(loads(ours[at]), loads(theirs[at]))


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------

SETTINGS = {
    **{at: (at, {}) for at in AT},
    "parameters, loop": ("parameters", {"chunk_size": 1}),
    "parameters, vmap": ("parameters", {"chunk_size": N_LOSSES}),
}
PLACES = ("heads.1", "trunk", "trunk.0")


def losses_of_batch(run):
    x, y = batch(0)
    return losses_of(run.model(x, y), y)


def gradients(run):
    return [p.grad for p in run.net.parameters()]


@dataclass
class Interrupted:
    """A run whose first backward ended in Ctrl-C, pressed when it came to the output of a module."""

    run: Run
    losses: list[torch.Tensor]
    undisturbed: Run  # the same, before its first backward


@pytest.fixture(params=[(name, place) for name in SETTINGS for place in PLACES], ids=" at ".join)
def interrupted(request):
    name, place = request.param
    at, settings = SETTINGS[name]
    run, undisturbed = (start(at, 0, **settings) for _ in range(2))
    presses = [signal.SIGINT]
    hook = in_backward(run.net.get_submodule(place), lambda: presses and signal.raise_signal(presses.pop()))
    losses = losses_of_batch(run)
    hook.remove()
    with pytest.raises(KeyboardInterrupt):
        run.optimizer.backward(losses, retain_graph=True)
    for transform, other in zip(run.transforms, undisturbed.transforms, strict=True):
        transform.load_state_dict(other.state_dict())  # the interrupted backward has moved it on
    return Interrupted(run, losses, undisturbed)


def test_after_ctrl_c_each_gradient_is_whole_or_as_it_was(interrupted):
    """Autograd fills them in one by one; at parameters all come at the end."""
    other = interrupted.undisturbed
    other.optimizer.backward(losses_of_batch(other))
    found = gradients(interrupted.run)
    assert all(mine is None or torch.equal(mine, whole) for mine, whole in zip(found, gradients(other), strict=True))
    assert any(mine is None for mine in found)
    if interrupted.run.optimizer.at == "parameters":
        assert found == [None] * len(found)


def test_after_ctrl_c_no_hook_is_left_on_the_graph(interrupted):
    run, other = interrupted.run, interrupted.undisturbed
    run.optimizer.zero_grad()
    sum(interrupted.losses).backward()
    sum(losses_of_batch(other)).backward()
    assert_equal(gradients(run), gradients(other))


def test_after_ctrl_c_training_goes_on(interrupted):
    run, other = interrupted.run, interrupted.undisturbed
    for each in (run, other):
        each.train(0, 2)
    assert_equal(run.state_dict(), other.state_dict())
    assert run.optimizer.explain().splitlines()[1:] == other.optimizer.explain().splitlines()[1:]
