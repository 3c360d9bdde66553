"""The tables and pictures of docs/evidence.md, from the results; its prose is written by hand. Measures nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blocks_of_a_page import fill
from problems import PROBLEMS, QUICK
from run_tables import machine_table, run_table

from .claims import by_family
from .overview_tables import behind_table, gain_table, grid, partner_table
from .peer_tables import peer_tables
from .pictures import differences, draw_differences, draw_shares
from .problem_tables import problem_table, sinusoid_table
from .words import SINUSOIDS, TITLES

FOLDER = "evidence"  # of the pictures, beside the page
EQUAL_STEPS = "equal_steps"  # the folder of those results, beside the others

Read = dict[str, Any]  # the results by problem


def read(folder: Path) -> Read:
    """The results that there are in a folder, in the order of the problems."""
    paths = {name: folder / f"{name}.json" for name in (SINUSOIDS, *PROBLEMS, *QUICK)}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def publish(results: Read, docs: Path, in_steps: Read | None = None) -> None:
    """Put the tables into the page, and draw a picture for each problem.

    Raises:
        ValueError: If there are no results at all, or not the tables that the page has a place for.
    """
    if not results:
        raise ValueError("`results` has no problem. Run some first: python benchmarks/evidence")
    fill(docs / f"{FOLDER}.md", tables(results, in_steps))
    draw(results, docs / FOLDER)


def tables(results: Read, in_steps: Read | None = None) -> dict[str, str]:
    """All tables of the page, by the names of their blocks; those in equal steps if there are any."""
    problems = {name: found for name, found in results.items() if name != SINUSOIDS}
    parts = {TITLES[name]: found for name, found in results.items()}
    parts |= {f"{TITLES[name]} (equal steps)": found for name, found in (in_steps or {}).items()}
    return {
        "better": gain_table(problems),
        "all": grid(problems),
        "behind": behind_table(problems),
        **{name: problem_table(found) for name, found in problems.items()},
        **({SINUSOIDS: sinusoid_table(results[SINUSOIDS])} if SINUSOIDS in results else {}),
        **peer_tables(problems),
        **(_tables_in_steps(in_steps) if in_steps else {}),
        "runs": run_table(parts),
        "machine": machine_table(parts),
    }


def _tables_in_steps(problems: Read) -> dict[str, str]:
    return {
        "steps: better": gain_table(problems),
        "steps: all": grid(by_family(problems)[""]),
        "steps: behind": behind_table(problems),
        **{f"steps: {family}": partner_table(problems, family) for family in by_family(problems) if family},
        **{f"steps: {name}": problem_table(found) for name, found in problems.items()},
    }


def draw(results: Read, folder: Path) -> None:
    """A picture for each problem that has something to show."""
    folder.mkdir(exist_ok=True)
    for name, found in results.items():
        if name == SINUSOIDS:
            draw_shares(folder / f"{name}.svg", found)
        elif differences(found):
            draw_differences(folder / f"{name}.svg", found)
