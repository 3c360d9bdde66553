"""The ranks that train together, and the few collective calls. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._torch import tells_lost_rank


@dataclass(frozen=True)
class Ranks:
    """The processes that train together. One alone calls nobody.

    Attributes:
        group: Their process group; `None` is the default one.
        size: How many they are.
        rank: The place of this one among them.
    """

    group: Any = None
    size: int = 1
    rank: int = 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same on each to the last bit."""
        return self._reduced(tensor, dist.ReduceOp.SUM) if self.size > 1 else tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest of each number over all ranks."""
        return self._reduced(tensor, dist.ReduceOp.MAX) if self.size > 1 else tensor

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        with lost_rank_explained():
            dist.all_reduce(total, op=operation, group=self.group)
        return total

    def mean(self, values: Tensor, indices: Sequence[int], n: int) -> Tensor:
        """The mean of each of `n` numbers over the ranks that have it, shape `(n,)`, in float64; NaN where none has."""
        sums = torch.zeros(2, n, dtype=torch.float64, device=values.device)
        sums[0, list(indices)] = values.to(sums)
        sums[1, list(indices)] = 1
        sums = self.sum(sums)
        return sums[0] / sums[1]

    def start_sum(self, tensor: Tensor) -> Any:
        """Begin to sum `tensor` in place; pass what is returned to `finish` before it is read."""
        with lost_rank_explained():
            return dist.all_reduce(tensor, group=self.group, async_op=True)

    def finish(self, work: Any) -> None:
        with lost_rank_explained():
            work.wait()

    def gather(self, numbers: list[int]) -> list[list[int]]:
        """The numbers of every rank, as many on each."""
        mine = torch.tensor(numbers, dtype=torch.int64, device=self._device())
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        with lost_rank_explained():
            dist.all_gather(theirs, mine, group=self.group)
        return [numbers.tolist() for numbers in theirs]

    def gather_objects(self, value: object) -> list[Any]:
        values: list[Any] = [None] * self.size
        with lost_rank_explained():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def _device(self) -> torch.device:
        return torch.device("cuda" if dist.get_backend(self.group) == "nccl" else "cpu")

    def __deepcopy__(self, memo: object) -> Ranks:
        return self  # a process group cannot be copied, and a copy of the model trains with the same ranks


ALONE = Ranks()


def ranks_of(group: Any) -> Ranks:
    """The ranks of a process group as they are now; `ALONE` if there is one, or nothing is distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    size = dist.get_world_size(group)
    return Ranks(group, size, dist.get_rank(group)) if size > 1 else ALONE


@contextmanager
def lost_rank_explained() -> Iterator[None]:
    """Say in plain words what a failed collective call means, also one of DistributedDataParallel in backward."""
    try:
        yield
    except RuntimeError as error:
        if not tells_lost_rank(error):
            raise
        raise RuntimeError(
            "The ranks could not combine their gradients: another rank has stopped, or did not come to this call (see "
            "its own error). Each rank must call `backward` equally often; a rank that trains by itself needs a "
            "`process_group` of its own."
        ) from error
