"""The tables of docs/scaling.md on a model of a billion parameters, from the calculation. Measures nothing."""

from __future__ import annotations

from dataclasses import replace

from markdown_tables import in_units, table, three

from .calculation import COSTS, Assumptions, Cost
from .theory import PLAIN

NUMBERS = (2, 4, 8, 16)  # of losses
HEAD = ("", "operations", "memory traffic added", "memory added", "sent", "sent to decide", "time", "over plain")


def billion_tables() -> dict[str, str]:
    """What every method costs, and how that grows with the losses."""
    a = Assumptions()
    plain = COSTS[PLAIN](a)
    rows = [_row(method, cost(a), plain, a) for method, cost in COSTS.items()]
    growth = [
        (method, *(_ratio(cost(replace(a, losses=n)), plain, a) for n in NUMBERS))
        for method, cost in COSTS.items()
        if method != PLAIN
    ]
    return {
        "billion": table(HEAD, rows),
        "billion losses": table(("", *(f"$T$ = {n}" for n in NUMBERS)), growth),
    }


def _row(method: str, cost: Cost, plain: Cost, a: Assumptions) -> tuple[str, ...]:
    return (
        method,
        in_units(cost.operations, "FLOP"),
        in_units(cost.moved, "B") if cost.moved else "",
        in_units(cost.held, "B") if cost.held else "",
        in_units(cost.sent, "B"),
        in_units(cost.sent_small, "B") if cost.sent_small else "",
        f"{1e3 * cost.hidden(a):,.0f} ms ({1e3 * cost.exposed(a):,.0f})",
        "" if method == PLAIN else _ratio(cost, plain, a),
    )


def _ratio(cost: Cost, plain: Cost, a: Assumptions) -> str:
    return f"{_finer(cost.hidden(a) / plain.hidden(a))} ({_finer(cost.exposed(a) / plain.exposed(a))})"


def _finer(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 2 else three(ratio)
