"""The page's section on a model of a billion parameters: the calculation in words and tables."""

from __future__ import annotations

from dataclasses import replace

from .calculation import COSTS, GRAMIAN_ONCE, GRAMIAN_ROW, MARGINAL_ONCE, MARGINAL_ROW, Assumptions, Cost
from .tables import in_units, table, three
from .theory import PLAIN
from .traffic import decision

NUMBERS = (2, 4, 8, 16)  # of losses


def section(a: Assumptions | None = None) -> str:
    a = Assumptions() if a is None else a
    plain = COSTS[PLAIN](a)
    costs = {method: cost(a) for method, cost in COSTS.items()}
    rows = [_row(method, cost, plain, a) for method, cost in costs.items()]
    growth = [
        (method, *(_ratio(cost(replace(a, losses=n)), plain, a) for n in NUMBERS))
        for method, cost in COSTS.items()
        if method != PLAIN
    ]
    head = ("", "operations", "memory traffic added", "memory added", "sent", "sent to decide", "time", "over plain")
    joint, by_token = (decision(a.losses, n) for n in (a.width, a.length * a.width))
    return f"""## What would a model of a billion parameters cost on {a.gpus} GPUs?

This is a calculation, not a measurement. Nothing here has run on a GPU. All follows from these assumptions:

- The losses share a trunk of $N$ = {a.parameters:,.0f} parameters under FSDP2, in bfloat16, with float32 in each
  GPU's own part. They meet at an activation of width $d$ = {a.width:,}. The heads are left out: every method runs
  them once.
- There are $T = {a.losses}$ losses and $R = {a.gpus}$ GPUs. Each GPU has a batch of its own: {a.sequences} sequences
  of {a.length:,} tokens, so $D$ = {a.tokens:,} tokens.
- A forward takes $2 N$ operations a token, a backward $4 N$: together the usual $6 N$. Nothing is computed twice to
  save memory.
- A GPU really does {in_units(a.flops, "FLOP/s")}, moves {in_units(a.memory, "B/s")} in its memory and sends
  {in_units(a.network, "B/s")} to the others, in a ring. A small collective call takes {1e6 * a.latency:.0f} µs, and
  everybody waits for it.
- What the combination reads and writes is counted operation by operation, each in memory. Launching kernels is left
  out, and so is the solver of UPGrad, which runs on the CPU.

The plain sum takes $6 N D$ operations and sends $3 \\cdot 2 N (R - 1) / R$ bytes: the parameters are gathered twice,
and their gradient is scattered. At activations a method does the same and adds the seconds

$$t = \\frac{{(c T + c_0) D d}}{{\\text{{memory}}}} + 2 \\cdot \\text{{latency}}
+ \\frac{{\\text{{sent to decide}}}}{{\\text{{network}}}},$$

where $c$ and $c_0$ are the bytes of memory traffic for each number of a row, and of the result: {MARGINAL_ROW} and
{MARGINAL_ONCE} for GradDrop, {GRAMIAN_ROW} and {GRAMIAN_ONCE} for UPGrad. UPGrad also takes $2 T^2 D d$ operations for
the Gramian.

At parameters a method takes $(2 + 4 T) N D$ operations, and sends $(1 + 2 T) \\cdot 2 N (R - 1) / R$ bytes. Both are
$(1 + 2 T) / 3$ times the plain sum's, so this is the factor whether arithmetic or network is the slower one. The rows
themselves, $N / R$ numbers for each loss on a GPU, hardly count; GradDrop there draws $N$ numbers on every GPU.

{table(head, rows)}

The time is that of a step whose large transfers hide behind the arithmetic; in brackets that of a step where nothing is
hidden. All is for one GPU. For other numbers of losses, the step over the plain sum's, hidden and in brackets not:

{table(("", *(f"$T = {n}$" for n in NUMBERS)), growth)}

The decision of a marginalized GradDrop must be over batch and tokens, `marginalize=(0, 1)`: this is one decision for
each of the {a.width:,} features, and {in_units(joint, "B")} in an all-reduce. With `marginalize=0` alone there is one
for each place in the sequence and feature, and {in_units(by_token, "B")}."""


def _row(method: str, cost: Cost, plain: Cost, a: Assumptions) -> tuple[str, ...]:
    return (
        method,
        in_units(cost.operations, "FLOP"),
        in_units(cost.moved, "B") if cost.moved else "",
        in_units(cost.held, "B") if cost.held else "",
        in_units(cost.sent, "B"),
        in_units(cost.sent_small, "B") if cost.sent_small else "",
        f"{1e3 * cost.hidden(a):,.0f} ms ({1e3 * cost.exposed(a):,.0f})",
        "" if cost is plain or method == PLAIN else _ratio(cost, plain, a),
    )


def _ratio(cost: Cost, plain: Cost, a: Assumptions) -> str:
    return f"{_finer(cost.hidden(a) / plain.hidden(a))} ({_finer(cost.exposed(a) / plain.exposed(a))})"


def _finer(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 2 else three(ratio)
