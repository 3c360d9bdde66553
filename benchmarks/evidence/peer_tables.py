"""The tables of docs/evidence.md on peers: their steps beside ours, and what the same training gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markdown_tables import table, three

from .claims import Pair, Paired, Results, paired, scores
from .peers import IN_TIME, OURS, THEIRS
from .words import TITLES, p_value

Cells = Mapping[Pair, Mapping[str, Any]]  # by problem and method: each side
Tests = Mapping[Pair, Paired]

COSTS = ("", "mtopt, ms", "peer, ms", "mtopt / peer", "mtopt, MB", "peer, MB")
SCORES = ("", "steps", "mtopt", "peer", "difference", "p", "peer's steps", "peer, equal time", "difference", "p")


def peer_tables(results: Results) -> dict[str, str]:
    """mtopt and a peer with the same method, side by side."""
    cells = {(name, pair): sides for name, found in results.items() for pair, sides in found.get("peers", {}).items()}
    return {"peer costs": table(COSTS, _costs(cells)), "peer scores": table(SCORES, _scores(cells))}


def _tests(cells: Cells, side: str) -> Tests:
    """Our scores against the peer's, with equal steps or in equal time; corrected for all cells."""
    return paired({key: (scores(sides[OURS]), scores(sides[side])) for key, sides in cells.items()})


def _costs(cells: Cells) -> Iterator[tuple[str, ...]]:
    for key, sides in cells.items():
        ours, theirs = (sides[side].get("now", sides[side]) for side in (OURS, THEIRS))
        times = (f"{ours['ms']:.3g}", f"{theirs['ms']:.3g}", three(ours["ratio"] / theirs["ratio"]))
        yield (_cell(*key), *times, f"{ours['peak'] / 1e6:.3g}", f"{theirs['peak'] / 1e6:.3g}")


def _scores(cells: Cells) -> Iterator[tuple[str, ...]]:
    tests = {side: _tests(cells, side) for side in (THEIRS, IN_TIME)}
    for key, sides in cells.items():
        row = [_cell(*key), f"{sides[OURS]['steps']:,}", _mean(sides[OURS])]
        for side in (THEIRS, IN_TIME):
            if side == IN_TIME:
                row.append(f"{sides[side]['steps']:,}")
            test = tests[side].get(key)
            row += [_mean(sides[side]), "", ""]
            if test is not None:
                row[-2:] = [f"{test.difference.mean:+.4f} ± {test.difference.half:.4f}", p_value(test.p)]
        yield tuple(row)


def _mean(side: Mapping[str, Any]) -> str:
    known = [run["score"] for run in side["runs"] if "score" in run]
    return f"{sum(known) / len(known):.4f}" if known else "diverged"


def _cell(problem: str, pair: str) -> str:
    return f"{pair} on {TITLES[problem]}"
