"""What a step costs on several ranks, over DistributedDataParallel's own plain sum. Gloo on this machine."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import random
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from measure import quartiles
from models import MODELS, Problem, make_problem
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtopt import GradDrop, GramianTransform, MultiLossLayer, MultiLossOptimizer
from mtopt._transform import Losses

BARE = "plain sum, a bare all-reduce"  # at the features: the least that ranks which decide together can do
PLAIN, AGAIN = "plain sum", "plain sum, again"  # their mean is what all is compared with; how they differ is the noise


class UnitRows(GramianTransform):
    """The least that a transform of the Gramian can do."""

    def weights(self, gramian: Tensor, losses: Losses) -> Tensor:
        return gramian.diagonal().rsqrt()


class Model(nn.Module):
    """A problem as one module that gives its losses."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.trunk, self.heads, self.problem = problem.trunk, problem.heads, problem

    def forward(self) -> list[Tensor]:
        return self.problem.forward()[1]


def make_step(method: str, model_name: str, n_losses: int) -> Callable[[], None]:
    problem = make_problem(model_name, n_losses)
    layers = {
        "MultiLossLayer": GradDrop(),
        "MultiLossLayer, marginalized": GradDrop(marginalize=0),
        "MultiLossLayer, Gramian": UnitRows(),
    }
    if method in layers:
        problem.share = MultiLossLayer(n_losses, layers[method])
    wrapped: dict[str, tuple[GradDrop, str | nn.Module]] = {
        'at="activations"': (GradDrop(), "activations"),
        "at=module, marginalized": (GradDrop(marginalize=0), problem.trunk),
        'at="parameters"': (GradDrop(), "parameters"),
    }
    if method == BARE:
        message = torch.zeros((n_losses + 1) * 512)
        problem.trunk.register_full_backward_pre_hook(lambda *_: dist.all_reduce(message))
    model = DistributedDataParallel(Model(problem))
    sgd = torch.optim.SGD(problem.parameters(), lr=1e-3)
    if method not in wrapped:

        def plain() -> None:
            sgd.zero_grad()
            torch.autograd.backward(torch.stack(model()).sum())
            sgd.step()

        return plain
    transform, at = wrapped[method]
    optimizer = MultiLossOptimizer(sgd, transform, at=at)

    def several() -> None:
        optimizer.zero_grad()
        optimizer.step(model())

    return several


METHODS = (
    PLAIN,
    AGAIN,
    BARE,
    "MultiLossLayer",
    "MultiLossLayer, marginalized",
    "MultiLossLayer, Gramian",
    'at="activations"',
    "at=module, marginalized",
    'at="parameters"',
)


def measure(rank: int, port: int, args: argparse.Namespace, found: Path) -> None:
    """All methods by turns on one rank; rank 0 writes down what it found."""
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=args.ranks)
    steps = {method: make_step(method, args.model, args.losses) for method in METHODS}
    calls = {method: _count_collectives(step) for method, step in steps.items()}
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    order = random.Random(0)  # the same on all ranks
    gc.collect()
    gc.freeze()
    for _ in range(args.repeats):
        for method in order.sample(METHODS, len(METHODS)):
            gc.collect()
            dist.barrier()
            start = perf_counter()
            steps[method]()
            seconds[method].append(perf_counter() - start)
    if rank == 0:
        found.write_text(json.dumps({m: {"seconds": seconds[m], "calls": calls[m]} for m in METHODS}))
    dist.barrier()
    dist.destroy_process_group()


def _count_collectives(step: Callable[[], None]) -> list[int]:
    """Bytes of each of our collective calls in one step, after two to warm up. DDP's own are made in C++."""
    step()
    step()
    found: list[int] = []
    all_reduce, all_gather = dist.all_reduce, dist.all_gather

    def reduced(tensor: Tensor, **settings: Any) -> Any:
        found.append(tensor.nbytes)
        return all_reduce(tensor, **settings)

    def gathered(tensors: list[Tensor], tensor: Tensor, **settings: Any) -> Any:
        found.append(tensor.nbytes)
        return all_gather(tensors, tensor, **settings)

    dist.all_reduce, dist.all_gather = reduced, gathered  # type: ignore[assignment]
    try:
        step()
    finally:
        dist.all_reduce, dist.all_gather = all_reduce, all_gather
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on each rank")
    parser.add_argument("--model", choices=list(MODELS), default="mlp")
    parser.add_argument("--losses", type=int, default=8, help="number of losses T")
    parser.add_argument("--repeats", type=int, default=31, help="rounds in which every method takes its turn")
    parser.add_argument("--output", type=Path, help="where to write all results as JSON")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        processes = [context.Process(target=measure, args=(rank, port, args, found)) for rank in range(args.ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit("A rank has failed; see its error above.")
        results = json.loads(found.read_text())
    table = Table("method", "ms", "over plain: quartiles", "our calls", "bytes")
    plain = [sum(pair) / 2 for pair in zip(results[PLAIN]["seconds"], results[AGAIN]["seconds"], strict=True)]
    for method, result in results.items():
        ratios = [seconds / base for seconds, base in zip(result["seconds"], plain, strict=True)]
        low, middle, high = quartiles(ratios)
        milliseconds = 1000 * quartiles(result["seconds"])[1]
        calls = result["calls"]
        table.add_row(
            method, f"{milliseconds:.1f}", f"{low:.2f}  {middle:.2f}  {high:.2f}", str(len(calls)), f"{sum(calls):,}"
        )
    console = Console()
    console.print(f"{args.model}, T = {args.losses}, {args.ranks} ranks of {args.threads} thread(s)")
    console.print(table)
    if args.output is not None:
        args.output.write_text(json.dumps({"settings": vars(args) | {"output": str(args.output)}, **results}) + "\n")


if __name__ == "__main__":
    main()
