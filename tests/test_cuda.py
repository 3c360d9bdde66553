"""On a GPU: gradients are those of the CPU, draws go on in a resumed run, and a step waits for the device no oftener.

What can be looked at without one is looked at on the CPU, by the same functions.
"""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mtopt import MGDA, GradDrop, MultiLossLayer, MultiLossOptimizer, sign_dropout

ROOT = Path(__file__).parents[1]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
N_LOSSES, N_STEPS = 3, 4
SEEN = 2  # steps after which all has been seen that is looked at once

# name: (at, transforms)
DRAWN = {
    "layer": ("layer", lambda: GradDrop(seed=1)),
    "layer, renormalized": ("layer", lambda: GradDrop(seed=1, renormalize=True)),
    "layer, marginalized": ("layer", lambda: GradDrop(seed=1, marginalize=0)),
    "layer, marginalized, leaks": ("layer", lambda: GradDrop(seed=1, marginalize=0, leak=[0.0, 0.3, 1.0])),
    "activations": ("activations", lambda: GradDrop(seed=1)),
    "activations, leaks": ("activations", lambda: GradDrop(seed=1, leak=[0.0, 0.3, 1.0])),
    "parameters": ("parameters", lambda: GradDrop(seed=1)),
}
PLAIN = {
    "no transform": ("activations", list),
    "layer, nothing dropped": ("layer", lambda: GradDrop(leak=1)),
    "layer, marginalized, nothing dropped": ("layer", lambda: GradDrop(leak=1, marginalize=0)),
    "activations, nothing dropped": ("activations", lambda: GradDrop(leak=1)),
    "parameters, nothing dropped": ("parameters", lambda: GradDrop(leak=1)),
}
GRAMIAN = {f"{at}, MGDA": (at, MGDA) for at in ("layer", "activations", "parameters")}
CASES = {**DRAWN, **PLAIN, **GRAMIAN}


class Readings(TorchFunctionMode):
    """The calls that would wait for a device: numbers read from it, or copied to it from a list."""

    COPIES = ("tensor", "as_tensor", "new_tensor")
    READS = ("item", "tolist", "cpu", "numpy", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "allclose")
    READS += ("__bool__", "__int__", "__float__", "__index__", "__contains__")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        by_index = name in ("__getitem__", "__setitem__") and self.copied(args[1])
        if (
            name in self.READS + self.COPIES
            or by_index
            or (name == "to" and any(str(arg) == "cpu" for arg in args[1:]))
        ):
            self.found.append(name)
        return function(*args, **(kwargs or {}))

    @classmethod
    def copied(cls, index):
        """Whether a list or a mask is among the indices."""
        if isinstance(index, tuple):
            return any(map(cls.copied, index))
        return isinstance(index, list) or (isinstance(index, torch.Tensor) and index.dtype == torch.bool)


class Net(nn.Module):
    """A trunk, a head per loss, and a batch."""

    def __init__(self, layer, device) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(N_LOSSES))
        self.layer = layer
        self.x = torch.randn(32, 8).to(device)
        self.y = torch.randn(N_LOSSES, 32, 1).to(device)
        self.to(device)

    def losses(self):
        z = self.trunk(self.x)
        aliases = [z] * N_LOSSES if self.layer is None else self.layer(z)
        return [(head(a) - y).square().mean() for head, a, y in zip(self.heads, aliases, self.y, strict=True)]


def build(case, device):
    at, transforms = CASES[case]
    made = transforms()
    net = Net(MultiLossLayer(N_LOSSES, made) if at == "layer" else None, device)
    inner = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    optimizer = MultiLossOptimizer(inner, [] if at == "layer" else made, at="activations" if at == "layer" else at)
    return net, optimizer, net.layer.transforms if at == "layer" else optimizer.transforms


def run(net, optimizer):
    optimizer.zero_grad()
    optimizer.step(net.losses())


def gradients(case, device):
    """After as many steps as it takes until most of the graph is no longer looked at."""
    net, optimizer, _ = build(case, device)
    for _ in range(N_STEPS):
        run(net, optimizer)
    return [p.grad.cpu() for p in net.parameters()]


def plain_step(net, inner):
    inner.zero_grad()
    sum(net.losses()).backward()
    inner.step()


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", PLAIN)
def test_where_nothing_is_dropped_gradients_are_those_of_the_plain_sum(case, device):
    net = Net(None, device)
    inner = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(N_STEPS):
        plain_step(net, inner)
    torch.testing.assert_close(gradients(case, device), [p.grad.cpu() for p in net.parameters()])


@pytest.mark.cuda
@pytest.mark.parametrize("case", [*PLAIN, *GRAMIAN])
def test_gradients_are_those_of_the_cpu(case):
    torch.testing.assert_close(gradients(case, "cuda"), gradients(case, "cpu"), rtol=1e-3, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("settings", [{}, {"leak": [0.0, 0.3, 1.0]}, {"renormalize": True}, {"marginalize": (0, 1)}])
def test_with_the_same_draws_decisions_are_those_of_the_cpu(settings):
    rows, activation = torch.randn(3, 16, 32), torch.randn(16, 32)
    uniform = torch.rand(() if "marginalize" in settings else (16, 32))
    here, there = (
        sign_dropout(rows.to(device), uniform=uniform.to(device), activation=activation.to(device), **settings).cpu()
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there, here)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", ["layer", "activations", "parameters", "no transform", "parameters, MGDA"])
def test_half_precision_under_a_scaler_trains(case, device):
    net, optimizer, _ = build(case, device)
    before = [p.detach().clone() for p in net.parameters()]
    scaler = torch.amp.GradScaler(device, init_scale=2.0**8)
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.float16):
            losses = net.losses()
        optimizer.backward(scaler.scale(losses))
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**8
    for old, new in zip(before, net.parameters(), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)


# -- draws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", DRAWN)
def test_a_resumed_run_draws_what_the_undisturbed_one_does(case, device):
    net, optimizer, transforms = build(case, device)
    for _ in range(N_STEPS):
        run(net, optimizer)
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict(), [t.state_dict() for t in transforms]], file)
    resumed, other, others = build(case, device)
    file.seek(0)
    of_net, of_optimizer, of_transforms = torch.load(file, map_location=device)
    resumed.load_state_dict(of_net)
    other.load_state_dict(of_optimizer)
    for transform, state in zip(others, of_transforms, strict=True):
        transform.load_state_dict(state)
    for _ in range(N_STEPS):
        run(net, optimizer)
        run(resumed, other)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), resumed.parameters(), strict=True))


# -- waiting for the device --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_device():
    """The part of the benchmark that measures on a device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import on_device

        yield on_device
    del sys.modules["on_device"]


def waits(on_device, case, device):
    """In each step after the first ones; and in a plain step."""
    device = torch.device(device)
    net, optimizer, _ = build(case, device)
    for _ in range(SEEN):
        run(net, optimizer)
    found = [on_device.synchronizations(lambda: run(net, optimizer), device) for _ in range(N_STEPS)]
    net = Net(None, device)
    inner = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(SEEN):
        plain_step(net, inner)
    return found, on_device.synchronizations(lambda: plain_step(net, inner), device)


@pytest.mark.cuda
@pytest.mark.parametrize("case", [*DRAWN, *PLAIN])
def test_a_step_waits_for_the_device_no_oftener_than_a_plain_one(on_device, case):
    found, plain = waits(on_device, case, "cuda")
    assert found == [plain] * N_STEPS


@pytest.mark.cuda
@pytest.mark.parametrize("case", GRAMIAN)
def test_a_method_of_the_gramian_waits_twice_for_small_rows(on_device, case):
    """Once for the Gramian, in `_sum_of_products`, as it is solved on the CPU; once for the weights on their way back,
    in `weighted_sum`. All rows at the parameters are one block here, being small."""
    found, plain = waits(on_device, case, "cuda")
    assert max(found) <= plain + 2


@pytest.mark.parametrize("case", [case for case in (*DRAWN, *PLAIN) if "renormalized" not in case])
def test_a_step_makes_no_call_that_would_wait_for_a_device(case):
    """Seen without one. A norm is looked at on the CPU alone, where that is fast: see `_norm` in `_signs.py`."""
    net, optimizer, _ = build(case, "cpu")
    for _ in range(SEEN):
        run(net, optimizer)
    for _ in range(N_STEPS):
        with Readings() as readings:
            run(net, optimizer)
        assert readings.found == []


def test_calls_that_would_wait_for_a_device_are_seen():
    tensor = torch.ones(3)
    with Readings() as readings:
        bool(tensor[0] > 0), float(tensor[1]), tensor.tolist(), tensor.to("cpu"), torch.tensor([1.0])
        tensor[[0, 1]], tensor[tensor > 0], tensor[1:], tensor[0]
        tensor[[2]] = 0.0
    assert readings.found == ["__bool__", "__float__", "tolist", "to", "tensor", *2 * ["__getitem__"], "__setitem__"]


@pytest.mark.parametrize("case", CASES)
def test_on_the_cpu_there_is_nothing_to_wait_for(on_device, case):
    assert waits(on_device, case, "cpu") == ([None] * N_STEPS, None)


def test_each_wait_that_torch_tells_of_counts_and_no_other_warning(on_device, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: modes.append("synchronized"))

    def step():
        for text in (on_device.WAITED, on_device.WAITED, "the debug mode is a prototype"):
            warnings.warn(text, stacklevel=1)

    assert on_device.synchronizations(step, torch.device("cuda")) == 2
    assert modes == ["synchronized", "warn", "default"]
    with pytest.raises(ZeroDivisionError):
        on_device.synchronizations(lambda: 1 / 0, torch.device("cuda"))
    assert modes[-1] == "default"


@pytest.mark.cuda
def test_a_wait_is_seen(on_device):
    """That of a number read from the device: else the tests above would hold nothing."""
    tensor = torch.ones(4, device="cuda")
    assert on_device.synchronizations(lambda: float(tensor.sum()), torch.device("cuda")) >= 1


# -- the benchmark's clock ---------------------------------------------------------------------------------------------


class FakeClock:
    """Writes down what is asked of it; each mark comes two seconds after the one before."""

    def __init__(self, log) -> None:
        self.log = log
        self.now = 0.0

    def mark(self):
        self.log.append("mark")
        self.now += 2.0
        return self.now

    def wait(self):
        self.log.append("wait")

    def seconds(self, start, end):
        assert self.log[-1] == "wait"
        return end - start


def test_each_step_stands_between_two_marks_and_the_device_is_waited_for_once(on_device):
    log = []
    assert on_device.seconds_of(lambda: log.append("step"), FakeClock(log), 3) == 2.0
    assert log == ["mark", "step", "mark"] * 3 + ["wait"]


@pytest.mark.parametrize("device", DEVICES)
def test_time_and_memory_of_a_step_are_measured(on_device, device):
    device = torch.device(device)
    tensor = torch.ones(1000, 1000, device=device)
    assert on_device.seconds_of(lambda: tensor @ tensor, on_device.clock_of(device), 2) > 0
    peak = on_device.peak_of(lambda: (tensor + 1) * (tensor + 2), device)
    assert peak is None if device.type == "cpu" else 12e6 <= peak < 16e6
