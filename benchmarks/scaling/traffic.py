"""The bytes that the ranks exchange in a step, by formula. Sends nothing, measures nothing."""

from __future__ import annotations

from .theory import (
    DROP_ACTIVATIONS,
    DROP_PARAMETERS,
    PLAIN,
    UPGRAD_ACTIVATIONS,
    UPGRAD_PARAMETERS,
    Size,
)

DDP, FSDP2 = "DDP", "FSDP2"
MARGINALIZED = "GradDrop at the trunk, marginalized"
METHODS = (PLAIN, DROP_ACTIVATIONS, MARGINALIZED, UPGRAD_ACTIVATIONS, DROP_PARAMETERS, UPGRAD_PARAMETERS)
AT_PARAMETERS = (DROP_PARAMETERS, UPGRAD_PARAMETERS)

NUMBER = 4  # bytes of a float32
FACTS = 2 * 8  # what the ranks compare before they combine anything: a checksum and a flag
CHECKSUM = 8  # of the combined gradients, which all DDP ranks have whole


def decision(losses: int, decisions: int) -> int:
    """Bytes of one joint decision: what each loss wants, one draw, and which losses are there."""
    return NUMBER * ((losses + 1) * decisions + losses)


def gramian(losses: int) -> int:
    """Bytes of a Gramian in float64, and of which losses are there."""
    return 8 * losses * (losses + 1)


def payload(method: str, wrapper: str, size: Size, *, ranks: int) -> int:
    """Bytes that each rank hands to collective calls in a step, all in float32.

    A gathered parameter counts with its whole size, and so does a gradient that is scattered. One rank alone has nobody
    to tell; only DDP makes its calls all the same.
    """
    if ranks == 1 and (wrapper == FSDP2 or method in AT_PARAMETERS):
        return 0
    trunk, heads = passes(method, wrapper, size.losses)
    model = NUMBER * (trunk * size.parameters + heads * size.head_parameters)
    return model if ranks == 1 or method == PLAIN else model + FACTS + _decided_together(method, wrapper, size)


def _decided_together(method: str, wrapper: str, size: Size) -> int:
    if method == MARGINALIZED:
        return decision(size.losses, size.width)
    if method == UPGRAD_ACTIVATIONS or (method, wrapper) == (UPGRAD_PARAMETERS, FSDP2):
        return gramian(size.losses)
    return CHECKSUM if method in AT_PARAMETERS and wrapper == DDP else 0


def passes(method: str, wrapper: str, losses: int) -> tuple[int, int]:
    """How often each number of the trunk, and of a head, is gathered, scattered or summed.

    FSDP2 gathers the trunk for the forward and for each backward, and scatters its gradient after each backward. The
    heads stay gathered until the first backward is over.
    """
    if wrapper == DDP:
        return (losses, 1) if method in AT_PARAMETERS else (1, 1)
    return (1 + 2 * losses, 1 + losses) if method in AT_PARAMETERS else (3, 2)


def on_the_wire(payload: float, ranks: int, *, all_reduce: bool) -> float:
    """Bytes that each rank sends for a payload in a ring; an all-reduce is a scatter and a gather."""
    return (2 if all_reduce else 1) * payload * (ranks - 1) / ranks
