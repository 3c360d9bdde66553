"""`report FILE.py`: how the losses of the first batch conflict. No training."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .._comparison.extras import extra
from .._comparison.study import checked_study
from .._comparison.table import terminal_width
from .._comparison.trial import first_losses
from .._survey.report import conflict_report
from .failures import usage
from .file import loaded
from .options import PICTURES, add_traceback, python_file, writable

DESCRIPTION = """Looks at the gradients of the losses on the first batch, before any training:
where they conflict, where it is best to combine them, and at what cost.

FILE.py is that of compare; make_model, make_losses and batches are used."""

EXAMPLES = """examples:
  python -m mtopt report study.py
  python -m mtopt report study.py --plot conflict.png --json conflict.json"""


def add_to(parts: Any) -> None:
    """Add the part to the command line's."""
    parser: argparse.ArgumentParser = parts.add_parser(
        "report",
        help="see on one batch whether your losses conflict",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=run, plot=None, json=None)
    parser.add_argument("file", metavar="FILE.py", type=python_file, help="what is looked at")
    parser.add_argument("--plot", type=writable(*PICTURES), metavar="FILE.png", help="picture to write")
    parser.add_argument("--json", type=writable(".json"), metavar="FILE.json", help="the report as numbers")
    add_traceback(parser)


def run(options: argparse.Namespace) -> bool:
    """Returns whether it is done, which it is."""
    if options.plot is not None:
        extra("matplotlib.figure", "`--plot`", "plot")
    with loaded(options.file) as defined, usage(options.file):
        study = checked_study(defined["make_model"], defined["make_losses"], defined["batches"], ["GradDrop"], [0])
        report = conflict_report(*first_losses(study))
    print(report.text(terminal_width()))
    if options.json is not None:
        options.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        print(f"Numbers: {options.json}")
    if options.plot is not None:
        report.plot(options.plot)
        print(f"Picture: {options.plot}")
    return True
