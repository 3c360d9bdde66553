"""`compare FILE.py`: what the file and the options ask for, tried out, compared and shown. No training of its own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._comparison.arguments import PLAIN, MethodLike, public_method
from .._comparison.compare import Comparison, compare
from .._comparison.extras import extra
from .._comparison.records import Records
from .._comparison.study import checked_study
from .._comparison.table import terminal_width
from .._comparison.trial import try_out
from .failures import UsageError, usage
from .file import loaded
from .options import PICTURES, add_traceback, python_file, seconds, whole, writable

DESCRIPTION = """Trains each method, and the plain sum of the losses, from the same weights on
the same batches, and says plainly where no difference was found.

What has the name of an argument of mtopt.compare in FILE.py is that argument:
make_model, make_losses and batches; if you like, also methods, make_optimizer,
make_metrics, at, seeds, epochs and seconds. Options win over FILE.py. One step
of each method is tried first, to find mistakes before the training.

Needs: pip install "mtopt[compare]"
"""

EXAMPLES = """a FILE.py:
  import torch
  from torch import nn

  inputs = torch.randn(40, 32, 8)
  batches = [(x, x.sin().sum(1), x.cos().sum(1)) for x in inputs]

  def make_model():
      trunk = nn.Sequential(nn.Linear(8, 64), nn.ReLU())
      heads = {"a": nn.Linear(64, 1), "b": nn.Linear(64, 1)}
      return nn.ModuleDict({"trunk": trunk, **heads})

  def make_losses(model, batch):
      x, a, b = batch
      z = model["trunk"](x)
      return {
          "a": (model["a"](z)[:, 0] - a).square().mean(),
          "b": (model["b"](z)[:, 0] - b).square().mean(),
      }

examples:
  python -m mtopt compare study.py
  python -m mtopt compare study.py --methods GradDrop MGDA PCGrad --epochs 10
  python -m mtopt compare study.py --seconds 60 --seeds 10 --output study.jsonl
  python -m mtopt compare study.py --at trunk --plot study.png --json study.json

After Ctrl-C or a kill, the same command with --output goes on where it was."""


def add_to(parts: Any) -> None:
    """Add the part to the command line's."""
    parser: argparse.ArgumentParser = parts.add_parser(
        "compare",
        help="train methods side by side on your own model",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=run, output=None, plot=None, json=None)
    parser.add_argument("file", metavar="FILE.py", type=python_file, help="what is compared")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="of FILE.py's methods, or mtopt's own (default: all of FILE.py's, or GradDrop)",
    )
    parser.add_argument("--seeds", type=whole(1), metavar="N", help="how many times each method trains (default: 5)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=whole(1), metavar="N", help="passes over the batches (default: 1)")
    length.add_argument("--seconds", type=seconds, metavar="S", help="instead: equal time for each run")
    parser.add_argument(
        "--at",
        metavar="PLACE",
        help="where gradients are combined: activations (default), parameters, or the name of a submodule",
    )
    parser.add_argument("--output", type=writable(".jsonl"), metavar="FILE.jsonl", help="keeps each finished run")
    parser.add_argument("--plot", type=writable(*PICTURES), metavar="FILE.png", help="picture to write")
    parser.add_argument("--json", type=writable(".json"), metavar="FILE.json", help="the results as numbers")
    add_traceback(parser)


def run(options: argparse.Namespace) -> bool:
    """Returns whether all runs are finished."""
    for module in ("scipy.special", "rich.progress"):
        extra(module)
    if options.plot is not None:
        extra("matplotlib.figure", "`--plot`", "plot")
    with loaded(options.file) as defined:
        arguments = _arguments(defined, options)
        with usage(options.file):
            study = checked_study(**arguments)
            Records(options.output, study.description())
            print("Trying one step of each method ...", file=sys.stderr)
            try_out(study)
        result = compare(**arguments, output=options.output)
        if result.complete:
            print(result.text(terminal_width()))
        if result.runs:
            _save(result, options.json, options.plot)
    return result.complete


def _arguments(defined: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The file's, overruled by the options."""
    given = vars(options)
    arguments = dict(defined)
    arguments.update((key, given[key]) for key in ("seeds", "epochs", "seconds", "at") if key in given)
    for one, other in (("epochs", "seconds"), ("seconds", "epochs")):
        if one in given:
            arguments.pop(other, None)
    arguments.setdefault("methods", ["GradDrop"])
    if "methods" in given:
        arguments["methods"] = _chosen(given["methods"], defined.get("methods"))
        at = arguments.get("at")
        if isinstance(at, Mapping):
            arguments["at"] = {name: site for name, site in at.items() if name in arguments["methods"]}
    return arguments


def _chosen(names: Sequence[str], own: object) -> dict[str, MethodLike]:
    """Methods by name: of the file's own dict, or mtopt's."""
    known: Mapping[str, MethodLike] = own if isinstance(own, Mapping) else {}
    try:
        chosen = {name: known[name] if name in known else public_method(name, list(known)) for name in names}
    except ValueError as error:
        raise UsageError(str(error)) from error
    chosen.pop(PLAIN, None)
    return chosen


def _save(result: Comparison, numbers: Path | None, picture: Path | None) -> None:
    if numbers is not None:
        numbers.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
        print(f"Numbers: {numbers}")
    if picture is not None:
        result.plot(picture)
        print(f"Picture: {picture}")
