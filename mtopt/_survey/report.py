"""conflict_report: from one batch, how the losses' gradients conflict, where to combine them, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._backward.fan_out import hidden_layers_refused
from .._checks import check_chunk_size
from .._combine.combination import without_autocast
from .._combine.conflict import Conflict
from .._graph.batching import Batching
from .._graph.losses import read_losses
from .._transform import LossesLike
from .checks import check_graph, check_model, check_rows, combines, notes_on, refusals_explained
from .clock import clock_of
from .cost import cost_at_activations, cost_at_module, cost_at_parameters, plain_seconds
from .findings import Findings
from .modules import Modules
from .noise import signals
from .places import best_place, overlap_of
from .rows import (
    Batch,
    ConflictAt,
    batch_of,
    conflict_at,
    is_leaf,
    made_by,
    rows_at,
    rows_at_meetings,
    untouched,
)
from .table import as_text
from .verdict import Measured, Numbers, doubtful, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class ConflictReport(Findings):
    """What `conflict_report` found. `print` it, or take the numbers.

    A `conflict` of a module or a meeting has `purity` (the mean), `share` (of the coordinates with gradients of both
    signs, among those with a gradient), `norms` `(T,)`, `cosines` and `gramian` `(T, T)`, in the order of `losses`.

    Attributes:
        losses: What each loss that is present is called.
        modules: Each with its `name`, the `size` of what is shared of its own parameters, the `losses` that reach it,
            and its `conflict`; in the order of the forward pass.
        total: The conflict over all shared parameters.
        signals: How many standard errors each product of two gradients is from 0, `(T, T)`: from the products between
            eight different parts of the batch, so that what two losses have in common by chance does not count. It is
            measured for up to 8 losses whose cosine with another is below -0.1; NaN for the others, and where the batch
            cannot be parted.
        meetings: Where several losses meet at an activation: the `name` of the operation that made it, its `shape`,
            `size`, `losses` and `conflict`. It is what `at="activations"` acts on.
        best: Where to combine the gradients: `at`, the name of the `module`, the `code` to write, and the `reason`.
        clock: What the seconds below are: CPU time of one thread, whatever other programs do, or wall-clock time where
            the model is not on a CPU.
        plain_seconds: What a backward pass of the plain sum takes.
        costs: The predicted backward at each place where there is something to combine: `at`, `seconds`, `times` (as a
            multiple of the plain sum's), `memory` (bytes by which the peak grows at most, with GradDrop) and
            `memory_of_rows` (the same for methods that need all gradients at once, those from the Gramian; `None` where
            they would have nothing to combine).
        notes: What else one should know.
        verdict: What follows from all that, in sentences, the most urgent first.
    """

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the share of conflict per module, and the cosines.

        Args:
            path: Where to save the picture; its suffix chooses the format. `None` saves nothing.

        Returns:
            The figure, of matplotlib.

        Raises:
            ImportError: If matplotlib is not installed.
            OSError: If `path` cannot be written.
            ValueError: If the suffix of `path` is no format.
        """
        from .plot import draw  # matplotlib is slow to load

        return draw(self, path)

    def text(self, width: int = 100) -> str:
        """The report for people, in `width` columns, from 80 to 120; `print` shows it in 100."""
        return as_text(self, width)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<ConflictReport: {len(self.losses)} losses, {len(self.modules)} modules; print it to read it>"


def conflict_report(losses: LossesLike, model: nn.Module, *, chunk_size: int | None = None) -> ConflictReport:
    """Look at one batch before training: do the losses' gradients conflict, where, and what would it cost to act?

    It takes the gradients of each loss for all shared parameters, and holds them for the moment: T times the shared
    parameters' memory, or three times that where it must be told whether a conflict is chance. It takes about 5 T
    backward passes, more where these are so short that the clock needs them, and 9 for each loss whose gradient points
    apart from another one's. The `.grad`, the random state and the model's buffers stay as they were, and a backward
    pass of the losses may follow. Hooks on tensors and modules run, as in any backward pass, since they may be part of
    the gradient; those on what is accumulated in `.grad` do not.

    Args:
        losses: As for `MultiLossOptimizer.backward`: a list, a dict or a 1-D tensor; `None` is absent.
        model: The model that made them; its modules give the report its rows.
        chunk_size: Losses differentiated together by vmap. `None` chooses, 1 asks for a loop.

    Returns:
        A report. `print(report)` shows it as a table, `.to_dict()` gives all numbers, `.plot()` draws them.

    Raises:
        TypeError: If an argument has the wrong type, or the losses meet at a complex tensor.
        ValueError: If there are not two losses; if one is not a scalar, needs no gradient, or stands twice.
        RuntimeError: If the losses share no parameter of the model; if the graph hides what they share (a compiled
            whole model, a reentrant checkpoint) or was freed; if the model is wrapped for several processes, or has a
            `MultiLossLayer` at work.

    Example:
        >>> import torch
        >>> model = nn.ModuleDict({"trunk": nn.Linear(4, 4), "a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
        >>> features = model["trunk"](torch.ones(2, 4)).tanh()
        >>> report = conflict_report({"a": model["a"](features).mean(), "b": model["b"](features).mean()}, model)
        >>> [module.name for module in report.modules]
        ['trunk']
        >>> report.best.code
        'mtopt.MultiLossOptimizer(optimizer, at="activations")'
    """
    check_model(model)
    batching = Batching(check_chunk_size(chunk_size))
    present, roots = read_losses(losses)
    if len(present) < 2:
        raise ValueError("`losses` has only one loss that is present, but it takes two to conflict.")
    batch = batch_of(present, roots)
    check_graph(batch.graph, batch.meetings)
    modules = Modules(batch.graph, model)
    with untouched(model), hidden_layers_refused(), without_autocast(batch.device.type), refusals_explained():
        return _surveyed(batch, modules, batching)


def _surveyed(batch: Batch, modules: Modules, batching: Batching) -> ConflictReport:
    arrived = rows_at_meetings(batch)
    if batch.sites and all(overlap_of(at).apart for at in arrived):  # which the graph does not show
        batch = replace(batch, sites=())
        arrived = rows_at_meetings(batch)
    leaves = list(batch.graph.leaves())
    found = rows_at(batch, [(leaf, 0) for leaf in leaves], batching)
    check_rows(batch.graph, found)
    at_leaf = dict(zip(leaves, found, strict=True))
    sites = {name: [(leaf, at_leaf[leaf]) for leaf in mine] for name, mine in modules.shared.items()}
    rows = {name: [at for _, at in mine] for name, mine in sites.items()}
    seen = [conflict_at(batch, name, mine) for name, mine in rows.items()]
    total = Conflict(batch.names)
    for module in seen:
        total.include(module.conflict)
    meetings = [
        conflict_at(batch, made_by(meeting), [at], meeting.shape)
        for meeting, at in zip(batch.several, arrived, strict=True)
        if not is_leaf(meeting.edge)
    ]
    best, edge = best_place(batch, modules, arrived)
    plain = plain_seconds(batch)
    costs = [cost_at_activations(batch, plain, arrived)] if combines(arrived) else []
    if edge is not None:
        costs.append(cost_at_module(batch, plain, edge, best))
    flat = [at for mine in rows.values() for at in mine]
    plain_rows = all(at.plain for at in flat)
    if plain_rows:
        costs.append(cost_at_parameters(batch, plain, flat, batching))
    notes = notes_on(batch, modules, seen, total, plain=plain_rows)
    numbers = _numbers(batch, modules, seen, total)
    if looked_at := doubtful(numbers):
        beyond = signals(batch, list(sites.values()), modules.fed, looked_at)
        numbers = _numbers(batch, modules, seen, total, *beyond)
    return ConflictReport(
        tuple(batch.names),
        tuple(seen),
        total,
        torch.tensor(numbers.total.signals),
        tuple(meetings),
        best,
        clock_of(batch.device),
        plain,
        tuple(costs),
        notes,
        verdict(numbers),
    )


def _numbers(
    batch: Batch,
    modules: Modules,
    seen: Sequence[ConflictAt],
    total: Conflict,
    at_modules: Sequence[Tensor] | None = None,
    at_all: Tensor | None = None,
) -> Numbers:
    """What the verdict is made from; signals are not known unless they are given."""
    unknown = torch.full((len(batch.losses),) * 2, nan, dtype=torch.float64)

    def measured(conflict: Conflict, signal: Tensor, name: str = "", code: str = "") -> Measured:
        return Measured(conflict.norms.tolist(), conflict.cosines.tolist(), signal.tolist(), name, code)

    there = [
        measured(module.conflict, signal, module.name, modules.written(module.name))
        for module, signal in zip(seen, at_modules or [unknown] * len(seen), strict=True)
    ]
    return Numbers(batch.names, measured(total, unknown if at_all is None else at_all), there)
