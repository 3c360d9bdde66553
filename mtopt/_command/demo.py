"""The demo on the command line: options, and what it says. The comparison is `mtopt.compare`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .._comparison.compare import compare
from .._comparison.extras import extra
from .._comparison.study import Study, checked_study
from .._comparison.table import terminal_width, wrapped
from .._comparison.trial import first_losses
from .._demo.problem import problem
from .._survey.report import conflict_report
from .options import PICTURES, add_traceback, whole, writable

EXTRAS = ("scipy.special", "sklearn.datasets", "matplotlib.figure", "rich.progress")

DESCRIPTION = """Trains GradDrop and the plain sum of losses on real handwritten digits, two
overlaid in one picture, and compares them: losses, accuracy, time, memory.
Takes about half a minute.

Needs: pip install "mtopt[demo]"
"""

EXAMPLES = """examples:
  python -m mtopt
  python -m mtopt demo --seeds 10 --output digits.png"""

INTRODUCTION = "Two handwritten digits lie over each other in one picture. One task names the left, one the right."
CAUTION = (
    "One small data set, one split of it, one network, one learning rate for all: yours may differ. "
    "`python -m mtopt compare --help` shows how to compare on your own model."
)


def add_to(parts: Any) -> None:
    """Add the part to the command line's."""
    parser: argparse.ArgumentParser = parts.add_parser(
        "demo",
        help="GradDrop against the plain sum on overlaid digits",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, file=None)
    add = parser.add_argument
    add("--seeds", type=whole(1), metavar="N", default=6, help="how many times each method trains (default: 6)")
    add("--epochs", type=whole(1), metavar="N", default=20, help="passes over the training digits (default: 20)")
    add("--seed", type=whole(0), metavar="N", default=0, help="the first seed; same seed, same numbers (default: 0)")
    add(
        "--output",
        type=writable(*PICTURES),
        metavar="FILE.png",
        default="mtopt-demo.png",
        help="picture to write (default: mtopt-demo.png)",
    )
    add_traceback(parser)


def run(options: argparse.Namespace) -> bool:
    """Returns whether all runs are finished."""
    for module in EXTRAS:
        extra(module, "The demo", "demo")
    with _one_thread():
        seeds = range(options.seed, options.seed + options.seeds)
        arguments = {**problem(options.seed, options.epochs), "seeds": seeds}
        conflict = _conflict_at_start(checked_study(**arguments))
        result = compare(**arguments)
    if not result.complete:
        return False
    width = terminal_width()
    print(*wrapped([INTRODUCTION, conflict], width), "", result.text(width), *wrapped([CAUTION], width), sep="\n")
    result.plot(options.output)
    print(f"Picture: {options.output}")
    return True


def _conflict_at_start(study: Study) -> str:
    report = conflict_report(*first_losses(study))
    meeting = report.meetings[0].conflict
    return (
        f"Before training, on the first batch: at {100 * meeting.share:.0f} % of the numbers of the shared activation "
        f"the tasks' gradients have opposite signs (50 % if they are unrelated); their cosine is "
        f"{meeting.cosines[0, 1]:+.2f}."
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """The network is too small to gain by more, and results then do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
