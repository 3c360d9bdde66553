"""One backward: its losses, the graph below them, the transforms to go through, what its ranks agree on. No hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .._combine.combination import Combination
from .._combine.pipeline import Pipeline
from .._graph.alive import check_alive
from .._graph.batching import Batching
from .._graph.loss_graph import LossGraph, gradient_edge
from .._graph.losses import common_scale, cotangents
from .._graph.supports import Edge
from .._ranks import Ranks, lost_rank_explained
from .._torch import variable_of, wrapper_of
from .._transform import Losses, Site
from .agreement import Agreement, Facts, Owned
from .explanation import Explanation, SiteExplained
from .inner import MetricAt
from .known import Known
from .telling import Told


class Overlap:
    """Hands rows on to a combination, and sees on the way whether two of them share a coordinate."""

    def __init__(self, inner: Combination) -> None:
        self.inner = inner
        self.rows = 0
        self.found = False
        self._seen: Tensor | None = None

    def add(self, site: int, position: int, row: Tensor) -> None:
        here = row != 0
        if self._seen is not None:
            self.found = self.found or bool((self._seen & here).any())
        if bool(here.any()):
            self.rows += 1
            self._seen = here if self._seen is None else self._seen | here
        self.inner.add(site, position, row)

    def result(self) -> list[Tensor | None]:
        return self.inner.result()


@contextmanager
def taken_back(origins: Sequence[Edge]) -> Iterator[None]:
    """While active, an error takes away every `.grad` below the losses: none was there before."""
    try:
        yield
    except Exception:
        for leaf in LossGraph(origins).leaves():
            variable_of(leaf).grad = None
        raise


@dataclass
class Backward:
    """The losses of one backward pass, the graph below them, and the transforms to go through.

    Attributes:
        losses: The losses on this rank.
        origins: The edge of each.
        known: What earlier backward passes of this form have shown of the graph.
        parameters: All of the optimizer's.
        batching: How the VJPs of several losses are batched, where rows take them.
        overlaps: Which losses were found to share coordinates at sites like these, from step to step.
        owner: The key under which named modules have marked the graph for this optimizer.
        agreed: The losses that any rank has, with their mean values. In one process these are `losses`.
        told: What the user was told once.
        metric: Of the inner optimizer, where inner products are taken in it.
        everywhere: What each rank told; empty in one process.
    """

    losses: Losses
    origins: Sequence[Edge]
    known: Known
    pipeline: Pipeline
    retain_graph: bool
    parameters: Sequence[Tensor]
    batching: Batching
    overlaps: dict[object, list[set[int]]]
    owner: str
    agreement: Agreement
    told: Told
    metric: MetricAt | None = None
    everywhere: Sequence[Facts] = ()
    agreed: Losses = field(init=False)
    seen: list[Overlap] = field(default_factory=list)
    weights: Tensor | None = None  # of the losses that any rank has

    def __post_init__(self) -> None:
        self.agreed = self.losses
        alone = self.ranks.size == 1 and not self.retain_graph
        self.can_be_taken_back = alone and self.known.suffices(self.parameters)
        self.state_before = self.pipeline.copied_state() if self.can_be_taken_back else []

    @cached_property
    def graph(self) -> LossGraph:
        """The graph below the losses: all of it, checked, or its top where what is below was seen before."""
        top = LossGraph.top(self.origins) if self.can_be_taken_back else None
        return self._whole_graph() if top is None else top

    def look_at_all(self, *, nothing_changes: bool = False) -> None:
        """Make sure that the whole graph is there; and alive, unless nothing changes before that is seen."""
        known = self.__dict__.get("graph")
        if known is None or not known.whole:
            self.graph = self._whole_graph(alive=not nothing_changes or self.retain_graph or self.ranks.size > 1)

    def _whole_graph(self, *, alive: bool = True) -> LossGraph:
        graph = LossGraph(self.origins)
        graph.look_through_bundles()
        if alive:
            check_alive(graph, self.retain_graph)
        self.known.learn(graph, self.parameters, self.pipeline)
        return graph

    @property
    def ranks(self) -> Ranks:
        return self.agreement.ranks

    @cached_property
    def number(self) -> dict[int, int]:
        """The numbers of the optimizer's parameters, by identity."""
        return {id(parameter): i for i, parameter in enumerate(self.parameters)}

    def is_parameter(self, leaf: Node) -> bool:
        """Whether a leaf is trained, unlike an input of the model that requires grad."""
        variable = variable_of(leaf)
        return isinstance(variable, nn.Parameter) or id(variable) in self.number

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
        wrappers = [wrapper_of(sink) for sink in self.graph.sinks]
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
        """The parameters that the losses reach, each with a mask of the losses' indices."""
        owned: list[Owned] = []
        for leaf in self.graph.leaves_as_used():
            if self.is_parameter(leaf):
                variable = variable_of(leaf)
                mask = sum(1 << self.losses.indices[position] for position in self.graph.positions_at((leaf, 0)))
                owned.append((self.number.get(id(variable), tuple(variable.shape)), mask))
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
        self.weights = weights = self.pipeline.weights(self.agreed)
        if weights is not None and self.agreed is not self.losses:
            weights = weights[[self.agreed.indices.index(index) for index in self.losses.indices]]
        return cotangents(self.origins, weights)

    @cached_property
    def factors(self) -> list[float]:
        """What each loss that any rank has was multiplied by, once it has started: by a GradScaler and weightings."""
        scale = self.losses.scale or 1.0
        weights = [1.0] * len(self.agreed) if self.weights is None else self.weights.tolist()
        return [scale * weight for weight in weights]

    def run(self, starts: Sequence[Tensor]) -> None:
        """One ordinary backward pass of all losses."""
        roots = [gradient_edge(origin) for origin in self.origins]
        if self.can_be_taken_back:
            leaves: Iterable[Tensor] = self.parameters
        else:
            leaves = (variable_of(leaf) for leaf in self.graph.leaves())
        with lost_rank_explained(), self.taken_back(), self.pipeline.first_backwards.undone(leaves):
            torch.autograd.backward(roots, starts, retain_graph=self.retain_graph)
        self.tell_overlap()

    @contextmanager
    def taken_back(self) -> Iterator[None]:
        """While active, an error leaves all as it was before, if nobody has looked at the whole graph."""
        if not self.can_be_taken_back:
            yield
            return
        try:
            with taken_back(self.origins):
                yield
        except Exception:
            self.pipeline.load_state(self.state_before)
            raise

    def combination_at(self, activation: Tensor | None) -> Combination:
        """A combination of the rows at an activation. In the first step it is seen whether they share coordinates."""
        combination = self.pipeline.combination(self.losses, [Site(self.agreed, activation, self.ranks)])
        if self.overlaps or self.pipeline.marginalized is not None:
            return combination
        self.seen.append(Overlap(combination))
        return self.seen[-1]

    def tell_overlap(self) -> None:
        """Say so if in the first step no two rows shared a coordinate: masks hide that from the graph."""
        known = [overlap for overlap in self.seen if overlap.rows > 1]
        if known:
            self.overlaps.setdefault(None, [])
        if known and not any(overlap.found for overlap in known):
            self.told.once(
                "In this step no number had a gradient of two `losses` (each masks other examples?), so nothing was "
                "combined, and the gradients are those of the plain sum. `GradDrop(marginalize=0)` at a module takes "
                'one decision for the batch, `at="parameters"` one for each weight.'
            )

    def tell_left_out(self, decided: set[int]) -> None:
        """Say which losses have no decision."""
        decided = decided.union(self.graph.reaching_nothing())  # of no examples, say: as good as absent
        left_out = [self.losses.label(position) for position in range(len(self.losses)) if position not in decided]
        if left_out:
            named = ", ".join(f"`losses[{label}]`" for label in left_out)
            self.told.once(
                f"{named} shares no number of an activation with another loss (a penalty on weights, a model of its "
                f'own, other examples), so its gradient is added as it is. To decide on it, too, use `at="parameters"`.'
            )

    def explanation(
        self, how: str, why: str, if_slow: str, sites: Iterable[SiteExplained] = (), batching: str = ""
    ) -> Explanation:
        labels = tuple(self.losses.label(position) for position in range(len(self.losses)))
        counts = self.known.shared, self.known.exclusive
        return Explanation(how, why, if_slow, labels, list(sites), *counts, batching, self.ranks.size)

    def site_explained(self, kind: str, shape: tuple[int, ...], positions: Iterable[int]) -> SiteExplained:
        return SiteExplained(kind, shape, tuple(self.losses.label(position) for position in positions))

    def positions_at(self, edges: Iterable[Edge]) -> list[int]:
        """The losses that reach any of the edges."""
        return sorted({position for edge in edges for position in self.graph.positions_at(edge)})
