"""The list of transforms: losses to weights, rows at sites to one gradient each. No autograd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .methods.base import GramianTransform, Losses, LossWeighting, RowTransform, Site, Stream, Transform
from .sums import wide_dtype


class Combination(Protocol):
    """Takes the rows at some sites, in any order, and gives the combined gradient of each site."""

    def add(self, site: int, position: int, row: Tensor) -> None: ...

    def result(self) -> list[Tensor | None]: ...


class Pipeline:
    """The transforms of one optimizer or layer, applied left to right; an empty one is the plain sum."""

    def __init__(self, transforms: Transform | Iterable[Transform]) -> None:
        self.transforms = [transforms] if isinstance(transforms, Transform) else list(transforms)
        self.weightings: list[LossWeighting] = []
        self.row_transforms: list[GramianTransform | RowTransform] = []
        for i, transform in enumerate(self.transforms):
            if isinstance(transform, LossWeighting):
                if self.row_transforms:
                    raise ValueError(
                        f"`transforms[{i}]` weights the losses, so it must stand before every transform of their "
                        f"gradients, but {type(self.row_transforms[0]).__name__} comes first. Move it to the front."
                    )
                self.weightings.append(transform)
            elif isinstance(transform, (GramianTransform, RowTransform)):
                self.row_transforms.append(transform)
            else:
                hint = " Call it to make one." if isinstance(transform, type) else ""
                raise TypeError(
                    f"`transforms[{i}]` must be a LossWeighting, GramianTransform or RowTransform, "
                    f"but it is {transform!r}.{hint}"
                )

    @property
    def marginalized(self) -> tuple[int, ...] | None:
        """Dims of the activation over which a transform decides jointly, if one does."""
        for transform in self.row_transforms:
            if isinstance(transform, RowTransform) and transform.marginalize is not None:
                return transform.marginalize
        return None

    def check(self, losses: Losses) -> None:
        for transform in self.transforms:
            transform.check(losses)

    def weights(self, losses: Losses) -> Tensor | None:
        """The product of all weightings, shape `(T,)`, or `None` where there is none."""
        weights = None
        for weighting in self.weightings:
            new = weighting.weights(losses)
            weights = new if weights is None else weights * new
        return weights

    def combination(self, losses: Losses, activations: Sequence[Tensor | None]) -> Combination:
        """A combination over as many sites as `activations` has entries (`None` where it is not known)."""
        if len(self.row_transforms) == 1 and isinstance(self.row_transforms[0], RowTransform):
            streams = [self.row_transforms[0].stream(losses) for _ in activations]
            if all(stream is not None for stream in streams):
                return _Streamed([stream for stream in streams if stream is not None])
        return _Held(self.row_transforms, losses, activations)

    def state(self) -> list[dict[str, Any]]:
        return [transform.state_dict() for transform in self.transforms]

    def check_state(self, states: Sequence[dict[str, Any]]) -> None:
        if len(states) != len(self.transforms):
            raise ValueError(
                f"`state_dict` has the state of {len(states)} transforms, but there are {len(self.transforms)}."
            )

    def load_state(self, states: Sequence[dict[str, Any]]) -> None:
        for transform, state in zip(self.transforms, states, strict=True):
            transform.load_state_dict(state)

    def __repr__(self) -> str:
        return repr(self.transforms[0] if len(self.transforms) == 1 else self.transforms)


class _Streamed:
    """Keeps no rows: each goes into its site's running sums. A single row stays as it is."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams
        self.first: list[tuple[int, Tensor] | None] = [None] * len(streams)
        self.count = [0] * len(streams)

    def add(self, site: int, position: int, row: Tensor) -> None:
        self.count[site] += 1
        if self.count[site] == 1:
            self.first[site] = (position, row)
            return
        if (first := self.first[site]) is not None:
            self.streams[site].add(*first)
            self.first[site] = None
        self.streams[site].add(position, row)

    def result(self) -> list[Tensor | None]:
        return [self._combine(site) for site in range(len(self.streams))]

    def _combine(self, site: int) -> Tensor | None:
        if self.count[site] > 1:
            return self.streams[site].result()
        first = self.first[site]
        return None if first is None else first[1]


class _Held:
    """Keeps the rows of every site until all are there."""

    def __init__(
        self,
        transforms: Sequence[GramianTransform | RowTransform],
        losses: Losses,
        activations: Sequence[Tensor | None],
    ) -> None:
        self.transforms = transforms
        self.losses = losses
        self.activations = activations
        self.rows: list[Tensor | None] = [None] * len(activations)  # (T, *S) each, filled from the front
        self.positions: list[list[int]] = [[] for _ in activations]

    def add(self, site: int, position: int, row: Tensor) -> None:
        rows = self.rows[site]
        if rows is None:
            rows = self.rows[site] = row.new_empty(len(self.losses), *row.shape)
        rows[len(self.positions[site])] = row
        self.positions[site].append(position)

    def result(self) -> list[Tensor | None]:
        shared = [site for site, positions in enumerate(self.positions) if len(positions) > 1]
        blocks = [_Block(self._rows(site), self.positions[site], self.activations[site]) for site in shared]
        weights = None
        for transform in self.transforms:
            for block in blocks:
                block.weigh(weights)
            weights = None
            if isinstance(transform, GramianTransform):
                weights = self._gramian_weights(transform, blocks)
            else:
                for block in blocks:
                    block.rows = transform.transform(
                        block.rows, Site(self.losses.at(block.positions), block.activation)
                    )
        results: list[Tensor | None] = [
            self._rows(site)[0] if len(positions) == 1 else None for site, positions in enumerate(self.positions)
        ]
        for site, block in zip(shared, blocks, strict=True):
            results[site] = block.sum(weights)
        return results

    def _rows(self, site: int) -> Tensor:
        rows = self.rows[site]
        assert rows is not None
        return rows[: len(self.positions[site])]

    def _gramian_weights(self, transform: GramianTransform, blocks: Sequence[_Block]) -> Tensor | None:
        """Weights from the Gramian of the losses that meet at any of the blocks; 0 for the others' rows."""
        if not blocks:
            return None
        present = sorted({p for block in blocks for p in block.positions})
        n = len(self.losses)
        like = blocks[0].rows
        gramian = torch.zeros(n, n, dtype=wide_dtype(like.dtype), device=like.device)
        for block in blocks:
            index = torch.tensor(block.positions, device=like.device)
            gramian[index[:, None], index] += block.gramian()
        index = torch.tensor(present, device=like.device)
        weights = transform.weights(gramian[index[:, None], index], self.losses.at(present))
        full = gramian.new_zeros(n, *[n] * (weights.ndim - 1))
        full[index if weights.ndim == 1 else (index[:, None], index)] = weights.to(full.dtype)
        return full


class _Block:
    """The rows at one site on their way through the transforms."""

    def __init__(self, rows: Tensor, positions: Sequence[int], activation: Tensor | None) -> None:
        self.rows = rows
        self.positions = list(positions)
        self.activation = activation

    def gramian(self) -> Tensor:
        flat = self.rows.flatten(1)
        flat = flat.to(wide_dtype(flat.dtype))
        return flat @ flat.T

    def weigh(self, weights: Tensor | None) -> None:
        """Scale the rows by `(T,)` weights, or mix them by a `(T, T)` matrix."""
        if weights is None:
            return
        weights = weights.to(self.rows.dtype)
        if weights.ndim == 1:
            self.rows = self.rows * weights[self.positions].reshape(-1, *[1] * (self.rows.ndim - 1))
        else:  # a mixed row may exist for a loss that has none of its own here
            self.rows = torch.tensordot(weights[:, self.positions], self.rows, 1)
            self.positions = list(range(len(weights)))

    def sum(self, weights: Tensor | None) -> Tensor:
        """The sum of the rows, after weights that were not yet applied: without a (T, *S) temporary."""
        if weights is None:
            return self.rows.sum(0, dtype=wide_dtype(self.rows.dtype)).to(self.rows.dtype)
        column_sums = weights if weights.ndim == 1 else weights.sum(0)
        combined: Tensor = torch.tensordot(column_sums[self.positions].to(self.rows.dtype), self.rows, 1)
        return combined
