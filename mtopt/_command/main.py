"""The command line as a whole: its parts, what goes wrong, and the exit codes. No training."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

from .._checks import near_names
from .._version import __version__
from . import compare, demo, report
from .failures import UsageError, explained

PARTS = {"demo": demo, "compare": compare, "report": report}
FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
PROG = "python -m mtopt"
OWN_OPTIONS = ("-h", "--help", "--version")

EXAMPLES = f"""examples:
  {PROG}                       the demo, in a minute
  {PROG} report study.py       do my losses conflict, and where?
  {PROG} compare study.py --methods GradDrop MGDA --seeds 5

study.py defines make_model, make_losses and batches, arguments of
mtopt.compare. "{PROG} compare --help" shows one.

exit codes: 0 done, 1 something failed, 2 wrong use, 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a part of the command line; returns the exit code. Wrong options leave with 2, as argparse does it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in OWN_OPTIONS):
        given = ["demo", *given]
    try:
        parser = _parser()
        if given[0] not in (*PARTS, *OWN_OPTIONS):
            parser.error(_no_part(given[0]))
        return _run(parser.parse_args(given))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    try:
        complete = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`; without this Python complains again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UsageError as error:
        print(f"{PROG} {options.part}: error: {error}", file=sys.stderr)
        return WRONG_USE
    except (Exception, SystemExit) as error:
        if options.traceback:
            traceback.print_exception(error)
        else:
            print(explained(error, options.file), file=sys.stderr)
        return WRONG_USE if isinstance(error, SyntaxError) else FAILED
    return 0 if complete else INTERRUPTED


def _no_part(word: str) -> str:
    """What is said of a first word that is no part: most likely a file, a problem of the demo, or a misspelt part."""
    told = f"there is no command {word!r}."
    if word.endswith(".py"):
        return f"{told} To look at the losses of that file: {PROG} report {shlex.quote(word)}"
    if word in demo.PARTS:
        return f"{told} Did you mean: {PROG} demo {word}"
    return told + (near_names(word, [*PARTS]) or f" There are {', '.join(PARTS)}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Trains one network on several losses.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mtopt {__version__}")
    parts = parser.add_subparsers(title="commands", dest="part", metavar=" | ".join(PARTS), required=True)
    for part in PARTS.values():
        part.add_to(parts)
    return parser
