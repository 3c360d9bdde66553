"""What a user's transform returns, checked where it is called; a pass that fails in it, taken back. No maths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from .._checks import kind_of
from .._transform import GramianTransform, LossWeighting, RowTransform, Site, Stream, Transform


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
    return stream if stream is None or _is_ours(transform) else _Checked(transform, stream)


class _Checked:
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
        needed = f"`result` of the stream of {self.name} must return a sum"
        return _check_like(self.stream.result(), self.like, needed, "It is that of the new rows, as one row.")


class FirstBackwards:
    """Takes back what a backward pass has added to `.grad`, if it is the first of its form and a transform fails in it.

    At activations the rows come in the middle of the one backward pass, when heads may have their gradients already.
    Only for transforms that are not ours; later backward passes of the same form cost nothing.
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.needed = not all(map(_is_ours, transforms))
        self.done: set[tuple[int, int]] = set()  # numbers of rows and of their dims
        self.coming: set[tuple[int, int]] = set()

    def expect(self, n_rows: int, n_dims: int) -> None:
        """A site of the next backward."""
        if self.needed and (n_rows, n_dims) not in self.done:
            self.coming.add((n_rows, n_dims))

    @contextmanager
    def undone(self, leaves: Iterable[Tensor]) -> Iterator[None]:
        """While active, an error takes back what was added to these since."""
        if not self.coming:
            yield
            return
        coming, self.coming = self.coming, set()
        before = [(leaf, leaf.grad, None if leaf.grad is None else leaf.grad.clone()) for leaf in leaves]
        try:
            yield
        except Exception:
            for leaf, gradient, numbers in before:
                leaf.grad = gradient
                if gradient is not None and numbers is not None:
                    gradient.copy_(numbers)
            raise
        self.done |= coming


def _is_ours(transform: Transform) -> bool:
    return type(transform).__module__.startswith("mtopt.")
