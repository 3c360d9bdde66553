"""The tables and pictures of docs/scaling.md, from results and calculation; its prose is written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blocks_of_a_page import fill
from markdown_tables import table, three
from run_tables import machine_table, run_table

from .billion import billion_tables
from .pictures import added_lines, draw_ranks, draw_sweep
from .theory import ADDED, AGAIN, PLAIN, Size, expected, fit
from .traffic import DDP, FSDP2, payload

LAST = 3  # points of the second fit
FOLDER = "scaling"  # of the pictures, beside the page
ORDER = (PLAIN, AGAIN, *ADDED)
LETTERS = {"losses": "T", "parameters": "P", "batch": "B"}
SECTIONS = (*LETTERS, "ranks")


def publish(results: dict[str, Any], docs: Path) -> None:
    """Put the tables into the page, and draw the pictures.

    Raises:
        ValueError: If a section was not measured yet, or a table has no place on the page.
    """
    missing = [name for name in SECTIONS if name not in results]
    if missing:
        raise ValueError(f"`results` lack {', '.join(missing)}. Measure them first, with --only {' '.join(missing)}.")
    fill(docs / f"{FOLDER}.md", tables(results))
    draw(results, docs / FOLDER)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """All tables of the page, by the names of their blocks."""
    sections = {name: results[name] for name in SECTIONS}
    return {
        "theory": _theory(),
        **{name: _ratios(name, results[name]) for name in LETTERS},
        **{f"slopes {name}": _slopes(name, results[name]) for name in LETTERS},
        "ranks": _ranks(results["ranks"]),
        **billion_tables(),
        "runs": run_table(sections, {"rounds": "repeats", "load before": "load"}),
        "machine": machine_table(sections),
    }


def draw(results: dict[str, Any], folder: Path) -> None:
    """A picture for each section."""
    folder.mkdir(exist_ok=True)
    for name in LETTERS:
        draw_sweep(folder / f"{name}.svg", name, results[name], xs_of(name, results[name]))
    draw_ranks(folder / "ranks.svg", results["ranks"])


def sizes_of(section: dict[str, Any]) -> list[Size]:
    return [Size(**point["size"]) for point in section["points"]]


def xs_of(name: str, section: dict[str, Any]) -> list[float]:
    return [float(getattr(size, name)) for size in sizes_of(section)]


def _theory() -> str:
    """What each method adds to the plain sum."""
    rows = [(m, ", ".join(f"${term.formula}$ ({term.what})" for term in parts)) for m, parts in ADDED.items()]
    return table(("method", "grows as"), rows, numbers=False)


def _ratios(name: str, section: dict[str, Any]) -> str:
    """The plain sum's step in ms, the others' as multiples of it."""
    points = section["points"]
    rows = [(m, *(three(point["methods"][m]["ratio"][1]) for point in points)) for m in ORDER]
    rows[0] = (PLAIN, *(f"{point['methods'][PLAIN]['ms'][1]:.3g} ms" for point in points))
    return table(("", *(f"${LETTERS[name]}$ = {x:,.0f}" for x in xs_of(name, section))), rows)


def _slopes(name: str, section: dict[str, Any]) -> str:
    """The power that each method's added cost grows with: by theory, and as measured."""
    xs, rows = xs_of(name, section), []
    for method, x, y in added_lines(section, xs):
        powers = expected(method, name, sizes_of(section))
        ends = dict.fromkeys(f"{round(power, 2) + 0.0:.2f}" for power in (powers[0], powers[-1]))
        found = _slope(x, y), _slope(x[-LAST:], y[-LAST:]), f"{len(x)} of {len(xs)}"
        rows.append((method, " to ".join(ends), *found))
    return table(("added by", "theory", "measured", f"the last {LAST}", "points"), rows)


def _slope(x: list[float], y: list[float]) -> str:
    found = fit(x, y)
    return "" if found is None else f"{found.power:.2f} ± {found.error:.2f}"


def _ranks(section: dict[str, Any]) -> str:
    """As `_ratios`, and the bytes that each rank sends, counted and by formula."""
    numbers = [point["ranks"] for point in section["points"]]
    rows = []
    for wrapper in (DDP, FSDP2):
        found = [{r["method"]: r for r in p["methods"] if r["wrapper"] == wrapper} for p in section["points"]]
        size, ranks = Size(**section["points"][-1]["size"]), numbers[-1]
        plain = found[-1][PLAIN]["bytes"]
        for method in found[0]:
            cells = (f"{f[method]['ms'][1]:.3g} ms" if method == PLAIN else three(f[method]["ratio"][1]) for f in found)
            formula = payload(PLAIN if method == AGAIN else method, wrapper, size, ranks=ranks)
            counted = found[-1][method]["bytes"]
            rows.append((f"{method}, {wrapper}", *cells, f"{counted:,}", f"{formula:,}", f"{counted - plain:,}"))
    columns = (f"{n} {'rank' if n == 1 else 'ranks'}" for n in numbers)
    return table(("", *columns, "bytes", "by formula", "more than plain"), rows)
