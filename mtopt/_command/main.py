"""The command line as a whole: its parts, what goes wrong, and the exit codes. No training."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from .._version import __version__
from . import compare, demo, report
from .failures import UsageError, explained

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
PROG = "python -m mtopt"
OWN_OPTIONS = ("-h", "--help", "--version")

EXAMPLES = f"""examples:
  {PROG}                       the demo, half a minute
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
        options = _parser().parse_args(given)
        return _run(options)
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
        return FAILED
    return 0 if complete else INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Trains one network on several losses.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mtopt {__version__}")
    parts = parser.add_subparsers(title="parts", dest="part", metavar="demo | compare | report", required=True)
    demo.add_to(parts)
    compare.add_to(parts)
    report.add_to(parts)
    return parser
