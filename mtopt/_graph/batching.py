"""How many losses are differentiated together, and why not more. No gradients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from .._torch import ATTENTION_ON_CPU, CONVOLUTION
from .loss_graph import LossGraph, Meeting, metadata_of

VMAP_SIZE = 8
SLOW_BATCHED = {CONVOLUTION: "convolution", ATTENTION_ON_CPU: "attention"}  # the latter has no batching rule
LARGE = 2**14  # numbers in a row: from here on a CPU is busy with one loss at a time
FEW = 2**20  # numbers in the rows of all losses at the meetings: up to here they may be there at once


@dataclass
class Batching:
    """How the VJPs of several losses are batched, and why not, if not.

    Attributes:
        chunk_size: Losses in one vmap; `None` chooses, 1 loops.
        refusal: Why vmap was given up, once it was.
        used: What the last step did.
        taken: The kinds of nodes that vmap could take.
    """

    chunk_size: int | None = None
    refusal: str | None = None
    used: str = ""
    taken: set[str] = field(default_factory=set)

    def size_for(self, graph: LossGraph, meetings: Sequence[Meeting]) -> int:
        """Losses to differentiate together below the meetings."""
        size, self.used = self._choice(graph, meetings)
        return size

    def exclusive_at_once(self, n_losses: int, meetings: Sequence[Meeting]) -> bool:
        """Whether one pass takes the exclusive parts of all losses, which saves time, not only those of a chunk."""
        return n_losses * sum(prod(meeting.shape) for meeting in meetings) <= FEW

    def _choice(self, graph: LossGraph, meetings: Sequence[Meeting]) -> tuple[int, str]:
        if self.refusal is not None:
            return 1, f"loop, because vmap could not work: {self.refusal}"
        if self.chunk_size is not None:
            return self.chunk_size, "loop, as asked" if self.chunk_size == 1 else f"vmap of {self.chunk_size}, as asked"
        if any(metadata_of(meeting.edge).device.type == "cpu" for meeting in meetings):
            if sum(prod(meeting.shape) for meeting in meetings) >= LARGE:
                return 1, "loop, because rows as large as these gain nothing by vmap on a CPU"
            for node in graph.edges:
                if node.name() in SLOW_BATCHED and graph.shared(node):
                    return 1, f"loop, because batched {SLOW_BATCHED[node.name()]} gains nothing on a CPU"
        return VMAP_SIZE, f"vmap of {VMAP_SIZE}"

    def give_up(self, error: Exception) -> None:
        self.refusal = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        self.used = f"loop, because vmap could not work: {self.refusal}"
        warnings.warn(
            f"mtopt differentiates the losses one by one, since vmap could not work on this model: {self.refusal} "
            f"(`chunk_size=1` asks for the loop, without this warning).",
            RuntimeWarning,
            stacklevel=2,
        )
