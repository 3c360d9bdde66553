"""When, how and on what results were measured, as tables of a page. No results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markdown_tables import table

Parts = Mapping[str, Mapping[str, Any]]  # each with what `report.about` gives


def run_table(parts: Parts, settings: Mapping[str, str] | None = None) -> str:
    """Date and command of each part, and some of its settings: the title of a column, and the name of the setting."""
    columns = settings or {}
    rows = []
    for name, found in parts.items():
        set_to = (_cell(found["settings"][key]) for key in columns.values())
        rows.append((name, found["date"][:10], f"`{found['command']}`", *set_to))
    return table(("part", "date", "command", *columns), rows, numbers=False)


def machine_table(parts: Parts) -> str:
    """Processor and software, once for all parts that have the same."""
    on: dict[tuple[str, ...], list[str]] = {}
    for name, found in parts.items():
        machine, versions = found["machine"], found["versions"]
        row = (machine["cpu"], machine["cores"], machine["threads"], *versions.values())
        on.setdefault(tuple(map(str, row)), []).append(name)
    rows = [("all" if len(on) == 1 else ", ".join(names), *row) for row, names in on.items()]
    versions = next(iter(parts.values()))["versions"]
    return table(("parts", "processor", "cores", "threads", *versions), rows, numbers=False)


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
