"""compare: trains methods from the same weights on the same batches; Comparison: what it found."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from .._transform import LossesLike
from .arguments import BatchesLike, MethodsLike, SitesLike
from .extras import extra
from .progress import Report, progress_bar
from .records import Records
from .runs import RunRecord, check_unchanged, train
from .statistics import Summary, summarize
from .study import Study, checked_study
from .table import as_rich, as_text, sentences, terminal_width, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found; `print` it for a table in plain text.

    Attributes:
        study: What was compared: `methods` with their settings, `seeds`, `epochs` or `seconds`, `at`,
            whether there are `metrics`, how many `threads` torch has, `versions`.
        runs: The finished runs, ordered by seed, then method. Each is a dict with `method`, `seed`, `losses` and
            `metrics` by name, `curves` (for each loss its mean in each of 20 equal parts of the run), `steps`,
            `seconds_per_step` (the median, without the first two steps) by the `clock` (CPU time of this process, on
            all its threads; of a model elsewhere wall-clock time), `memory` (peak bytes of the second step, beyond
            weights and optimizer state; `None` where not known), `diverged` (`None`, or what was not finite),
            `optimizer` and `start` (a digest of the weights that it started from).
        complete: Whether all runs are finished.
    """

    study: Mapping[str, Any]
    runs: list[RunRecord]
    complete: bool

    @property
    def _summary(self) -> Summary:
        return summarize(self.runs, self.study["methods"], self.study["threads"])

    def table(self) -> Any:
        """The table as a `rich.table.Table`, for a terminal or a notebook."""
        return as_rich(self._summary)

    def plot(self, path: str | os.PathLike[str] | None = None, *, trade_off: Sequence[str] | None = None) -> Figure:
        """Draw the losses over the training, two quantities against each other, and the costs.

        Args:
            path: Where to save the picture; its suffix chooses the format. `None` saves nothing.
            trade_off: Names of two losses or metrics; a name that both have is the metric's. `None` takes the first
                two metrics, or losses.

        Returns:
            The figure, of matplotlib.

        Raises:
            ImportError: If matplotlib is not installed.
            OSError: If `path` cannot be written.
            ValueError: If no run is finished, `trade_off` are not two names, or the suffix of `path` is no format.
        """
        from .plot import plot

        return plot(self.runs, self._summary, trade_off, path)

    def to_dict(self) -> dict[str, Any]:
        """The summary, JSON-able: `quantities` with the results of each method, `costs`, and what was compared."""
        summary = dataclasses.asdict(self._summary)
        return {"study": dict(self.study), "complete": self.complete, **summary}

    def text(self, width: int | None = None) -> str:
        """The table and what it says, in plain characters; `print` shows it.

        Args:
            width: Columns to keep to: a table that is wider goes without its verdicts, which are in the sentences below
                it, too. `None` is any width.
        """
        length = _count(self.study["epochs"], "epoch") if "epochs" in self.study else f"{self.study['seconds']:g} s"
        n_methods, n_seeds = len(self.study["methods"]), len(self.study["seeds"])
        first = f"{n_methods} methods, {_count(n_seeds, 'seed')}, {length} each"
        if not self.complete:
            first += f"; only {len(self.runs)} of {n_methods * n_seeds} runs are finished"
        if not self.runs:
            return first
        summary = self._summary
        said = [*sentences(summary), *_first_divergence(self.runs)]
        return "\n".join([first, "", as_text(summary, width), "", *wrapped(said, width)])

    def __str__(self) -> str:
        return self.text()


def compare(
    make_model: Callable[[], nn.Module],
    make_losses: Callable[[nn.Module, Any], LossesLike],
    batches: BatchesLike,
    methods: MethodsLike,
    seeds: int | Iterable[int] = 5,
    *,
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    make_metrics: Callable[[nn.Module], Mapping[str, float | Tensor]] | None = None,
    at: SitesLike = "activations",
    epochs: int = 1,
    seconds: float | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Comparison:
    """Train each method, and the plain sum, from the same weights on the same batches, and say what differs.

    With each seed, all methods start from weights that are the same bit for bit (else this raises) and see the same
    batches in the same order, whatever they draw themselves. A run whose loss is NaN or infinite stops and counts as
    diverged; the others go on. Ctrl-C ends the study: what is finished is shown on stderr, and returned as a
    `Comparison` with `complete=False`; calling it again with the same `output` goes on from there, also after a kill.
    It runs in one process, and leaves the global random state as it was.

    Args:
        make_model: Makes a new model, by global random numbers (torch's, NumPy's or Python's), which are seeded.
        make_losses: From a model and a batch to a list or a dict of losses, the same in each call; `None` is a loss
            that is absent.
        batches: Batches that can be gone through again and again, as a list or a DataLoader; or a function of the
            seed, called at the start of each epoch, that returns those of one epoch. What it or a DataLoader draws
            globally differs from epoch to epoch, and is the same for all methods.
        methods: Names of mtopt's methods; or a dict of a transform, a list of them, or a function that makes these, by
            names of your own. Each run has copies of its own, whose random numbers differ from seed to seed.
        seeds: How many, counted from 0, or which. Below 3 there is no test.
        make_optimizer: From the parameters to the optimizer that is wrapped; `None` is `Adam(parameters, lr=1e-3)`. A
            learning-rate scheduler goes along with it: `inner.register_step_post_hook(lambda *_: scheduler.step())`.
        make_metrics: From the trained model, in `eval()`, to a dict of numbers, of which larger ones are better: give
            the negative of an error.
        at: Where gradients are combined: `"activations"`, `"parameters"`, the name of a submodule, or a function of
            the model that returns a module or several. Or a dict of these by the methods' names; one that it does not
            name has `"activations"`.
        epochs: Passes over the batches in each run.
        seconds: Instead of `epochs`: each run trains for so long by the wall clock, over the batches again and again.
            The clock starts after two steps.
        output: A file, JSON lines, that each finished run is added to. If it has runs of the same study, these are not
            repeated. Of your functions only a change in initial weights, in the optimizer's settings or in the names of
            losses is noticed: give another file after any other.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The result. Losses are means over the last epoch, or the last tenth of the steps where `seconds` are given.
        Tests are paired t tests against the plain sum on the same seeds, corrected (Holm) for all methods and
        quantities; "no difference found" means p ≥ 0.05.

    Raises:
        ImportError: If scipy, or rich for the progress bar, is not installed.
        OSError: If `output` cannot be written; before any training.
        TypeError: If an argument, or what a function returns, has the wrong type.
        ValueError: If an argument has a wrong value, such as a method that does not exist; if `output` is of another
            study; if `make_losses` returns no losses or others than before; or if initial weights or optimizers differ.

    Example:
        >>> import torch
        >>> def losses(model, batch):
        ...     prediction = model(batch)
        ...     return {"up": (prediction - 1).square().mean(), "down": (prediction + 1).square().mean()}
        >>> batches = [torch.ones(4, 2), torch.zeros(4, 2), torch.eye(2)]
        >>> result = compare(lambda: nn.Linear(2, 1), losses, batches, ["GradDrop"], seeds=3, progress=False)
        >>> [f"{run['method']}, seed {run['seed']}" for run in result.runs[:2]]
        ['plain sum, seed 0', 'GradDrop, seed 0']
        >>> print(str(result).splitlines()[0])
        2 methods, 3 seeds, 1 epoch each
    """
    study = checked_study(
        make_model,
        make_losses,
        batches,
        methods,
        seeds,
        make_optimizer=make_optimizer,
        make_metrics=make_metrics,
        at=at,
        epochs=epochs,
        seconds=seconds,
    )
    for module in ["scipy.special", *(["rich.progress"] if progress else [])]:
        extra(module)
    description = study.description()
    records = Records(output, description)
    try:
        _train_all(study, records, progress)
    except KeyboardInterrupt:
        result = _comparison(study, description, records.runs)
        print(f"Interrupted. {result.text(terminal_width())}\n{_how_to_go_on(records)}", file=sys.stderr)
        return result
    return _comparison(study, description, records.runs)


def _train_all(study: Study, records: Records, progress: bool) -> None:
    """All runs that are not finished yet."""
    check_unchanged(study, records.runs)
    order = list(study.order())
    finished = {(run["method"], run["seed"]) for run in records.runs}
    left = [run for run in order if run not in finished]
    with progress_bar(len(order), progress) as report:
        for i, (method, seed) in enumerate(left, start=len(order) - len(left)):
            report_share = partial(_report_share, report, f"seed {seed}, {method}", i)
            report_share(0.0)
            try:
                run = train(study, method, seed, records.runs, report_share)
            except Exception as error:
                error.add_note(f"While training {method!r} with seed {seed}. {_how_to_go_on(records)}")
                raise
            records.add(run)
        report("", len(order))


def _report_share(report: Report, what: str, done: int, share: float) -> None:
    report(what, done + share)


def _how_to_go_on(records: Records) -> str:
    if not records.runs:
        return "No run is finished yet."
    if records.path is None:
        return "Finished runs are not kept: compare keeps them in a file, if `output` names one."
    return f"Finished runs are in {records.path}: call compare again with the same arguments to go on."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _first_divergence(runs: Iterable[RunRecord]) -> Iterator[str]:
    for run in runs:
        if run["diverged"]:
            yield f"The first that diverged: {run['method']}, seed {run['seed']}: {run['diverged']}."
            return


def _comparison(study: Study, description: dict[str, Any], runs: list[RunRecord]) -> Comparison:
    by_place = {(run["seed"], run["method"]): run for run in runs}
    ordered = [by_place.get((seed, method)) for seed in study.seeds for method in study.methods]
    return Comparison(description, [run for run in ordered if run is not None], None not in ordered)
