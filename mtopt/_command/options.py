"""Values of options, checked before anything runs: numbers and paths. No parser."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from .._checks import near_names

PICTURES = (".png", ".pdf", ".svg")


def whole(least: int, most: int = 1_000_000) -> Callable[[str], int]:
    """Whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, but it is {text!r}")
        return number

    return read


def seconds(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, but it is {text!r}")
    return number


def python_file(text: str) -> Path:
    """A Python file that is there."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder. Name a Python file in it")
    if not path.exists():
        near = near_names(path.name, [other.name for other in path.parent.glob("*.py")])
        raise argparse.ArgumentTypeError(f"there is no file {text!r}.{near}")
    if path.suffix != ".py":
        raise argparse.ArgumentTypeError(f"{text!r} is not a Python file: its name must end in .py")
    try:
        path.open("rb").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: {error.strerror}") from None
    return path


def writable(*suffixes: str) -> Callable[[str], Path]:
    """Paths that end in one of `suffixes` and can be written, found out by opening them."""

    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in suffixes:
            ending = suffixes[0] if len(suffixes) == 1 else f"one of {', '.join(suffixes)}"
            raise argparse.ArgumentTypeError(f"must end in {ending}, but it is {text!r}")
        existed = path.exists()
        try:
            path.open("ab").close()
        except OSError as error:
            raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
        if not existed:
            path.unlink()
        return path

    return read


def add_traceback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--traceback", action="store_true", default=False, help="if something fails, show all calls that led there"
    )
