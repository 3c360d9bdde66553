"""The tables and pictures of docs/evidence.md, from the results; its prose is written by hand. Measures nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blocks_of_a_page import fill
from problems import PROBLEMS, QUICK
from run_tables import machine_table, run_table

from .overview_tables import behind_table, gain_table, grid
from .peer_tables import peer_tables
from .pictures import differences, draw_differences, draw_shares
from .problem_tables import problem_table, sinusoid_table
from .words import SINUSOIDS, TITLES

FOLDER = "evidence"  # of the pictures, beside the page


def read(folder: Path) -> dict[str, Any]:
    """The results that there are in a folder, in the order of the problems."""
    paths = {name: folder / f"{name}.json" for name in (SINUSOIDS, *PROBLEMS, *QUICK)}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def publish(results: dict[str, Any], docs: Path) -> None:
    """Put the tables into the page, and draw a picture for each problem.

    Raises:
        ValueError: If there are no results at all, or not the tables that the page has a place for.
    """
    if not results:
        raise ValueError("`results` has no problem. Run some first: python benchmarks/evidence")
    fill(docs / f"{FOLDER}.md", tables(results))
    draw(results, docs / FOLDER)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """All tables of the page, by the names of their blocks."""
    problems = {name: found for name, found in results.items() if name != SINUSOIDS}
    parts = {TITLES[name]: found for name, found in results.items()}
    return {
        "better": gain_table(problems),
        "all": grid(problems),
        "behind": behind_table(problems),
        **{name: problem_table(found) for name, found in problems.items()},
        **({SINUSOIDS: sinusoid_table(results[SINUSOIDS])} if SINUSOIDS in results else {}),
        **peer_tables(problems),
        "runs": run_table(parts),
        "machine": machine_table(parts),
    }


def draw(results: dict[str, Any], folder: Path) -> None:
    """A picture for each problem that has something to show."""
    folder.mkdir(exist_ok=True)
    for name, found in results.items():
        if name == SINUSOIDS:
            draw_shares(folder / f"{name}.svg", found)
        elif differences(found):
            draw_differences(folder / f"{name}.svg", found)
