"""The results of a problem as a table in the terminal. No numbers of its own."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def show(found: dict[str, Any]) -> Table:
    """Each method with what it reached; of sinusoids, how often."""
    if "rates" in found:
        table = Table("method", *found["rates"], title="starts that reach the joint minimum", title_justify="left")
        for name in next(iter(found["rates"].values())):
            table.add_row(name, *(f"{family[name]['share']:.1%}" for family in found["rates"].values()))
        return table
    columns = ("method", "steps", "step / plain", "lr", found["settings"]["metric"], "difference", "p", "")
    table = Table(*columns, title=found["name"], title_justify="left")
    for name, entry in found["methods"].items():
        row = entry.get("summary")
        first = (name, str(entry["steps"]), f"{entry['ratio']:.2f}")
        if row is None:
            table.add_row(*first, "", "every trial has diverged", "", "", "")
            continue
        edge = "†" if entry["at_edge"] else ""
        p = row.get("p")
        table.add_row(
            *first,
            f"{entry['setting']['lr']:g}{edge}",
            interval(row["score"]),
            interval(row.get("difference"), sign=True),
            "" if p is None else f"{p:.2g}",
            row.get("verdict", ""),
        )
    return table


def interval(found: dict[str, Any] | None, *, sign: bool = False) -> str:
    """Mean ± half of the 95 % interval."""
    if found is None:
        return ""
    mean = f"{found['mean']:+.4f}" if sign else f"{found['mean']:.4f}"
    return mean if found["half"] is None else f"{mean} ± {found['half']:.4f}"
