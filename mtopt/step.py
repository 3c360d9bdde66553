"""One step's losses, the graph below them, the transforms to go through, and what its ranks agree on. No hooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .agreement import Agreement, Facts, Owned
from .combine import Combination
from .distributed import Ranks, lost_rank_explained
from .graph import Edge, LossGraph, gradient_edge
from .losses import common_scale, cotangents
from .methods.base import Losses, Site
from .pipeline import Pipeline
from .report import Report, SiteReport


@dataclass
class Step:
    """The losses of one step, the graph below them, and the transforms to go through.

    Attributes:
        losses: The losses on this rank, in the order of the graph's roots.
        parameters: All of the optimizer's.
        agreed: The losses that any rank has, with their mean values. In one process these are `losses`.
        everywhere: What each rank told; empty in one process.
    """

    losses: Losses
    graph: LossGraph
    pipeline: Pipeline
    retain_graph: bool
    parameters: Sequence[Tensor]
    agreement: Agreement
    everywhere: Sequence[Facts] = ()
    agreed: Losses = field(init=False)

    def __post_init__(self) -> None:
        self.agreed = self.losses

    @property
    def ranks(self) -> Ranks:
        return self.agreement.ranks

    @cached_property
    def place(self) -> dict[int, int]:
        """The optimizer's parameters, by identity."""
        return {id(parameter): i for i, parameter in enumerate(self.parameters)}

    def is_parameter(self, leaf: Node) -> bool:
        """Whether a leaf is trained, unlike an input of the model that requires grad."""
        variable: Tensor = leaf.variable  # type: ignore[attr-defined]
        return isinstance(variable, nn.Parameter) or id(variable) in self.place

    @property
    def has_several(self) -> bool:
        """Whether losses must meet in this process: where it has but one, another rank may have more."""
        return len(self.losses) > 1 or self.ranks.size == 1

    def agree(self, *, combines: bool = True, sites: Iterable[Any] = (), own_reduction: bool = False) -> None:
        """Agree with the other ranks, if there are any: after all checks, before anything changes.

        Args:
            combines: Whether two losses meet on this rank.
            sites: The activations at which all ranks decide together.
            own_reduction: Whether the gradients are added up over the ranks here, rather than by what wraps the model.
        """
        if self.ranks.size == 1:
            return
        losses = self.losses
        is_nan = losses.values.isnan().tolist()
        if any(is_nan) and common_scale(self.graph.origins) is not None:
            is_nan = []  # a GradScaler will skip the step
        wrappers = [sink.ddp_weakref() for sink in self.graph.sinks]  # type: ignore[attr-defined]
        unused_are_found = any(model.find_unused_parameters and not model.static_graph for model in wrappers)
        facts = Facts(
            joined=self.pipeline.joined,
            loaded=self.pipeline.loaded,
            losses=losses.names or losses.n_losses,
            present=losses.indices,
            nan=tuple(index for index, nan in zip(losses.indices, is_nan, strict=False) if nan),
            owned=self._owned(),
            may_differ=own_reduction or unused_are_found,
            sites=tuple(sites),
            combines=combines,
        )
        self.everywhere = self.agreement.reach(facts)
        self.pipeline.join(self.ranks, losses)
        present = sorted({index for facts in self.everywhere for index in facts.present})
        self.agreed = replace(losses, indices=tuple(present), scalars=self._mean_values(present), ranks=self.ranks)

    def _owned(self) -> tuple[Owned, ...]:
        """The parameters that the losses reach, each with a mask of the losses' places in the user's list."""
        owned: list[Owned] = []
        for leaf in self.graph.leaves_as_used():
            if self.is_parameter(leaf):
                variable: Tensor = leaf.variable  # type: ignore[attr-defined]
                mask = sum(1 << self.losses.indices[loss] for loss in self.graph.losses_at((leaf, 0)))
                owned.append((self.place.get(id(variable), tuple(variable.shape)), mask))
        return tuple(owned)

    def _mean_values(self, present: Sequence[int]) -> tuple[Tensor, ...]:
        """The value of each loss, as the mean over the ranks on which it is present."""
        scalars = self.losses.scalars or ()
        if not self.pipeline.uses_values:
            return (scalars[0].new_zeros(()).detach(),) * len(present)
        values = torch.stack([scalar.detach().reshape(()).to(scalars[0].device) for scalar in scalars])
        means = self.ranks.mean(values, self.losses.indices, self.losses.n_losses).to(scalars[0].dtype)
        return tuple(means[index] for index in present)

    def starts(self) -> list[Tensor]:
        """The gradient that each loss starts with. It may move a weighting's state: called once, after all checks."""
        weights = self.pipeline.weights(self.agreed)
        if weights is not None and self.agreed is not self.losses:
            weights = weights[[self.agreed.indices.index(index) for index in self.losses.indices]]
        return cotangents(self.graph.roots, weights)

    def run(self, starts: Sequence[Tensor]) -> None:
        """One ordinary backward of all losses."""
        roots = [gradient_edge(origin) for origin in self.graph.origins]
        with lost_rank_explained():
            torch.autograd.backward(roots, starts, retain_graph=self.retain_graph)

    def combination_at(self, activation: Tensor | None) -> Combination:
        """A combination of the rows at an activation."""
        return self.pipeline.combination(self.losses, [Site(self.agreed, activation, self.ranks)])

    def report(
        self, engine: str, reason: str, slow: str, sites: Iterable[SiteReport] = (), batching: str = ""
    ) -> Report:
        shared = [self.graph.shared(leaf) for leaf in self.graph.leaves()]
        losses = tuple(self.losses.label(loss) for loss in range(len(self.losses)))
        return Report(
            engine, reason, slow, losses, list(sites), sum(shared), len(shared) - sum(shared), batching, self.ranks.size
        )

    def site_report(self, kind: str, shape: tuple[int, ...], losses: Iterable[int]) -> SiteReport:
        return SiteReport(kind, shape, tuple(self.losses.label(loss) for loss in losses))

    def losses_at(self, edges: Iterable[Edge]) -> list[int]:
        """The losses that reach any of the edges."""
        return sorted({loss for edge in edges for loss in self.graph.losses_at(edge)})
