"""The losses of one step, the graph below them, and the transforms to go through. No hooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .combine import Pipeline
from .graph import Edge, LossGraph, gradient_edge
from .losses import cotangents
from .methods.base import Losses
from .report import Report, SiteReport


@dataclass
class Step:
    """The losses of one step, the graph below them, and the transforms to go through."""

    losses: Losses
    graph: LossGraph
    pipeline: Pipeline
    retain_graph: bool
    process_group: Any

    def starts(self) -> list[Tensor]:
        """The gradient that each loss starts with. It may move a weighting's state: called once, after all checks."""
        return cotangents(self.graph.roots, self.pipeline.weights(self.losses))

    def run(self, starts: Sequence[Tensor]) -> None:
        """One ordinary backward of all losses."""
        roots = [gradient_edge(root) for root in self.graph.roots]
        torch.autograd.backward(roots, starts, retain_graph=self.retain_graph)

    def report(self, engine: str, sites: Iterable[SiteReport] = (), batching: str = "") -> Report:
        shared = [self.graph.shared(leaf) for leaf in self.graph.leaves()]
        return Report(engine, list(sites), sum(shared), len(shared) - sum(shared), batching)

    def site_report(self, kind: str, shape: tuple[int, ...], losses: Iterable[int]) -> SiteReport:
        return SiteReport(kind, shape, tuple(self.losses.label(loss) for loss in losses))

    def losses_at(self, edges: Iterable[Edge]) -> list[int]:
        """The losses that reach any of the edges."""
        return sorted({loss for edge in edges for loss in self.graph.losses_at(edge)})
