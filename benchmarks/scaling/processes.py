"""The time of a step on several ranks, and the bytes that they exchange. Gloo on this machine; prints nothing."""

from __future__ import annotations

import gc
import json
import multiprocessing
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter
from typing import Any

import torch
import torch.distributed as dist
from cells import Sample, sgd
from measure import Advance, Series
from ranks import Model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from mtopt import GradDrop, MultiLossOptimizer, UPGrad

from .sweeps import make_problem, summary
from .theory import AGAIN, DROP_ACTIVATIONS, DROP_PARAMETERS, PLAIN, UPGRAD_ACTIVATIONS, UPGRAD_PARAMETERS, Size
from .traffic import DDP, FSDP2, MARGINALIZED, METHODS

WARM_UPS = 2
LOST = 60  # seconds that a collective call waits for a rank that does not come
WHOLE = {"allreduce_": 0, "allgather_": 1, "_allgather_base_": 0, "_reduce_scatter_base_": 1}
"""Which argument of a call has the whole payload; of what is gathered from facts, a rank's own."""

Key = tuple[str, str]  # method, wrapper


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """Bytes of each collective call, also of those that DistributedDataParallel and FSDP2 make by themselves."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind = func.__name__.split(".")[0]
            tensors = args[WHOLE[kind]]
            self.found.append((kind, sum(t.nbytes for t in ([tensors] if isinstance(tensors, Tensor) else tensors))))
        return func(*args, **(kwargs or {}))


def make_step(method: str, wrapper: str, size: Size) -> Callable[[], None]:
    problem = make_problem(size)
    model: nn.Module = Model(problem)
    if wrapper == DDP:
        model = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for module in problem.trunk.children():
            if isinstance(module, nn.Linear):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
    inner = sgd(problem)
    optimizers: dict[str, Callable[[], MultiLossOptimizer]] = {
        DROP_ACTIVATIONS: lambda: MultiLossOptimizer(inner),
        MARGINALIZED: lambda: MultiLossOptimizer(inner, GradDrop(marginalize=0), at=problem.trunk),
        UPGRAD_ACTIVATIONS: lambda: MultiLossOptimizer(inner, UPGrad()),
        DROP_PARAMETERS: lambda: MultiLossOptimizer(inner, at="parameters"),
        UPGRAD_PARAMETERS: lambda: MultiLossOptimizer(inner, UPGrad(), at="parameters"),
    }
    if method not in optimizers:

        def plain() -> None:
            inner.zero_grad()
            torch.autograd.backward(torch.stack(model()).sum())
            inner.step()

        return plain
    optimizer = optimizers[method]()

    def several() -> None:
        optimizer.zero_grad()
        optimizer.step(model())

    return several


def measure(
    numbers: Sequence[int], size: Size, *, repeats: int, threads: int, timeout: float, advance: Advance
) -> list[dict[str, Any]]:
    """All methods on each number of ranks, as JSON.

    Raises:
        RuntimeError: If a rank fails, or does not end in `timeout` seconds.
    """
    points = []
    for ranks in numbers:
        advance(f"{ranks} ranks")
        rows = run_ranks(ranks, size, repeats=repeats, threads=threads, timeout=timeout)
        points.append({"ranks": ranks, "size": asdict(size), "methods": rows})
    return points


def run_ranks(ranks: int, size: Size, *, repeats: int, threads: int, timeout: float) -> list[dict[str, Any]]:
    """All methods on some ranks, each a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    deadline = monotonic() + timeout
    with TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        settings = (port, ranks, size, repeats, threads, found)
        processes = [context.Process(target=_rank, args=(rank, *settings), daemon=True) for rank in range(ranks)]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(max(0.0, deadline - monotonic()))
            codes = [process.exitcode for process in processes]
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
        if any(codes) or None in codes:
            raise RuntimeError(
                f"A rank has failed or hangs after {timeout} s: exit codes {codes}; see its error above."
            )
        results: list[dict[str, Any]] = json.loads(found.read_text())
    return results


def _rank(rank: int, port: int, ranks: int, size: Size, repeats: int, threads: int, found: Path) -> None:
    """All methods by turns on one rank; rank 0 writes down what it found."""
    torch.set_num_threads(threads)
    address, lost = f"tcp://127.0.0.1:{port}", timedelta(seconds=LOST)
    dist.init_process_group("gloo", address, timeout=lost, rank=rank, world_size=ranks)
    keys = [(method, wrapper) for wrapper in (DDP, FSDP2) for method in (PLAIN, AGAIN, *METHODS[1:])]
    steps = {key: make_step(*key, size) for key in keys}
    calls = {key: _count(step) for key, step in steps.items()}
    series = {key: Series() for key in keys}
    order = random.Random(0)  # the same on all ranks
    gc.collect()
    gc.freeze()
    for i in range(repeats):
        for key in order.sample(keys, len(keys)):
            gc.collect()
            dist.barrier()
            start = perf_counter()
            steps[key]()
            seconds = perf_counter() - start
            series[key].samples[i] = Sample(seconds, seconds)
    if rank == 0:
        rows = [
            {
                "method": method,
                "wrapper": wrapper,
                **summary(series[method, wrapper], series[PLAIN, wrapper]),
                "calls": calls[method, wrapper],
                "bytes": sum(n for _, n in calls[method, wrapper]),
            }
            for method, wrapper in keys
        ]
        found.write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


def _count(step: Callable[[], None]) -> list[tuple[str, int]]:
    """The collective calls of one step, after some to warm up."""
    for _ in range(WARM_UPS):
        step()
    traffic = Traffic()
    with traffic:
        step()
    return traffic.found
