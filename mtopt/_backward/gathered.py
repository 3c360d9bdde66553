"""Rows of several backward passes, added up loss by loss until one decision is made on all of them. Decides nothing.

gather(a) ──► rows of a ┐
gather(b) ──► rows of b ├─ added up, by loss and parameter ──► one loss each, with that gradient ──► one backward pass
gather(a) ──► rows of a ┘
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._graph.alive import check_alive, graph_errors_explained
from .._graph.batching import Batching
from .._graph.loss_graph import LossGraph
from .._graph.losses import common_scale, cotangents, read_losses
from .._graph.rows import check_rows_below, rows_below
from .._graph.sites import in_one_operation
from .._torch import REENTRANT_CHECKPOINT, variable_of, wrappers_silent
from .._transform import LossesLike
from .dot_grad import accumulate
from .refusals import hides_who_reaches_what
from .shards import shards_of
from .taken_rows import numbers_of


class Gathered:
    """The rows that wait for a decision, each loss's for each parameter.

    Attributes:
        names: Of all losses that ever came, in the order in which they came first; None where they have none.
        rows: By the loss's name or place, and the parameter's identity.
        values: Of the losses, added up.
        scale: What a GradScaler multiplied them by.
    """

    def __init__(self) -> None:
        self.names: list[str] | None = None
        self.n_losses = 0
        self.clear()

    def clear(self) -> None:
        self.rows: dict[str | int, dict[int, Tensor]] = {}
        self.values: dict[str | int, Tensor] = {}
        self.scale: float | None = None
        self.beside: dict[int, int] = {}  # from a parameter to one that stands in an operation with it, or to itself

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows: in a copy their parameters are others."""
        return {"names": self.names, "n_losses": self.n_losses}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.clear()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def add(self, losses: LossesLike, parameters: Sequence[Tensor], batching: Batching, *, retain_graph: bool) -> None:
        """Take the rows of the losses at all parameters that they reach; all of them, or none where that fails.

        Raises:
            TypeError: If the losses are not those that a backward pass takes.
            ValueError: If there is no loss, or losses came with names before, and have none now, or the reverse.
            RuntimeError: If rows cannot be taken, or a GradScaler has changed its scale since the last call.
        """
        present, roots = read_losses(losses)
        if self.n_losses and (present.names is None) != (self.names is None):
            raise ValueError(
                "`losses` have names in one call and none in another, so that nobody knows which of them are the "
                "same. Give a dict in each call, or a list in each."
            )
        scale = common_scale(roots)
        if self and scale != self.scale:
            raise RuntimeError(
                f"A GradScaler multiplied these `losses` by {scale}, and those that were gathered before by "
                f"{self.scale}. Call scaler.update() after the step alone."
            )
        if shards_of(parameters):
            raise RuntimeError(
                "Rows of parameters that FSDP2 has sharded cannot be gathered over several calls. Give all losses to "
                "one `backward`, which combines them shard by shard."
            )
        graph = LossGraph(roots)
        graph.look_through_bundles()
        check_alive(graph, retain_graph)
        if REENTRANT_CHECKPOINT in graph.kinds:
            raise RuntimeError(
                "Reentrant checkpointing hides its parameters, so that their rows cannot be gathered. Use "
                "torch.utils.checkpoint with use_reentrant=False."
            )
        edges = [(leaf, 0) for leaf in graph.leaves()]
        check_rows_below(graph, edges, batching, retain_graph=retain_graph)
        known = {id(parameter) for parameter in parameters}
        targets = [variable_of(leaf) for leaf, _ in edges]
        with wrappers_silent(graph.sinks), graph_errors_explained():
            stream = rows_below(graph, cotangents(roots, None), edges, batching, retain_graph=retain_graph)
            hidden = hides_who_reaches_what(graph)
            found = {
                position: [
                    (target, row)
                    for target, row in zip(targets, rows, strict=True)
                    if row is not None and not (hidden and not numbers_of(row).any())
                ]
                for position, rows in stream
            }
        names = present.names
        for position, rows in found.items():
            key = present.indices[position] if names is None else names[present.indices[position]]
            self._add(key, [(target, row) for target, row in rows if id(target) in known])
            value = (present.scalars or ())[position].detach().reshape(())
            self.values[key] = self.values[key] + value if key in self.values else value
            with torch.no_grad():  # what is no parameter of the optimizer gets the plain sum, at once
                for target, row in rows:
                    if id(target) not in known:
                        accumulate(target, row, own=False)
        for together in in_one_operation(graph, lambda leaf: id(variable_of(leaf)) in known):
            first, *others = (id(variable_of(leaf)) for leaf in together)
            for other in others:
                self.beside[self._operation_of(other)] = self._operation_of(first)
        self.scale, self.n_losses = scale, max(self.n_losses, present.n_losses)
        if names is not None:
            self.names = list(dict.fromkeys([*(self.names or ()), *names]))

    def _add(self, key: str | int, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
        kept = self.rows.setdefault(key, {})
        for target, row in rows:
            before = kept.get(id(target))
            kept[id(target)] = row.detach() if before is None else before + row

    def _operation_of(self, parameter: int) -> int:
        """The same for all parameters that stand together, in one operation or by way of others."""
        while self.beside.get(parameter, parameter) != parameter:
            parameter = self.beside[parameter]
        return parameter

    def losses(self, parameters: Sequence[Tensor]) -> LossesLike:
        """A loss for each that came, with the values and the rows that were gathered."""
        keys: Sequence[str | int] = range(self.n_losses) if self.names is None else self.names
        made: dict[Any, Tensor | None] = dict.fromkeys(keys)
        for key, rows in self.rows.items():
            scale = None if self.scale is None else torch.tensor(self.scale, device=self.values[key].device)
            operations: dict[int, list[Tensor]] = {}
            for parameter in parameters:
                if id(parameter) in rows:
                    operations.setdefault(self._operation_of(id(parameter)), []).append(parameter)
            parts = []
            for together in operations.values():
                given = [rows[id(parameter)] for parameter in together]
                if scale is not None:  # they are multiplied anew, where it is looked for
                    given = [row / scale.to(row.device) for row in given]
                parts.append(_Given.apply(given, *together).to(self.values[key].device))  # type: ignore[no-untyped-call]
            value = self.values[key] if scale is None else self.values[key] / scale
            loss = torch.stack(parts).sum().to(value.dtype) + value
            made[key] = loss if scale is None else loss * scale
        return list(made.values()) if self.names is None else made


class _Given(torch.autograd.Function):
    """A zero with known gradients."""

    @staticmethod
    def forward(ctx: Any, rows: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.rows = rows
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, start: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(row * start.to(row) for row in ctx.rows)
