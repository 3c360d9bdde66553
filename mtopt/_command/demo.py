"""The demo on the command line: its options, and which of its parts run. What each shows is in a file of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._checks import near_names
from .._comparison.extras import extra
from .._comparison.table import terminal_width, wrapped
from . import demo_digits, demo_physics
from .failures import UsageError
from .options import PICTURES, add_traceback, whole, writable


@dataclass(frozen=True)
class Part:
    """One problem of the demo.

    Attributes:
        run: From the seeds, the length and the picture's path to whether all runs are finished.
        extras: Modules of other packages that it needs.
        seeds: How many, if not told.
        unit: What its length is counted in, which is an option's name.
        length: How long, if not told.
    """

    run: Callable[[Sequence[int], int, Path], bool]
    extras: Sequence[str]
    seeds: int
    unit: str
    length: int


PARTS: Mapping[str, Part] = {
    "physics": Part(demo_physics.run, demo_physics.EXTRAS, seeds=4, unit="steps", length=1000),
    "digits": Part(demo_digits.run, demo_digits.EXTRAS, seeds=6, unit="epochs", length=10),
}

PICTURE = "mtopt-demo.png"

DESCRIPTION = """Trains small networks on two problems, in less than a minute: physics, where
the weights of the losses matter, and overlaid digits, where the plain sum is
hard to beat. Each ends with a table, a verdict and a picture.

Needs: pip install "mtopt[demo]"
"""

EXAMPLES = """examples:
  python -m mtopt
  python -m mtopt demo physics --output string.png
  python -m mtopt demo digits --seeds 10 --epochs 30"""

CAUTION = (
    "No difference found does not mean equal: one of about the size of an interval can be overlooked. Your losses may "
    "behave like either: `python -m mtopt report study.py` looks at them."
)


def add_to(parts: Any) -> None:
    """Add the part to the command line's."""
    parser: argparse.ArgumentParser = parts.add_parser(
        "demo",
        help="where a method helps, and where none does",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, file=None)
    add = parser.add_argument
    add("problem", nargs="?", metavar="physics | digits", help="run only this one (default: both)")
    seeds = " and ".join(f"{part.seeds} for {name}" for name, part in PARTS.items())
    add("--seeds", type=whole(1), metavar="N", help=f"how many times each way trains (default: {seeds})")
    for name, part in PARTS.items():
        add(f"--{part.unit}", type=whole(1), metavar="N", help=f"how long, for {name} (default: {part.length})")
    add("--seed", type=whole(0), metavar="N", default=0, help="the first seed; same seed, same numbers (default: 0)")
    add(
        "--output",
        type=writable(*PICTURES),
        metavar="FILE.png",
        help=f"picture to write; two problems write FILE-physics.png and FILE-digits.png (default: {PICTURE})",
    )
    add_traceback(parser)


def run(options: argparse.Namespace) -> bool:
    """Returns whether all runs are finished."""
    given = vars(options)
    # Not before: a misspelt option with a value, `--sed 3`, is to be called unknown, and not the value.
    if options.problem not in (None, *PARTS):
        near = near_names(options.problem, [*PARTS])
        raise UsageError(f"the problem must be {' or '.join(PARTS)}, but it is {options.problem!r}.{near}")
    chosen = [options.problem] if options.problem else list(PARTS)
    for name, part in PARTS.items():
        if name not in chosen and given[part.unit] is not None:
            raise UsageError(f"`--{part.unit}` is for {name}, but only {chosen[0]} was asked for.")
    for name in chosen:
        for module in PARTS[name].extras:
            extra(module, "The demo", "demo")
    with _one_thread():
        for name in chosen:
            part, path = PARTS[name], _picture(options.output, name, alone=options.problem is not None)
            seeds = range(options.seed, options.seed + (options.seeds or part.seeds))
            if not part.run(seeds, given[part.unit] or part.length, path):
                return False
            print()
    print(*wrapped([CAUTION], terminal_width()), sep="\n")
    return True


def _picture(output: Path | None, name: str, *, alone: bool) -> Path:
    if output is not None and alone:
        return output
    path = output or Path(PICTURE)
    return path.with_stem(f"{path.stem}-{name}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """The networks are too small to gain by more, and results then do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
