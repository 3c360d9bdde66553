"""The tables of docs/evidence.md on one problem, and on the sinusoids. Nothing on several problems, or on peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markdown_tables import table, three

from .claims import Found
from .methods import AGAIN, PLAIN
from .table import interval
from .words import EDGE, p_value, percent

GRADDROP = "GradDrop"
HEAD = ("method", "steps", "step / plain", "learning rate", "score", "difference", "p", "")


def problem_table(found: Found) -> str:
    """Every method; last the noise of the times, and what was refused."""
    noise = (AGAIN, "", three(found["noise"]), "", "", "", "", "")
    refused = ((name, *[""] * 6, f"refused: {_one_line(reason)}") for name, reason in found["refused"].items())
    return table(HEAD, [*_rows(found), noise, *refused])


def _rows(found: Found) -> Iterator[tuple[str, ...]]:
    for name, entry in found["methods"].items():
        first = (name, f"{entry['steps']:,}", three(entry["ratio"]))
        summary = entry.get("summary")
        if summary is None:
            yield (*first, "", "", "", "", "every trial diverged")
            continue
        rate = f"{entry['setting']['lr']:g}{EDGE if entry['at_edge'] else ''}"
        lost = f" ({summary['diverged']} of {len(entry['runs'])} diverged)" if summary["diverged"] else ""
        yield (
            *first,
            rate,
            interval(summary["score"]),
            interval(summary.get("difference"), sign=True),
            p_value(summary.get("p")),
            summary.get("verdict", "") + lost,
        )


def _one_line(reason: str) -> str:
    return " ".join(reason.split()).replace("|", "\\|")


def sinusoid_table(found: Found) -> str:
    """How many starts reach the joint minimum, and how many times as many with GradDrop."""
    families = found["rates"]
    names = list(next(iter(families.values())))
    rows = [(name, *(_share(rates[name]) for rates in families.values())) for name in names]
    times = [rates[GRADDROP]["share"] / rates[PLAIN]["share"] for rates in families.values()]
    rows.append((f"{GRADDROP} / {PLAIN}", *(f"{ratio:.2f}" for ratio in times)))
    return table(("method", *families), rows)


def _share(rate: Mapping[str, Any]) -> str:
    low, high = rate["interval"]
    edge = EDGE if rate["at_edge"] else ""
    return f"{percent(rate['share'])}{edge} ({percent(low)} to {percent(high)})"
