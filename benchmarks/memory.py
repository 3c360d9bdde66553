"""Memory: the peak of one cell's steps, in a fresh process. Measures no time."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import accumulate

import torch
from methods import make_cell
from torch.autograd.profiler import profile

Key = tuple[str, int, str]  # model, number of losses, method

# Freed tensors go back to the system at once, so that the resident memory follows the tensors.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


@dataclass(frozen=True)
class Peak:
    """Bytes above what a cell holds between its steps.

    Attributes:
        tensors: Peak of all tensors, as the allocator counts them.
        resident: Peak of the process' resident memory, or `None` where the system does not tell.
        forward: Tensors alive after the forward pass alone.
        shared: Size of the shared parameters.
        engine: What `MultiLossOptimizer.explain` says on how the rows were batched, if it was asked.
    """

    tensors: int
    resident: int | None
    forward: int
    shared: int
    engine: str


def measure_peaks(keys: Iterable[Key], *, workers: int) -> Iterator[tuple[Key, Peak]]:
    """The peaks in the order in which they are ready, several processes of one thread each at a time.

    Each process is forked from a server that has imported torch, but has run nothing.
    """
    before = {name: os.environ.get(name) for name in MALLOC}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "torchjd.aggregation", "torchjd.autojac"])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet, max_tasks_per_child=1)
    os.environ.update(MALLOC)
    try:
        futures: dict[Future[Peak], Key] = {pool.submit(measure_peak, *key): key for key in keys}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        pool.shutdown(cancel_futures=True)


def measure_peak(model: str, n_losses: int, method: str) -> Peak:
    """The peak of one cell, in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that vmap has no rule for some operation is known, and shows in the time
    cell = make_cell(model, n_losses, method)
    tensors = max(accumulate(_allocations(cell.run)))
    cell.check()
    cell.optimizer.zero_grad()
    resident = _resident_peak(cell.run)  # not in the first step, which loads code and fills caches
    cell.optimizer.zero_grad()
    losses = []
    forward = sum(_allocations(lambda: losses.append(cell.problem.forward())))
    explain: Callable[[], str] = getattr(cell.optimizer, "explain", str)
    engine = [line.split(": ")[1] for line in explain().splitlines() if line.startswith("per-loss gradients: ")]
    return Peak(tensors, resident, forward, cell.problem.shared_bytes, "".join(engine))


def _allocations(run: Callable[[], object]) -> list[int]:
    """Bytes that tensors took (or gave back, below 0) while `run` ran, one after the other."""
    gc.collect()
    with profile(profile_memory=True) as profiler:
        run()
    results = profiler.kineto_results
    assert results is not None
    memory = [event for event in results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns())]


def _resident_peak(run: Callable[[], object]) -> int | None:
    gc.collect()
    try:
        before = _status("VmRSS")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # https://docs.kernel.org/filesystems/proc.html: resets the peak to the present
    except OSError:
        return None
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith(field)]
    return int(line.split()[1]) * 1024


def _quiet() -> None:
    """Leave Ctrl-C to the parent, and keep the profiler's notes off the table; errors come back as exceptions."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
