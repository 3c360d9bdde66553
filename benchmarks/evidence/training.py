"""One run: one method with one setting and one seed, trained for its steps. No tuning, no statistics, no files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from problems.base import Batch, Problem
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR

import mtopt

from .methods import TRUNK, Method, Setting, transforms_of

EPOCHS = 20  # in a run, for the methods that count them
FAILURES = (ArithmeticError, RuntimeError, ValueError)

Record = dict[str, Any]
MakeUpdate = Callable[[Problem, nn.Module, Optimizer], Callable[[Batch], Mapping[str, Tensor]]]


class Training:
    """A model, its optimizer and its batches.

    Args:
        make_update: From a problem, a model and an inner optimizer to what a step does with a batch, up to the update.
        setting: Of the method.
        steps: After as many the learning rate is 0.
        seed: Of the first weights and of the batches.
    """

    def __init__(self, problem: Problem, make_update: MakeUpdate, setting: Setting, steps: int, seed: int) -> None:
        self.problem = problem
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = problem.make_model()
        inner = AdamW(self.model.parameters(), lr=setting.lr, weight_decay=setting.weight_decay)
        self.scheduler = LinearLR(inner, 1.0, 0.0, total_iters=steps)
        self.update = make_update(problem, self.model, inner)
        self.batches = problem.batches(seed)
        self.steps = steps

    def step(self) -> Mapping[str, Tensor]:
        """Take a step; returns the losses before it."""
        losses = self.update(next(self.batches))
        self.scheduler.step()
        return losses

    def record(self, split: str) -> Record:
        """Train, and measure on held-out data; a run that fails or has a loss that is not finite says so."""
        start = time.perf_counter()
        try:
            for i in range(self.steps):
                if not all(map(math.isfinite, (loss.item() for loss in self.step().values()))):
                    return {"diverged": f"a loss was not finite in step {i}"}
        except FAILURES as error:
            return {"diverged": f"{type(error).__name__}: {error}"[:200]}
        seconds = time.perf_counter() - start
        self.model.eval()
        with torch.no_grad():
            metrics = self.problem.metrics(self.model, split)
        score = self.problem.score(metrics)
        if not math.isfinite(score):
            return {"diverged": "the outputs were not finite"}
        rounded = {task: round(value, 5) for task, value in metrics.items()}
        return {"score": round(score, 5), "metrics": rounded, "seconds": round(seconds, 3)}


def ours(method: Method, setting: Setting, steps: int, seed: int) -> MakeUpdate:
    """A step of mtopt."""

    def make(problem: Problem, model: nn.Module, inner: Optimizer) -> Callable[[Batch], Mapping[str, Tensor]]:
        transforms = transforms_of(method, setting, seed)
        at: Any = model.trunk if method.at == TRUNK else method.at
        optimizer = mtopt.MultiLossOptimizer(inner, transforms, at=at, length=method.length)
        observers = [transform for transform in transforms if isinstance(transform, mtopt.FAMO)]
        counters = [transform for transform in transforms if isinstance(transform, (mtopt.DWA, mtopt.STCH))]
        count = 0

        def update(batch: Batch) -> Mapping[str, Tensor]:
            nonlocal count
            count += 1
            optimizer.zero_grad()
            losses = problem.losses(model, batch)
            optimizer.step(losses)
            for famo in observers:
                with torch.no_grad():
                    famo.observe(problem.losses(model, batch))
            for counter in counters if count % max(1, steps // EPOCHS) == 0 else ():
                counter.epoch_end()
            return losses

        return update

    return make
