"""Does GradDrop generalize better in trainings that are long enough to overfit, and are stopped early? The trainings.

`python benchmarks/overfit.py` tunes and tests everything, and goes on where it was stopped. See benchmarks/README.md.
What is compared, and what came out, is in `overfit_page.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from data import load
from overfit_page import DECAY, DROPOUT, Run, finished, publish, tables, testing, tuning, ways
from problems import problem
from problems.base import Batch, Examples, TrunkAndHeads, parts, shuffled
from problems.pictures import TwoPictures, partners
from rich.progress import track
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

import mtopt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "overfit.jsonl"
TOGETHER = 15  # networks in one pass
EVERY = 20  # steps between two looks at the validation data
NONE = -100  # in place of a label that an example does not have; PyTorch's sign for it


@dataclass(frozen=True)
class Problem:
    """Data, and a network of two hidden layers with a head for each task.

    Attributes:
        splits: "training", "validation" and "test" examples.
        classes: Of each task; 1 where its answer is yes or no.
        hidden: Widths of the layers.
        steps: Of a training.
        batch_size: Of training.
        source: Other examples to train with, as many of them in a batch.
    """

    tasks: Sequence[str]
    splits: Mapping[str, Examples]
    classes: int = 10
    hidden: tuple[int, int] = (64, 64)
    steps: int = 400
    batch_size: int = 64
    source: Examples | None = None

    def make_model(self, seed: int) -> TrunkAndHeads:
        width, (first, second) = self.splits["training"].inputs.shape[1], self.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trunk = nn.Sequential(nn.Linear(width, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU())
            return TrunkAndHeads(trunk, {task: nn.Linear(second, self.classes) for task in self.tasks})

    def batches(self, seed: int) -> Iterator[Batch]:
        """Batches for ever, the same for the same seed."""
        sets = [examples for examples in (self.splits["training"], self.source) if examples is not None]
        orders = [shuffled(len(examples.inputs), self.batch_size, seed) for examples in sets]
        for indices in zip(*orders, strict=True):
            picked = [examples[index] for examples, index in zip(sets, indices, strict=True)]
            yield tuple(torch.cat(column) for column in zip(*picked, strict=True))


class TwoDigits(TwoPictures):
    """Two handwritten digits on one canvas."""

    def __init__(self) -> None:
        digits = load("digits")
        found = zip(("training", "validation", "test"), parts(len(digits["labels"]), (2000, 1000, 3000)), strict=True)
        self.items = {split: (part, partners(part, len(part))) for split, part in found}
        self.make_splits(digits, digits, 6, 36)


def of_all(found: Any, training: int, **settings: Any) -> Problem:
    """A problem whose losses are of the same examples, with the first ones to train with, which are in random order."""
    splits = {split: Examples(small(of.inputs), of.targets) for split, of in found.splits.items()}
    splits["training"] = Examples(*(column[:training] for column in vars(splits["training"]).values()))
    return Problem(found.tasks, splits, **settings)


def small(inputs: Tensor) -> Tensor:
    """Pictures flat, and those of 28×28 in half their size."""
    return (functional.avg_pool2d(inputs, 2) if inputs.shape[-1] == 28 else inputs).flatten(1)


def transfer() -> Problem:
    found: Any = problem("transfer")
    images, labels = found.source
    targets = {split: torch.stack([torch.full_like(of, NONE), of], 1) for split, (_, of) in found.target.items()}
    splits = {split: Examples(small(found.target[split][0]), of) for split, of in targets.items()}
    source = Examples(small(images), torch.stack([labels, torch.full_like(labels, NONE)], 1))
    return Problem(found.tasks, splits, source=source)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "yeast": lambda: of_all(problem("yeast"), 1400, classes=1, steps=600, batch_size=128),
    "two_digits": lambda: of_all(TwoDigits(), 500, steps=500),
    "multi_fashion": lambda: of_all(problem("multi_fashion"), 800, steps=500),
    "census": lambda: of_all(problem("census"), 1500, classes=1, hidden=(32, 32), batch_size=128),
    "transfer": transfer,
}
QUICK: dict[str, Callable[[], Problem]] = {"quick_digits": lambda: of_all(problem("quick_digits"), 1000, steps=40)}


@cache
def problem_of(name: str) -> Problem:
    return (PROBLEMS | QUICK)[name]()


class Layers(nn.Module):
    """A linear layer of each network: inputs `(R, N, D)`, or `(N, D)` for all."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


def stacked(models: Sequence[TrunkAndHeads], dropout: float) -> TrunkAndHeads:
    """Networks of one shape as one, in the first dim of its parameters; what works number by number works in each."""
    trunk: list[nn.Module] = []
    for layers in zip(*(model.trunk for model in models), strict=True):
        trunk.append(Layers(layers) if isinstance(layers[0], nn.Linear) else nn.ReLU())
        if dropout and isinstance(layers[0], nn.ReLU):
            trunk.append(nn.Dropout(dropout))
    heads = {task: Layers([cast(nn.Linear, model.heads[task]) for model in models]) for task in models[0].heads}
    return TrunkAndHeads(nn.Sequential(*trunk), heads)


class Adams(torch.optim.Optimizer):
    """`torch.optim.AdamW`, with a learning rate for each network."""

    def __init__(self, parameters: Iterator[nn.Parameter], rates: Tensor, decay: float, momentum: float) -> None:
        self.rates = rates[:, None, None]
        super().__init__(parameters, {"decay": decay, "betas": (momentum, 0.999)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            one, two = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
                state["step"] += 1
                state["mean"].lerp_(p.grad, 1 - one)
                state["square"].mul_(two).addcmul_(p.grad, p.grad, value=1 - two)
                root = state["square"].div(1 - two ** state["step"]).sqrt_().add_(1e-8)
                p.mul_(1 - group["decay"] * self.rates)
                p.sub_(self.rates / (1 - one ** state["step"]) * state["mean"] / root)


def losses(outputs: Mapping[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
    """Each task's loss in each network `(R,)`: from outputs `(R, N, C)`, targets `(R, N, T)` or, for all, `(N, T)`."""
    found = {}
    for (task, output), target in zip(outputs.items(), targets.unbind(-1), strict=True):
        own = target.expand(output.shape[:2])
        if output.shape[2] == 1:
            each = functional.binary_cross_entropy_with_logits(output.squeeze(2), own, reduction="none")
        else:
            flat = functional.cross_entropy(output.flatten(0, 1), own.flatten(), reduction="none", ignore_index=NONE)
            each = flat.view(own.shape)
        found[task] = each.sum(1) / (own != NONE).sum(1).clamp_min(1)
    return found


def scores(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Each network's accuracy, or area under the curve, as the mean over the tasks that the examples `(N, T)` have."""
    found = []
    for output, target in zip(outputs.values(), targets.unbind(1), strict=True):
        if output.shape[2] == 1:
            found.append(areas_under_curves(output.squeeze(2), target.bool()))
        elif NONE not in target:
            found.append((output.argmax(2) == target).double().mean(1))
    return torch.stack(found).mean(0)


def areas_under_curves(outputs: Tensor, positive: Tensor) -> Tensor:
    """Of the ROC, for each row of outputs; ties count half."""
    last, first = _ranks(outputs), _ranks(outputs.flip(1)).flip(1)  # among equals the later, and the earlier, is larger
    n = positive.sum()
    ranks = (last + first)[:, positive].sum(1) / 2
    return (ranks - n * (n + 1) / 2) / (n * (len(positive) - n))


def _ranks(outputs: Tensor) -> Tensor:
    count = torch.arange(1.0, outputs.shape[1] + 1, dtype=torch.float64).expand(outputs.shape)
    return torch.empty_like(count).scatter_(1, outputs.argsort(dim=1, stable=True), count)


class Best:
    """The weights of each network at the look where a number was largest."""

    def __init__(self, network: nn.Module, n: int) -> None:
        self.network = network
        self.values, self.steps = torch.full((n,), -torch.inf), torch.zeros(n, dtype=torch.long)
        self.weights = {name: p.detach().clone() for name, p in network.named_parameters()}

    def look(self, values: Tensor, step: int) -> None:
        better = values > self.values
        self.values[better], self.steps[better] = values[better].to(self.values), step
        for name, p in self.network.named_parameters():
            self.weights[name][better] = p.detach()[better]


def train(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Runs that differ in rate and seed alone: what they reach at the best validation, and at the end."""
    problem, way, strength = problem_of(runs[0].problem), ways(runs[0].problem)[runs[0].way], runs[0].strength
    torch.manual_seed(runs[0].seed)
    dropout, decay = (strength if runs[0].way == name else 0.0 for name in (DROPOUT, DECAY))
    network = stacked([problem.make_model(run.seed) for run in runs], dropout)
    inner = Adams(network.parameters(), torch.tensor([run.rate for run in runs]), decay, way.momentum)
    at: Any = network.trunk if way.at == "trunk" else way.at
    optimizer = mtopt.MultiLossOptimizer(inner, way.make(strength), at=at)
    streams = {seed: problem.batches(seed) for seed in dict.fromkeys(run.seed for run in runs)}
    now: dict[str, Any] = dict(network.named_parameters())
    best, least = Best(network, len(runs)), Best(network, len(runs))
    for step in range(1, problem.steps + 1):
        new = {seed: next(stream) for seed, stream in streams.items()}
        inputs, targets = (torch.stack(column) for column in zip(*(new[run.seed] for run in runs), strict=True))
        optimizer.zero_grad()
        optimizer.step({task: loss.sum() for task, loss in losses(network(inputs), targets).items()})
        if step % EVERY == 0:
            score, loss = measured(problem, network, now, "validation")
            best.look(score, step)
            least.look(-loss, step)
    found: list[dict[str, Any]] = [asdict(run) for run in runs]
    places = {"best": best.weights, "least loss": least.weights, "end": now}
    for (place, weights), split in itertools.product(places.items(), problem.splits):
        for run, *numbers in zip(found, *measured(problem, network, weights, split), strict=True):
            run.setdefault(place, {})[split] = [round(float(number), 5) for number in numbers]
    for run, at_best, at_least in zip(found, best.steps.tolist(), least.steps.tolist(), strict=True):
        run["best"]["step"], run["least loss"]["step"] = at_best, at_least
    return found


@torch.no_grad()
def measured(problem: Problem, network: nn.Module, weights: dict[str, Any], split: str) -> tuple[Tensor, Tensor]:
    """The score, and the sum of the losses, of each network with these weights."""
    examples = problem.splits[split]
    network.eval()
    outputs = functional_call(network, weights, (examples.inputs,))
    network.train()
    return scores(outputs, examples.targets), torch.stack(list(losses(outputs, examples.targets).values())).sum(0)


def do(runs: Sequence[Run], path: Path, what: str) -> bool:
    """Train what is not finished yet, many together, and write it; whether there was anything."""
    done = finished(path)
    alike = itertools.groupby((r for r in runs if r not in done), key=lambda r: (r.problem, r.way, r.strength))
    groups = [list(group) for _, group in alike]
    groups = [group[start : start + TOGETHER] for group in groups for start in range(0, len(group), TOGETHER)]
    for group in track(groups, description=what, disable=not groups):
        records = train(group)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    return bool(groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--output", type=Path, help="finished runs, one JSON object in a line")
    parser.add_argument("--tables", action="store_true", help="train nothing: print what is finished")
    parser.add_argument("--publish", action="store_true", help="train nothing: fill the tables of docs/overfitting.md")
    parser.add_argument("--quick", action="store_true", help="a trial of the procedure, no evidence")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as trial:
        output = args.output or (Path(trial) / RESULTS.name if args.quick else RESULTS)
        for name in QUICK if args.quick else () if args.tables or args.publish else args.problems:
            while do(tuning(name, finished(output)), output, f"{name}: tuning"):
                pass
            do(testing(name, finished(output)), output, f"{name}: testing")
        if args.publish:
            publish(finished(output), ROOT / "docs" / "overfitting.md")
        else:
            print("\n\n".join(tables(finished(output)).values()))


if __name__ == "__main__":
    main()
