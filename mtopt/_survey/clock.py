"""How long a computation takes, whatever else the machine does meanwhile. Runs it, and keeps nothing."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, thread_time

import torch

FEWEST, MOST = 3, 20  # runs
ENOUGH = 0.2  # seconds of runs after which there are no more


def clock_of(device: torch.device) -> str:
    """What is measured here, in words."""
    return "CPU time of one thread" if device.type == "cpu" else "wall-clock time"


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """The least of several runs: what disturbs one makes it longer, and never shorter.

    On a CPU it is the time that the processor works for this thread alone, with torch on one thread. A wall clock would
    count what other programs take, and several threads wait for each other by spinning, which counts as work. On
    another device it is the wall clock, from one end of its queue to the other.
    """
    return seconds_of_each(lambda: run, device)


def seconds_of_each(made: Callable[[], Callable[[], object]], device: torch.device) -> float:
    """The same of runs that are made anew, which does not count."""
    threads = torch.get_num_threads()
    on_cpu = device.type == "cpu"
    clock = thread_time if on_cpu else perf_counter
    spent: list[float] = []
    try:
        if on_cpu:
            torch.set_num_threads(1)
        while len(spent) < FEWEST or (len(spent) < MOST and sum(spent) < ENOUGH):
            run = made()
            _wait(device)
            before = clock()
            run()
            _wait(device)
            spent.append(clock() - before)
    finally:
        if on_cpu:
            torch.set_num_threads(threads)
    return min(spent)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
