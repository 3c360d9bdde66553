"""What a user's transform returns: checked where it is called, and tried out before a backward begins. No maths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import kind_of
from .._transform import GramianTransform, Losses, LossWeighting, RowTransform, Site, Stream, Transform
from .products import gramian


def check_weights(transform: LossWeighting | GramianTransform, weights: Tensor, n_losses: int) -> Tensor:
    name = f"`{type(transform).__name__}.weights`"
    shapes = [(n_losses,), (n_losses, n_losses)][: 2 if isinstance(transform, GramianTransform) else 1]
    needed = " or ".join(map(str, shapes))
    if not isinstance(weights, Tensor):
        raise TypeError(
            f"{name} must return a tensor of shape {needed}, but it returned {kind_of(weights)}. Make it one, e.g. "
            f"torch.tensor(weights, dtype=torch.float64)."
        )
    if not weights.is_floating_point():
        raise TypeError(f"{name} must return real floating-point weights, but their dtype is {weights.dtype}.")
    if weights.shape not in shapes:
        raise ValueError(
            f"{name} must return weights of shape {needed}, but they are of shape {tuple(weights.shape)}. Give one for "
            f"each loss that is present: there are len(losses)."
        )
    return weights


def check_rows(transform: RowTransform, new: Tensor, rows: Tensor) -> Tensor:
    """The new rows, in the dtype of the old ones."""
    needed = f"`{type(transform).__name__}.transform` must return rows"
    return _check_like(new, rows, needed, "Give one row for each loss; they are summed afterwards.")


def _check_like(new: Tensor, like: Tensor, needed: str, hint: str) -> Tensor:
    shape = tuple(like.shape)
    if not isinstance(new, Tensor):
        raise TypeError(f"{needed} of shape {shape}, as a tensor, but it returned {kind_of(new)}. {hint}")
    if not new.is_floating_point():
        raise TypeError(f"{needed} of real floating-point numbers, but their dtype is {new.dtype}. {hint}")
    if new.shape != shape:
        raise ValueError(f"{needed} of shape {shape}, but they are of shape {tuple(new.shape)}. {hint}")
    return new.to(like)


def stream_of(transform: RowTransform, site: Site) -> Stream | None:
    """The transform's stream. One that is not ours checks what it returns."""
    stream = transform.stream(site)
    return stream if stream is None or _is_ours(transform) else CheckedStream(transform, stream)


class CheckedStream:
    """A stream whose result is checked."""

    def __init__(self, transform: RowTransform, stream: Stream) -> None:
        self.name = type(transform).__name__
        missing = [part for part in ("needs_lone_rows", "add", "result") if not hasattr(stream, part)]
        if missing:
            raise TypeError(
                f"`{self.name}.stream` must return a stream, or None where there is none, but it returned "
                f"{kind_of(stream)}, which has no `{missing[0]}`."
            )
        self.stream = stream
        self.needs_lone_rows = stream.needs_lone_rows

    def add(self, position: int, row: Tensor) -> None:
        self.like = row.new_empty(()).expand(row.shape)  # the row itself is not kept alive
        self.stream.add(position, row)

    def result(self) -> Tensor:
        return self.check(self.stream.result())

    def check(self, combined: Tensor) -> Tensor:
        needed = f"`result` of the stream of {self.name} must return a sum"
        return _check_like(combined, self.like, needed, "It is that of the new rows, as one row.")


class Trials:
    """Tries transforms that are not ours on rows of a new form, so that an error comes before any `.grad` changes.

    A copy is tried, with the global random numbers put back; one that cannot be copied is not tried. What it raises by
    itself is let pass, since random rows may not suit it.
    """

    def __init__(self, transforms: Sequence[GramianTransform | RowTransform]) -> None:
        self.transforms = [] if all(map(_is_ours, transforms)) else transforms
        self.done: set[tuple[int, int]] = set()  # numbers of rows and of their dims

    def run(self, losses: Losses, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        """Raise TypeError or ValueError if a transform returns what it must not."""
        if not self.transforms or (len(losses), len(shape)) in self.done:
            return
        cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            try:
                copies = copy.deepcopy(list(self.transforms))
                rows = torch.randn(len(losses), *shape, dtype=dtype, device=device)
            except Exception:
                copies = []
            for transform in copies:
                if isinstance(transform, GramianTransform):
                    _try_weights(transform, rows, losses)
                else:
                    _try_rows(transform, rows, losses, last=transform is copies[-1])
        self.done.add((len(losses), len(shape)))


_FAILED = object()


def _attempt(call: Callable[..., Any], *arguments: object) -> Any:
    try:
        return call(*arguments)
    except Exception:
        return _FAILED


def _try_weights(transform: GramianTransform, rows: Tensor, losses: Losses) -> None:
    weights = _attempt(transform.weights, gramian(rows).cpu(), losses)
    if weights is not _FAILED:
        check_weights(transform, weights, len(losses))


def _try_rows(transform: RowTransform, rows: Tensor, losses: Losses, *, last: bool) -> None:
    site = Site(losses, None if transform.marginalize is None else torch.randn_like(rows[0]))
    stream = _attempt(transform.stream, site) if last else None
    if stream is None or stream is _FAILED:
        new = _attempt(transform.transform, rows, site)
        if new is not _FAILED:
            check_rows(transform, new, rows)
        return
    checked = CheckedStream(transform, stream)
    added = [_attempt(checked.add, position, row) for position, row in enumerate(rows)]
    combined = _FAILED if _FAILED in added else _attempt(stream.result)
    if combined is not _FAILED:
        checked.check(combined)  # type: ignore[arg-type]


def _is_ours(transform: Transform) -> bool:
    return type(transform).__module__.startswith("mtopt.")
