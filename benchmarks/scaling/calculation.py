"""What a step would cost at a size that no test machine has: counted from stated assumptions. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .theory import DROP_PARAMETERS, PLAIN, UPGRAD_ACTIVATIONS, UPGRAD_PARAMETERS
from .traffic import FACTS, FSDP2, MARGINALIZED, decision, gramian, on_the_wire, passes


@dataclass(frozen=True)
class Assumptions:
    """All that the calculation takes for granted.

    Attributes:
        parameters: N, of the trunk that all losses share.
        width: d, of the activation where the losses meet.
        losses: T.
        gpus: That hold a part of the model each, by FSDP2, and a batch of their own.
        sequences: In the batch of one GPU.
        length: Tokens in a sequence.
        flops: Floating-point operations that a GPU really does in a second.
        memory: Bytes that its memory really moves in a second.
        network: Bytes that it really sends to the other GPUs in a second.
        latency: Seconds of a small collective call, for which everybody waits.
        half: Bytes of a number in activations, gathered parameters and scattered gradients: bfloat16.
        master: Bytes of a number in a rank's own part of the parameters and in its rows: float32.
    """

    parameters: float = 1e9
    width: int = 2048
    losses: int = 4
    gpus: int = 64
    sequences: int = 4
    length: int = 4096
    flops: float = 400e12
    memory: float = 2.5e12
    network: float = 40e9
    latency: float = 100e-6
    half: int = 2
    master: int = 4

    @property
    def tokens(self) -> int:
        """D, on one GPU."""
        return self.sequences * self.length

    @property
    def activation(self) -> int:
        """Numbers in the activation on one GPU: D d."""
        return self.tokens * self.width

    @property
    def shard(self) -> float:
        """Parameters on one GPU: N / GPUs."""
        return self.parameters / self.gpus


FORWARD, BACKWARD = 2, 4  # operations per parameter and token

# Bytes of memory traffic per number of a row: each read and write that mtopt's operations make.
WIDEN = 2 + 4  # a bfloat16 number is read and written as float32
MARGINAL_ROW = (WIDEN + 3 * 4 + 4) + (WIDEN + 3 * 4)  # times the sign, summed; then times its share, added
MARGINAL_ONCE = (2 + 2 + WIDEN) + (4 + 2)  # the activation's sign; the result in bfloat16
GRAMIAN_ROW = (2 + 2 + WIDEN + 2 * 4) + (2 + 2 * 4)  # side by side, widened, read twice; then times its weight, added
GRAMIAN_ONCE = 4 + 2  # the result in bfloat16
MARGINAL_HELD = 4 + 4  # the activation's sign, and the result, in float32
GRAMIAN_HELD = 4  # the result in float32
SIGN_SUMS_ROW = 3 * 4 + 2 * 4 + 3 * 4  # into the sum, its positive part, into the sum of these
LONG_GRAMIAN_ROW = (4 + 4 + 2 * 4) + 3 * 4  # as above, in float32
DRAW = 4  # every rank draws for the whole parameter


@dataclass(frozen=True)
class Cost:
    """Of a step on one GPU.

    Attributes:
        operations: Floating-point operations of forward and backward.
        moved: Bytes of memory traffic that the method adds.
        held: Bytes of memory that the method adds.
        sent: Bytes that the GPU sends for the model's own parameters and gradients.
        sent_small: Bytes that it sends so that the ranks decide together.
        calls: Small collective calls.
    """

    operations: float
    moved: float = 0.0
    held: float = 0.0
    sent: float = 0.0
    sent_small: float = 0.0
    calls: int = 0

    def compute_seconds(self, a: Assumptions) -> float:
        """Arithmetic, and what the method adds to it: its memory traffic and the waiting for its small calls."""
        return self.operations / a.flops + self.moved / a.memory + self.calls * a.latency + self.sent_small / a.network

    def network_seconds(self, a: Assumptions) -> float:
        return self.sent / a.network

    def hidden(self, a: Assumptions) -> float:
        """Seconds of a step whose large transfers run beside the arithmetic."""
        return max(self.compute_seconds(a), self.network_seconds(a))

    def exposed(self, a: Assumptions) -> float:
        """Seconds of a step in which nothing runs beside anything."""
        return self.compute_seconds(a) + self.network_seconds(a)


def operations(a: Assumptions, backwards: int) -> float:
    return (FORWARD + BACKWARD * backwards) * a.parameters * a.tokens


def sent(a: Assumptions, method: str) -> float:
    """Bytes sent for the trunk: FSDP2 gathers it, and scatters its gradient."""
    trunk, _ = passes(method, FSDP2, a.losses)
    return on_the_wire(trunk * a.half * a.parameters, a.gpus, all_reduce=False)


def small(a: Assumptions, payload: int) -> float:
    """Bytes sent in one all-reduce, and for the ranks to compare what they are about to do."""
    return on_the_wire(payload, a.gpus, all_reduce=True) + FACTS * (a.gpus - 1)


def plain(a: Assumptions) -> Cost:
    return Cost(operations(a, 1), sent=sent(a, PLAIN))


def drop_activations(a: Assumptions) -> Cost:
    """Marginalized over batch and tokens: one decision for each of the d features, which all GPUs share."""
    return Cost(
        operations(a, 1),
        moved=(a.losses * MARGINAL_ROW + MARGINAL_ONCE) * a.activation,
        held=(a.losses * a.half + MARGINAL_HELD) * a.activation,
        sent=sent(a, MARGINALIZED),
        sent_small=small(a, decision(a.losses, a.width)),
        calls=2,
    )


def upgrad_activations(a: Assumptions) -> Cost:
    return Cost(
        operations(a, 1) + 2 * a.losses**2 * a.activation,
        moved=(a.losses * GRAMIAN_ROW + GRAMIAN_ONCE) * a.activation,
        held=(a.losses * a.half + GRAMIAN_HELD) * a.activation,
        sent=sent(a, UPGRAD_ACTIVATIONS),
        sent_small=small(a, gramian(a.losses)),
        calls=2,
    )


def drop_parameters(a: Assumptions) -> Cost:
    """Row by row: two running sums for each shard, however many losses there are."""
    return Cost(
        operations(a, a.losses),
        moved=a.losses * SIGN_SUMS_ROW * a.shard + DRAW * a.parameters,
        held=2 * a.master * a.shard,
        sent=sent(a, DROP_PARAMETERS),
        sent_small=FACTS * (a.gpus - 1),
        calls=1,
    )


def upgrad_parameters(a: Assumptions) -> Cost:
    return Cost(
        operations(a, a.losses) + 2 * a.losses**2 * a.shard,
        moved=a.losses * LONG_GRAMIAN_ROW * a.shard,
        held=a.losses * a.master * a.shard,
        sent=sent(a, UPGRAD_PARAMETERS),
        sent_small=small(a, gramian(a.losses)),
        calls=2,
    )


COSTS: dict[str, Callable[[Assumptions], Cost]] = {
    PLAIN: plain,
    MARGINALIZED: drop_activations,
    UPGRAD_ACTIVATIONS: upgrad_activations,
    DROP_PARAMETERS: drop_parameters,
    UPGRAD_PARAMETERS: upgrad_parameters,
}
