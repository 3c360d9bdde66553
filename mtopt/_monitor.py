"""Monitor: numbers on conflict from some of the steps, from what a step computes anyway. No pictures."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from os import PathLike
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ._backward.inner import memory_of
from ._checks import is_whole
from ._combine.conflict import BINS, Conflict
from ._combine.harm import Harm
from ._layer import MultiLossLayer
from ._optimizer import MultiLossOptimizer
from ._record import Record
from ._transform import Losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CHANGES = 3.0  # times as long or as short: from there on the memory of the inner optimizer is told of
ENDS = 4  # the first and the last quarter of the records are compared


class Writer(Protocol):
    """What is used of a `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...

    def add_histogram_raw(self, tag: str, *args: Any, **kwargs: Any) -> Any: ...


class Monitor:
    r"""Looks at every n-th step of an optimizer or a layer: do the gradients conflict, and what is made of them?

    It takes no backward pass of its own, and changes no gradient and no random number; steps between are not slower.
    At a step that is looked at, the losses' gradients are held until it is done. The numbers, by loss, and by site
    where the losses meet (at parameters all are one site):

    - `loss/NAME`, `weight/NAME`: the loss, and its weight by the loss weightings (1 without); not in a layer.
    - `site0/norm/NAME`: length of its gradient; a GradScaler's factor is taken out where it is known.
    - `site0/cosine/NAME/NAME`: of each two losses' gradients.
    - `site0/purity`: the mean [purity][mtopt.sign_purity] of the coordinates that have a gradient.
    - `site0/conflict`: share of these where gradients have both signs.
    - `site0/alignment`: $2 \|\frac1T \sum_i g_i / \|g_i\|\|^2 - 1$, from -1 (opposite) to 1 (parallel)
      ([arXiv:2502.00604](https://arxiv.org/abs/2502.00604)).
    - `change/NAME`: how much the step that was taken raises the loss to first order, $g_i \cdot \Delta\theta$, whatever
      a method promised: the inner optimizer's history, momentum and weight decay have their part in it. Known once
      the step is done, at `at="parameters"` alone, where each loss has a gradient of each parameter; not where they are
      sharded. `raised` is the share of looks in which it was above 0.
    - `site0/kept/NAME`: sum of the absolute values of its gradient behind the transforms, over that before. Not known
      where several ranks decide together.

    Args:
        watched: A `MultiLossOptimizer` or a `MultiLossLayer` with a transform of the gradients. To look at the plain
            sum, give it `GradDrop(leak=1.0)`, which is the plain sum.
        every: Steps from one look to the next; the first is looked at.
        keep: How many records, the newest, are kept.
        writer: A `SummaryWriter` to which each record is written.

    Raises:
        TypeError: If `watched` is neither an optimizer nor a layer.
        ValueError: If `every` or `keep` is below 1, if `watched` is watched already, or has nothing to look at.

    Example:
        >>> import torch
        >>> from mtopt import MultiLossOptimizer
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1))
        >>> monitor = Monitor(optimizer, every=10)
        >>> z = 2 * w
        >>> optimizer.step({"up": z.sum(), "down": -z[0]})
        >>> monitor.latest["site0/conflict"]
        0.5
    """

    def __init__(
        self,
        watched: MultiLossOptimizer | MultiLossLayer,
        *,
        every: int = 50,
        keep: int = 1000,
        writer: Writer | None = None,
    ) -> None:
        if not isinstance(watched, (MultiLossOptimizer, MultiLossLayer)):
            raise TypeError(
                f"`watched` must be a MultiLossOptimizer or a MultiLossLayer, but it is {type(watched).__name__}."
            )
        for name, number in (("every", every), ("keep", keep)):
            if not is_whole(number) or number < 1:
                raise ValueError(f"`{name}` must be a whole number from 1 on, but it is {number!r}.")
        if not watched.pipeline.gradient_transforms:
            raise ValueError(
                "`watched` has no transform of the gradients, so that it does not see them. GradDrop(leak=1.0) gives "
                "the plain sum, and can be watched."
            )
        if watched.pipeline.watch is not None:
            raise ValueError("`watched` has a Monitor already. Call its `remove()` first.")
        self.every = int(every)
        self.writer = writer
        self.due = False
        self._steps = 0
        self._records: deque[Record] = deque(maxlen=int(keep))
        self._harm: Harm | None = None
        self._inner = watched.inner if isinstance(watched, MultiLossOptimizer) else None
        self._pipeline = watched.pipeline
        self._pipeline.watch = self

    @property
    def latest(self) -> dict[str, float]:
        """The newest record's numbers, for any logger; empty before the first step."""
        return dict(self._records[-1].numbers) if self._records else {}

    @property
    def history(self) -> list[Record]:
        """The records, oldest first."""
        return list(self._records)

    @property
    def raised(self) -> dict[str, float]:
        """For each loss the share of looks in which the step itself raised it to first order; empty if not known."""
        changes: dict[str, list[bool]] = {}
        for record in self._records:
            for name, number in record.numbers.items():
                if name.startswith("change/"):
                    changes.setdefault(name.removeprefix("change/"), []).append(number > 0)
        return {name: sum(above) / len(above) for name, above in changes.items()}

    @property
    def memory(self) -> str:
        r"""A hint where the inner optimizer averages squares of gradients over more steps than these stay alike.

        It compares the lengths of each loss's gradient at the two ends of that time, $1 / (1 - \beta_2)$ steps.
        """
        steps = None if self._inner is None else memory_of(self._inner)
        names = {name for record in self._records for name in record.losses}
        changes = [] if steps is None else [self._change(f"site0/norm/{name}", steps) for name in names]
        most = max((change for change in changes if change is not None), default=1.0)
        if steps is None or most < CHANGES:
            return ""
        return (
            f"within the {steps:,.0f} steps over which the inner optimizer averages squares, lengths of gradients "
            f"change {most:.0f} times: a shorter memory (a beta2 of {1 - 10 / steps:.3g}) may help more than any method"
        )

    def _change(self, name: str, steps: float) -> float | None:
        """By what factor a number has changed within so many steps; `None` where they are not there yet."""
        last = self._records[-1].step
        there = [record for record in self._records if record.numbers.get(name, 0.0) > 0 and record.step > last - steps]
        if len(there) < ENDS * 2 or last - there[0].step < steps / 2:
            return None
        logs = [math.log(record.numbers[name]) for record in there]
        n = len(logs) // ENDS
        return math.exp(abs(fmean(logs[:n]) - fmean(logs[-n:])))

    def __str__(self) -> str:
        raised = [f"{name} in {share:.0%}" for name, share in self.raised.items()]
        told = f"the steps that were looked at raised to first order: {', '.join(raised)}" if raised else ""
        return "\n".join(filter(None, (told, self.memory)))

    def plot(self, path: str | PathLike[str] | None = None, *, site: str = "site0") -> Figure:
        """Draw the losses and the lengths of their gradients, the purity and the cosines over the records.

        Args:
            path: Where to save the picture; its suffix chooses the format. `None` saves nothing.
            site: Which site to draw.

        Returns:
            The figure, of matplotlib.

        Raises:
            ImportError: If matplotlib is not installed.
            OSError: If `path` cannot be written.
            ValueError: If no record has such a site, or the suffix of `path` is no format.
        """
        from ._pictures.monitor import draw

        known = sorted({site for record in self._records for site in record.purity})
        if not known:
            raise ValueError("There is nothing to draw: no step that was looked at has two losses that meet.")
        if site not in known:
            raise ValueError(f"`site` is {site!r}, but the records have {', '.join(known)}.")
        return draw(self.history, site, path)

    def remove(self) -> None:
        """Look no more. What was seen stays."""
        if self._pipeline.watch is self:
            self._pipeline.watch = None

    # -- called by what is watched -------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.due = self._steps % self.every == 0
        self._harm = None
        if self.due:
            self._open = Record(self._steps)
        self._steps += 1

    def weigh(self, losses: Losses, weights: Tensor | None) -> None:
        known = losses.ranks.size == 1 or self._pipeline.uses_values  # else the ranks have not told each other
        if known:
            for i, value in enumerate(losses.values.tolist()):
                self._open.numbers[f"loss/{losses.label(i)}"] = value
        for i, weight in enumerate([1.0] * len(losses) if weights is None else weights.tolist()):
            self._open.numbers[f"weight/{losses.label(i)}"] = weight

    def see(self, conflict: Conflict, kept: dict[str, float]) -> None:
        site = f"site{len(self._open.purity)}"
        cosines = conflict.cosines.tolist()
        self._open.losses = conflict.losses
        self._open.purity[site] = conflict.histogram.tolist()
        self._open.cosines[site] = cosines
        numbers = {f"norm/{name}": norm for name, norm in zip(conflict.losses, conflict.norms.tolist(), strict=True)}
        for (i, one), (j, other) in combinations(enumerate(conflict.losses), 2):
            numbers[f"cosine/{one}/{other}"] = cosines[i][j]
        numbers |= {"purity": conflict.purity, "conflict": conflict.share, "alignment": conflict.alignment}
        numbers |= {f"kept/{name}": share for name, share in kept.items()}
        self._open.numbers |= {f"{site}/{name}": number for name, number in numbers.items()}

    def follow(self, harm: Harm) -> None:
        self._harm = harm

    @contextmanager
    def stepping(self) -> Iterator[None]:
        harm, self._harm = self._harm, None
        if harm is None:
            yield
            return
        harm.begin()
        yield
        changes = {f"change/{name}": change for name, change in harm.changes().items()}
        self._records[-1].numbers |= changes
        for name, change in changes.items() if self.writer is not None else ():
            self.writer.add_scalar(name, change, self._records[-1].step)  # type: ignore[union-attr]

    def end(self) -> None:
        self.due = False
        self._records.append(self._open)
        if self.writer is not None:
            self._write(self.writer, self._open)

    def _write(self, writer: Writer, record: Record) -> None:
        for name, number in record.numbers.items():
            writer.add_scalar(name, number, record.step)
        edges = [(i + 1) / BINS for i in range(BINS)]
        for site, counts in record.purity.items():
            middles = [edge - 0.5 / BINS for edge in edges]
            pairs = list(zip(counts, middles, strict=True))
            writer.add_histogram_raw(
                f"{site}/purity histogram",
                min=0.0,
                max=1.0,
                num=sum(counts),
                sum=sum(count * middle for count, middle in pairs),
                sum_squares=sum(count * middle**2 for count, middle in pairs),
                bucket_limits=edges,
                bucket_counts=counts,
                global_step=record.step,
            )
