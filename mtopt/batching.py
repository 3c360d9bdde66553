"""How many losses are differentiated together, and why not more. No gradients."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from .graph import LossGraph, metadata_of

DEFAULT_CHUNK = 4


@dataclass
class Batching:
    """How the VJPs of several losses are batched, and why not, if not.

    Attributes:
        chunk_size: Losses in one vmap; `None` chooses, 1 loops.
        refusal: Why vmap was given up, once it was.
        used: What the last step did.
    """

    chunk_size: int | None = None
    refusal: str | None = None
    used: str = ""

    def size_for(self, graph: LossGraph) -> int:
        """Losses to differentiate together."""
        if self.refusal is not None:
            self.used = f"loop, because vmap could not work: {self.refusal}"
            return 1
        if self.chunk_size is not None:
            self.used = (
                "loop, as asked" if self.chunk_size == 1 else f"vmap, {self.chunk_size} losses at a time, as asked"
            )
            return self.chunk_size
        if any(
            graph.shared(node) and node.name() == "ConvolutionBackward0" and metadata_of((node, 0)).device.type == "cpu"
            for node in graph.edges
        ):
            self.used = "loop, because batched convolutions are slower on a CPU"
            return 1
        self.used = f"vmap, {DEFAULT_CHUNK} losses at a time"
        return DEFAULT_CHUNK

    def give_up(self, error: Exception) -> None:
        self.refusal = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        self.used = f"loop, because vmap could not work: {self.refusal}"
        warnings.warn(
            f"mtopt differentiates the losses one by one, since vmap could not work on this model: {self.refusal} "
            f"(`chunk_size=1` asks for the loop, without this warning).",
            RuntimeWarning,
            stacklevel=2,
        )


def check_chunk_size(chunk_size: int | None) -> int | None:
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"`chunk_size` must be None or a whole number above 0, but it is {chunk_size!r}.")
    return chunk_size
