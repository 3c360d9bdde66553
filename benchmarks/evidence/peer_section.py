"""The part of docs/evidence.md on peers: their steps beside ours, and what the same training gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prose import paragraph
from scaling.tables import table, three

from .claims import Pair, Paired, Results, paired, scores
from .peers import IN_TIME, OURS, THEIRS
from .summary import BETTER, NO_DIFFERENCE, WORSE
from .words import TITLES, counted, listed, p_value, share_of

Cells = Mapping[Pair, Mapping[str, Any]]  # by problem and method: each side
Tests = Mapping[Pair, Paired]

COSTS = ("", "mtopt, ms", "peer, ms", "mtopt / peer", "mtopt, MB", "peer, MB")
SCORES = ("", "steps", "mtopt", "peer", "difference", "p", "peer's steps", "peer, equal time", "difference", "p")


def peer_section(results: Results) -> str:
    """mtopt and a peer with the same method, side by side."""
    cells = {(name, pair): sides for name, found in results.items() for pair, sides in found.get("peers", {}).items()}
    if not cells:
        return "## Peers\n\nNo problem with peers was run."
    larger = {name: found["settings"]["larger_is_better"] for name, found in results.items()}
    equal_steps = paired({key: (scores(sides[OURS]), scores(sides[THEIRS])) for key, sides in cells.items()})
    equal_time = paired({key: (scores(sides[OURS]), scores(sides[IN_TIME])) for key, sides in cells.items()})
    versions = {found["versions"]["torchjd"] for found in results.values()}
    what = paragraph(
        f"""
        The same training by TorchJD {listed(sorted(versions))} (`mtl_backward`, told the features) and, for the plain
        sum, by a loop written by hand. All combine at parameters, as TorchJD has it, with the learning rate that was
        best for the method above, which may be at another site. With equal steps and the same seeds both must give the
        same score but for noise: this checks both. With equal time the peer takes as many steps as fit.
        """
    )
    return "\n\n".join(
        [
            "## Peers",
            what,
            table(COSTS, _costs(cells)),
            paragraph(*_said_of_costs(cells)),
            table(SCORES, _scores(cells, equal_steps, equal_time)),
            paragraph(*_said_of_scores(cells, equal_steps, equal_time, larger)),
        ]
    )


def _costs(cells: Cells) -> Iterator[tuple[str, ...]]:
    for key, sides in cells.items():
        ours, theirs = sides[OURS], sides[THEIRS]
        times = (f"{ours['ms']:.3g}", f"{theirs['ms']:.3g}", three(_ratio(sides)))
        yield (_cell(*key), *times, f"{ours['peak'] / 1e6:.3g}", f"{theirs['peak'] / 1e6:.3g}")


def _said_of_costs(cells: Cells) -> Iterator[str]:
    slower = [f"{_cell(*key)} ({three(_ratio(sides))})" for key, sides in cells.items() if _ratio(sides) > 1]
    more = [_cell(*key) for key, sides in cells.items() if sides[OURS]["peak"] > sides[THEIRS]["peak"]]
    yield f"Times are medians, ratios of them. The peer's step was faster in {share_of(slower, len(cells), 'cells')}"
    yield f"MB is the peak of a step's tensors. The peer's was lower in {share_of(more, len(cells), 'cells')}"


def _scores(cells: Cells, equal_steps: Tests, equal_time: Tests) -> Iterator[tuple[str, ...]]:
    for key, sides in cells.items():
        row = [_cell(*key), f"{sides[OURS]['steps']:,}", _mean(sides[OURS])]
        for side, tests in ((THEIRS, equal_steps), (IN_TIME, equal_time)):
            if side == IN_TIME:
                row.append(f"{sides[side]['steps']:,}")
            test = tests.get(key)
            row += [_mean(sides[side]), "", ""]
            if test is not None:
                row[-2:] = [f"{test.difference.mean:+.4f} ± {test.difference.half:.4f}", p_value(test.p)]
        yield tuple(row)


def _said_of_scores(cells: Cells, equal_steps: Tests, equal_time: Tests, larger: Mapping[str, bool]) -> Iterator[str]:
    yield "Differences are mtopt's score minus the peer's, with 95 % intervals; p is Holm's, over the column."
    differing = [_cell(*key) for key, test in equal_steps.items() if test.verdict(larger[key[0]]) != NO_DIFFERENCE]
    yield f"With equal steps the scores differed (p < 0.05) in {share_of(differing, len(equal_steps), 'cells')}"
    verdicts = {key: test.verdict(larger[key[0]]) for key, test in equal_time.items()}
    yield f"With equal time, in {len(verdicts)} cells, mtopt was {counted(list(verdicts.values()))}."
    for verdict, who in ((BETTER, "mtopt"), (WORSE, "the peer")):
        names = [_cell(*key) for key, found in verdicts.items() if found == verdict]
        if names:
            yield f"There {who} was better: {listed(names)}."
    if len(equal_time) < len(cells):
        yield "Where a run has diverged there is no test."


def _ratio(sides: Mapping[str, Any]) -> float:
    return float(sides[OURS]["ratio"] / sides[THEIRS]["ratio"])


def _mean(side: Mapping[str, Any]) -> str:
    known = [run["score"] for run in side["runs"] if "score" in run]
    return f"{sum(known) / len(known):.4f}" if known else "diverged"


def _cell(problem: str, pair: str) -> str:
    return f"{pair} on {TITLES[problem]}"
