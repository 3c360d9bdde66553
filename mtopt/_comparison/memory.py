"""Peak memory of one training step, where the device can tell it. No time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from .._torch import profiler_runs

_LOG_LEVEL = "KINETO_LOG_LEVEL"


def peak_bytes(step: Callable[[], None], device: torch.device) -> int | None:
    """Take the step; the most bytes that were alive at once, of those allocated in it. `None` where it is not known."""
    if device.type == "cuda":
        return _peak_on_cuda(step, device)
    # A profiler inside another one would end it.
    if device.type != "cpu" or profiler_runs():
        step()
        return None
    return peak_on_cpu(step)


def _peak_on_cuda(step: Callable[[], None], device: torch.device) -> int:
    """Untested: no GPU at hand."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def peak_on_cpu(step: Callable[[], None]) -> int:
    """Take the step; the most bytes of tensors on the CPU that were alive at once, of those allocated in it."""
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler's library writes to stderr when it starts and stops, unless its first start finds this level."""
    if _LOG_LEVEL in os.environ:
        yield
        return
    os.environ[_LOG_LEVEL] = "99"
    try:
        yield
    finally:
        os.environ.pop(_LOG_LEVEL, None)
