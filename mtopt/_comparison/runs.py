"""One run: one method trained with one seed, and what is known of it afterwards. No statistics and no files."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .._optimizer import MultiLossOptimizer
from .._transform import LossesLike
from .batches import Batches
from .memory import peak_bytes
from .randomness import RandomStream
from .returned import described, losses_by_name, new_model, new_optimizer, numbers_by_name, value_of, weights_digest
from .study import Study

PARTS = 20  # of a run, for the curves of its losses
FREE_STEPS = 2  # The first warms up and in the second memory is measured: their time counts for nothing.
CPU, WALL = "CPU time", "wall-clock time"

RunRecord = dict[str, Any]
"""What is known of a finished run, JSON-able; the keys are told in `Comparison`."""


def train(
    study: Study, method: str, seed: int, earlier: Sequence[RunRecord], report: Callable[[float], None]
) -> RunRecord:
    """Train one method with one seed.

    Args:
        study: What all runs have in common.
        method: Name of the method.
        seed: What the global random numbers begin with.
        earlier: The finished runs, to which this one must fit.
        report: Called after each step with the share of the run that is done.
    """
    with RandomStream(seed):
        training = _Training(study, method, seed, earlier)
        training.run(report)
        return training.record(earlier)


def check_unchanged(study: Study, earlier: Sequence[RunRecord]) -> None:
    """Raise `ValueError` if a run would not begin as it did before a study was stopped."""
    for run in earlier[:1]:
        with RandomStream(run["seed"]):
            _begin(study, run["method"], run["seed"], earlier)


def _begin(
    study: Study, method: str, seed: int, earlier: Sequence[RunRecord]
) -> tuple[nn.Module, Optimizer, dict[str, str]]:
    """The model and the optimizer of a run, and by what they are known again."""
    model = new_model(study)
    inner = new_optimizer(study, model)
    origin = {"optimizer": described(inner), "start": weights_digest(model)}
    for run in earlier:
        if run["seed"] == seed and run["start"] != origin["start"]:
            raise ValueError(
                f"`make_model` gave {method!r} other weights to start from than {run['method']!r} with the same "
                f"seed, {seed}. Make a new model in each call, by torch's global random numbers alone; if you have "
                f"changed it since the first runs, give another `output`."
            )
        if run["optimizer"] != origin["optimizer"]:
            raise ValueError(
                f"`make_optimizer` made {origin['optimizer']}, but before {run['optimizer']}. Make the same in each "
                f"call; if you have changed it since the first runs, give another `output`."
            )
    return model, inner, origin


class _Training:
    def __init__(self, study: Study, method: str, seed: int, earlier: Sequence[RunRecord]) -> None:
        self.study, self.method, self.seed = study, method, seed
        self.model, inner, self.origin = _begin(study, method, seed, earlier)
        self.device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        self.transforms = study.transforms(method, seed)
        self.optimizer = MultiLossOptimizer(inner, self.transforms, at=study.sites(method, self.model))
        self.batches = Batches(study.batches, seed)
        self.names: list[str] | None = list(earlier[0]["losses"]) if earlier else None
        self.values: list[list[float]] = []  # of each step, NaN for an absent loss
        self.last_epoch = 0  # its first step
        self.clock = CPU if self.device.type == "cpu" else WALL
        self.times: list[float] = []
        self.memory: int | None = None
        self.diverged: str | None = None
        self.deadline = math.inf

    # -- training ------------------------------------------------------------------------------------------------------

    def run(self, report: Callable[[float], None]) -> None:
        with self.batches.seeded():
            for epoch in range(self.study.epochs) if self.study.seconds is None else itertools.count():
                self.last_epoch = len(self.values)
                for batch in self.batches.epoch():
                    self._step(batch)
                    report(self._share_done(epoch))
                    if self.diverged or time.perf_counter() >= self.deadline:
                        break
                if self.diverged or time.perf_counter() >= self.deadline:
                    break
                for transform in self.transforms:
                    if hasattr(transform, "epoch_end"):  # DWA and STCH count epochs
                        transform.epoch_end()
        if not self.diverged and not all(p.isfinite().all() for p in self.model.parameters() if not is_lazy(p)):
            self.diverged = f"parameters were not finite after the last step, {len(self.values)}"

    def _step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        number = len(self.values)
        if number == FREE_STEPS - 1:
            self.memory = peak_bytes(lambda: self._update(batch), self.device)
            if self.study.seconds is not None:
                self.deadline = time.perf_counter() + self.study.seconds
            return
        before = self._now()
        self._update(batch)
        if number >= FREE_STEPS:
            self.times.append(self._now() - before)

    def _now(self) -> float:
        """On a CPU, the time of this process alone, on all its threads: other programs do not count."""
        if self.clock == CPU:
            return time.process_time()
        torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def _update(self, batch: Any) -> None:
        losses, entries = self._losses(batch)
        self.values.append([math.nan if loss is None else value_of(loss) for loss in entries.values()])
        for (name, loss), value in zip(entries.items(), self.values[-1], strict=True):
            if loss is not None and not math.isfinite(value):
                self.diverged = f"loss {name} was {value} in step {len(self.values)}"
                return
        self.optimizer.step(losses)
        for transform in self.transforms:
            if hasattr(transform, "observe"):  # FAMO compares the same batch before and after
                transform.observe(self._losses(batch)[0])

    def _losses(self, batch: Any) -> tuple[LossesLike, dict[str, Tensor | None]]:
        """As the optimizer takes them, and by name; a dict in the same order in each step."""
        losses = self.study.make_losses(self.model, batch)
        entries = losses_by_name(losses)
        if self.names is None:
            self.names = list(entries)
        if set(entries) != set(self.names):
            raise ValueError(
                f"`make_losses` returned {len(entries)} losses, {list(entries)}, but {len(self.names)} before, "
                f"{self.names}. Return the same in each call, and None for a loss that is absent."
            )
        entries = {name: entries[name] for name in self.names}
        return (entries if isinstance(losses, Mapping) else losses), entries

    def _share_done(self, epoch: int) -> float:
        if self.study.seconds is not None:
            return max(0.0, 1 - (self.deadline - time.perf_counter()) / self.study.seconds)
        n_batches = self.batches.n_batches
        part = (len(self.values) - self.last_epoch) / n_batches if n_batches else 0.0
        return (epoch + part) / self.study.epochs

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def record(self, earlier: Sequence[RunRecord]) -> RunRecord:
        return {
            "method": self.method,
            "seed": self.seed,
            "losses": self._mean_losses(),
            "curves": self._curves(),
            "metrics": self._metrics(earlier),
            "steps": len(self.values),
            "seconds_per_step": median(self.times) if self.times else None,
            "clock": self.clock,
            "memory": self.memory,
            "diverged": self.diverged,
            **self.origin,
        }

    def _mean_losses(self) -> dict[str, float | None]:
        """Over the last epoch, or the last tenth of the steps where time is equal; `None` for a loss absent there."""
        assert self.names is not None
        if self.diverged:
            return dict.fromkeys(self.names)
        first = self.last_epoch if self.study.seconds is None else len(self.values) * 9 // 10
        return dict(zip(self.names, _means(self.values[first:]), strict=True))

    def _curves(self) -> dict[str, list[float | None]]:
        """The mean of each loss in each of the equal parts of the run, which are fewer where there are fewer steps."""
        assert self.names is not None
        if self.diverged:
            return {name: [] for name in self.names}
        n = min(PARTS, len(self.values))
        ends = [len(self.values) * i // n for i in range(n + 1)]
        parts = [_means(self.values[start:end]) for start, end in pairwise(ends)]
        return dict(zip(self.names, map(list, zip(*parts, strict=True)), strict=True))

    def _metrics(self, earlier: Sequence[RunRecord]) -> dict[str, float | None]:
        if self.study.make_metrics is None or self.diverged:
            return {}
        self.model.eval()
        before = next((run["metrics"] for run in earlier if not run["diverged"]), None)
        return numbers_by_name(self.study.make_metrics(self.model), before)


def _means(values: Sequence[Sequence[float]]) -> list[float | None]:
    """Of each column, without the NaN of absent losses; `None` where nothing is left."""
    present = [[value for value in column if not math.isnan(value)] for column in zip(*values, strict=True)]
    return [fmean(column) if column else None for column in present]
