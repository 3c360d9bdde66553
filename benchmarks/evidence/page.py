"""docs/evidence.md and its pictures, from the results. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from problems import PROBLEMS, QUICK
from prose import paragraph, with_whole_numbers
from scaling.tables import table

import mtopt

from .claims import Gain, Pair, Results, gains, methods_tested, with_graddrop
from .how import how_section
from .methods import BEFORE_GRADDROP, PLAIN
from .peer_section import peer_section
from .pictures import differences, draw_differences, draw_shares
from .sections import problem_section, sinusoid_section
from .summary import BETTER, DIVERGED, NO_DIFFERENCE, WORSE
from .table import interval
from .words import SINUSOIDS, TITLES, counted, listed, number, of_these, p_value

FOLDER = "evidence"  # of the pictures, beside the page
MOST_NAMES = 6  # in one sentence
SHORT = {BETTER: "better", WORSE: "worse", NO_DIFFERENCE: "·", DIVERGED: "diverged"}


def read(folder: Path) -> dict[str, Any]:
    """The results that there are in a folder, in the order of the problems."""
    paths = {name: folder / f"{name}.json" for name in (SINUSOIDS, *PROBLEMS, *QUICK)}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def publish(results: dict[str, Any], docs: Path) -> None:
    """Write the page, and a picture for each problem.

    Raises:
        ValueError: If there are no results at all.
    """
    if not results:
        raise ValueError("`results` has no problem. Run some first: python benchmarks/evidence")
    text = page(results)
    (docs / FOLDER).mkdir(exist_ok=True)
    for name, found in results.items():
        if name == SINUSOIDS:
            draw_shares(docs / FOLDER / f"{name}.svg", found)
        elif differences(found):
            draw_differences(docs / FOLDER / f"{name}.svg", found)
    (docs / f"{FOLDER}.md").write_text(text, encoding="utf-8")


def page(results: dict[str, Any]) -> str:
    """Whatever results there are; problems that are missing are named."""
    problems = {name: found for name, found in results.items() if name != SINUSOIDS}
    parts = [
        "# Does any of it help, on real problems?",
        *(_answer(problems) if problems else []),
        *([_grid(problems)] if problems else []),
        *(problem_section(name, found, FOLDER) for name, found in problems.items()),
        *([sinusoid_section(results[SINUSOIDS], FOLDER)] if SINUSOIDS in results else []),
        *([peer_section(problems)] if problems else []),
        how_section(results),
    ]
    return with_whole_numbers("\n\n".join(parts)) + "\n"


# -- the answer --------------------------------------------------------------------------------------------------------


def _answer(problems: Results) -> Iterator[str]:
    found = gains(problems)
    verdicts = [verdict for known in problems.values() for _, verdict in methods_tested(known)]
    yield paragraph(
        _yes_or_no(found, len(problems)),
        f"All in all, in {number(len(verdicts), 'pair', 'pairs')} of a method and a problem: {counted(verdicts)}.",
        _graddrop(problems),
        _at_the_edge(found, problems),
    )
    missing = [TITLES[name] for name in PROBLEMS if name not in problems]
    if missing:
        yield paragraph(f"Not run: {listed(missing)}.")
    if found:
        head = ("problem", "method", "difference to the plain sum", "p", "tuned sum", "difference to it", "p", "")
        yield "Where a method was better than the plain sum, and what the better of the two tuned sums makes of it:"
        yield table(head, (_gain_row(gain, problems) for gain in found))


def _yes_or_no(found: Sequence[Gain], n_problems: int) -> str:
    """The first sentences: where, how many, and how many are left where more is asked."""
    how = "with equal tuning and equal wall-clock time (p < 0.05, corrected for the methods tried on a problem)"
    if not found:
        where = number(n_problems, "problem", "problems")
        return f"No: none of the methods tried was better than the plain sum on any of {where} {how}."
    by_problem = [(TITLES[name], list(group)) for name, group in groupby(found, lambda gain: gain.pair[0])]
    where = listed(f"{title} ({_names(group)})" for title, group in by_problem)
    beating = [gain for gain in found if gain.beats]
    some = f": {_pairs(beating)}" if 0 < len(beating) < len(found) else ""
    left = of_these(sum(gain.overall for gain in found), len(found))
    return (
        f"On {len(by_problem)} of {n_problems} problems some method was better than the plain sum {how}: {where}. "
        f"{of_these(len(beating), len(found))} also beat the better of two tuned sums, tuned weights and weight "
        f"decay{some}. {left} hold if p is corrected for the tests of all problems at once."
    )


def _at_the_edge(found: Sequence[Gain], problems: Results) -> str:
    """Where a gain may come from a plain sum that is not at its best."""
    names = dict.fromkeys(gain.pair[0] for gain in found if problems[gain.pair[0]]["methods"][PLAIN]["at_edge"])
    if not names:
        return ""
    where = listed(TITLES[name] for name in names)
    return f"The plain sum's learning rate was at the edge of those tried on {where}: trust the tuned sums more there."


def _graddrop(problems: Results) -> str:
    """GradDrop's own standing."""
    forms = [
        (problem, method, verdict)
        for problem, known in problems.items()
        for method, verdict in methods_tested(known)
        if method.startswith("GradDrop")
    ]
    details = "; ".join(
        f"{word}: {_where([(problem, method) for problem, method, v in forms if v == word])}"
        for word in (BETTER, WORSE)
        if any(v == word for *_, v in forms)
    )
    return (
        f"GradDrop itself, in {number(len(forms), 'pair', 'pairs')} of one of its forms and a problem: "
        f"{counted([verdict for *_, verdict in forms])}{f' ({details})' if details else ''}."
    )


def _where(forms: Sequence[Pair]) -> str:
    """As "at activations and at parameters on Yeast"."""
    return listed(
        f"{listed(method.removeprefix('GradDrop').removeprefix(', ') or 'at activations' for _, method in group)} on "
        f"{TITLES[problem]}"
        for problem, group in groupby(forms, lambda form: form[0])
    )


def _names(group: Sequence[Gain]) -> str:
    names = [gain.pair[1] for gain in group]
    return listed(names) if len(names) <= MOST_NAMES else f"{len(names)} methods"


def _pairs(found: Sequence[Gain]) -> str:
    return listed(
        f"{_names(list(group))} on {TITLES[name]}" for name, group in groupby(found, lambda gain: gain.pair[0])
    )


def _gain_row(gain: Gain, problems: Results) -> tuple[str, ...]:
    problem, method = gain.pair
    summary = problems[problem]["methods"][method]["summary"]
    row = (TITLES[problem], method, interval(summary["difference"], sign=True), p_value(summary["p"]))
    if gain.sum is None or gain.against is None:
        return (*row, "", "", "", "not tested")
    test = gain.against
    difference = f"{test.difference.mean:+.4f} ± {test.difference.half:.4f}"
    verdict = test.verdict(problems[problem]["settings"]["larger_is_better"])
    return (*row, gain.sum, difference, p_value(test.p), verdict)


def _grid(problems: Results) -> str:
    """Each method on each problem, in a word."""
    methods = list(dict.fromkeys(name for known in problems.values() for name in known["methods"] if name != PLAIN))
    entries = {method: [known["methods"].get(method) for known in problems.values()] for method in methods}
    rows = [(_linked(method), *map(_word, own)) for method, own in entries.items()]
    head = ("", *(TITLES[name] for name in problems))
    what = paragraph(
        "Each method against the plain sum on each problem; a dot where no difference was found, nothing where a",
        "method does not apply or was refused.",
        _behind(problems),
    )
    return f"## All at once\n\n{what}\n\n{table(head, rows, numbers=False)}"


def _behind(problems: Results) -> str:
    """What GradDrop adds to other methods."""
    found = list(with_graddrop(problems).values())
    pairs = number(len(found), "pair", "pairs")
    what = f"GradDrop behind {listed(BEFORE_GRADDROP)}, against the same method alone, in {pairs}"
    return f"{what}: {counted(found)}." if found else ""


def _word(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    return SHORT[entry["summary"]["verdict"]] if "summary" in entry else SHORT[DIVERGED]


def _linked(method: str) -> str:
    return f"[{method}][mtopt.{method}]" if method in mtopt.__all__ else method
