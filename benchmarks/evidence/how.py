"""The part of docs/evidence.md on how it was made: data, tuning, time, tests, limits, commands. No results."""

from __future__ import annotations

from prose import paragraph
from scaling.tables import table, three

from .claims import Results
from .methods import DECAYS, PLAIN, WEIGHTS
from .peers import OURS, THEIRS
from .words import EDGE, SINUSOIDS, TITLES, listed, share_of

DATA = """
Training, validation and test examples are disjoint, and the same in every run. Where an example is made of two, both
are of one split. Settings are chosen on the validation data; every score here is of the test data."""
TUNING = """
{trials} trials for each method, one run each. Each tries a learning rate; beside it `tuned weights` draws weights
between 1/{weights:g} and {weights:g}, and `weight decay` draws AdamW's between {decays[0]:g} and {decays[1]:g}.
{edge} marks a learning rate at the edge of those tried: a better one may lie beyond. The plain sum's is at the edge on
{edges}"""
TIME = """
Steps of all methods are timed by turns in one process; each method takes as many steps as fit in the time of the plain
sum's. This is mtopt's, with an empty list of transforms. {by_hand} Every run has AdamW, and a learning rate that falls
to 0 in a line."""
TESTS = """
Runs with the same seed begin with the same weights, and get the same batches. ± is Student's 95 % interval over the
seeds, not corrected; p is of a paired t test against the plain sum, by Holm's method corrected for the methods of the
problem. A method of which a run has diverged is not tested. Tests against a tuned sum are corrected for the methods of
the problem, too, and those of GradDrop behind another method for all problems."""
CONTROLS = """
`Random GradDrop` drops half of the gradient whatever its sign (`keep=0`), at doubled learning rates.
`sign-agnostic masking` keeps each number of each row by a fair coin, and doubles it."""
LIMITS = """
Small networks, short training, one machine, few seeds: where training is long or the network large, a method may do
better or worse. Where no difference was found, there may be one that is smaller than the interval."""
COMMANDS = """```bash
pip install -e ".[bench]"
python benchmarks/data.py                      # once: fetches the data sets
python benchmarks/evidence                     # all problems; after Ctrl-C the same command goes on
python benchmarks/evidence --problems yeast    # one of them; the others stay
python benchmarks/evidence --publish           # this page and its pictures, from what was run
```"""


def how_section(results: Results) -> str:
    problems = {name: found for name, found in results.items() if name != SINUSOIDS}
    edges = [TITLES[name] for name, found in problems.items() if found["methods"][PLAIN].get("at_edge")]
    tuning = TUNING.format(
        trials=listed(dict.fromkeys(str(found["settings"]["trials"]) for found in problems.values())),
        weights=WEIGHTS,
        decays=DECAYS,
        edge=EDGE,
        edges=share_of(edges, len(problems), "problems"),
    )
    points = {
        "Data": DATA,
        "Tuning": tuning,
        "Equal time": TIME.format(by_hand=_by_hand(problems)),
        "Tests": TESTS,
        "Controls": CONTROLS,
        "What it does not show": LIMITS,
    }
    machine = next(iter(results.values()))["machine"]
    versions = dict.fromkeys(f"{name} {v}" for found in results.values() for name, v in found["versions"].items())
    rows = [(TITLES[name], found["date"][:10], f"`{found['command']}`") for name, found in results.items()]
    return "\n\n".join(
        [
            "## How it was made",
            paragraph(f"On {machine['cores']} cores ({machine['cpu']}), one thread a run, with {listed(versions)}."),
            "\n".join(_point(name, text) for name, text in points.items()),
            table(("part", "date", "command"), rows, numbers=False),
            "All runs are in `benchmarks/results/*.json`, and this page is made from them:",
            COMMANDS,
        ]
    )


def _by_hand(problems: Results) -> str:
    """How much less the plain sum's step takes by hand."""
    plain = {name: found["peers"][PLAIN] for name, found in problems.items() if PLAIN in found.get("peers", {})}
    if not plain:
        return ""
    ratios = {name: sides[OURS]["ratio"] / sides[THEIRS]["ratio"] for name, sides in plain.items()}
    said = listed(f"{three(ratio)} ({TITLES[name]})" for name, ratio in ratios.items())
    return f"Its step took so many times as long as that of a loop by hand: {said}."


def _point(name: str, text: str) -> str:
    return paragraph(f"- **{name}.** {text}").replace("\n", "\n  ")
