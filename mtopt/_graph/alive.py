"""Graphs that were freed, or spoiled by a change in place: seen before a backward, or said in plain words after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._torch import tells_changed, tells_freed, touch_saved
from .loss_graph import LossGraph


def check_alive(graph: LossGraph) -> None:
    """Raise if a backward already freed the graph, or an in-place change spoiled it: before anything is touched."""
    for node in graph.edges:
        try:
            touch_saved(node)
        except RuntimeError as error:
            if (explained := _explained(error)) is not None:
                raise explained from error
            # Anything else says only that this node does not let itself be looked at.


@contextmanager
def graph_errors_explained() -> Iterator[None]:
    """Say in plain words what torch says of a graph that cannot be differentiated."""
    try:
        yield
    except RuntimeError as error:
        if (explained := _explained(error)) is not None:
            raise explained from error
        raise


def _explained(error: RuntimeError) -> RuntimeError | None:
    if tells_freed(error):
        return RuntimeError(
            "`losses` come from a graph that an earlier backward has freed. Run the forward again, or give "
            "`retain_graph=True` to the earlier backward."
        )
    return RuntimeError(f"`losses` cannot be differentiated: {error}") if tells_changed(error) else None
