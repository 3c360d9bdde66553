"""Time, memory and waiting of steps on a device: events on a GPU, the clock on a CPU. Knows no method."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import torch

WAITED = "called a synchronizing CUDA operation"  # what torch says in its debug mode


class Clock(Protocol):
    """Marks points in the work of a device."""

    def mark(self) -> Any:
        """A point after all work that was given to the device so far. Waits for nothing."""

    def wait(self) -> None:
        """Wait until every mark has been passed."""

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two marks that have been passed."""


class Events:
    """The clock of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(start.elapsed_time(end)) / 1e3


class Host:
    """The clock of a CPU, which has done its work when a call returns."""

    def mark(self) -> float:
        return perf_counter()

    def wait(self) -> None:
        pass

    def seconds(self, start: float, end: float) -> float:
        return end - start


def clock_of(device: torch.device) -> Clock:
    return Events(device) if device.type == "cuda" else Host()


def seconds_of(step: Callable[[], object], clock: Clock, steps: int) -> float:
    """The mean of some steps, each between two marks; the device is waited for once, after the last."""
    marks = []
    for _ in range(steps):
        start = clock.mark()
        step()
        marks.append((start, clock.mark()))
    clock.wait()
    return sum(clock.seconds(start, end) for start, end in marks) / steps


def peak_of(step: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes of a step by the device's allocator, above what was held before; `None` on a CPU."""
    if device.type != "cuda":
        step()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def synchronizations(step: Callable[[], object], device: torch.device) -> int | None:
    """How often the host waits for the device in a step, as far as torch's debug mode sees it; `None` on a CPU."""
    if device.type != "cuda":
        step()
        return None
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # else each place in the code would count once
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(WAITED in str(warning.message) for warning in caught)
