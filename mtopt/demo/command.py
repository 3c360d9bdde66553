"""The command line of the demo: options, progress, interruption, exit codes. No training and no statistics."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .cost import measure_costs
from .data import make_data
from .picture import FORMATS, save_picture
from .table import print_results
from .training import METHODS, Run, train

if TYPE_CHECKING:
    from rich.console import Console

EXTRAS = ("sklearn.datasets", "matplotlib.figure", "rich")
MISSING = 'The demo needs scikit-learn, matplotlib and rich. Install them with: pip install "mtopt[demo]"'
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    try:
        options = _parse(arguments)
        for name in EXTRAS:
            try:
                importlib.import_module(name)
            except ImportError as error:
                print(f"{MISSING}\n({error})", file=sys.stderr)
                return 1
        with _own_torch_state():
            return _run(options)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; leaves with exit code 2 if one is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m mtopt",
        description="Trains GradDrop and the plain sum of losses on real handwritten digits, two overlaid in one "
        "picture, and compares them: accuracy, time, memory, conflict. Takes about half a minute.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=_whole(1), default=6, help="how many times each method trains")
    parser.add_argument("--epochs", type=_whole(1), default=20, help="passes over the training digits")
    parser.add_argument("--seed", type=_whole(0), default=0, help="the first of the seeds; same seed, same numbers")
    parser.add_argument("--output", type=_writable, default="mtopt-demo.png", help="picture to write")
    return parser.parse_args(arguments)


def _whole(least: int, most: int = 1_000_000) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, but it is {text!r}")
        return number

    return read


def _writable(text: str) -> Path:
    """A path that can be written, found out by opening it."""
    path = Path(text)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"must end in one of {', '.join(FORMATS)}, but it is {text!r}")
    existed = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
    if not existed:
        path.unlink()
    return path


@contextmanager
def _own_torch_state() -> Iterator[None]:
    """Leave torch's random state and number of threads as they were."""
    threads = torch.get_num_threads()
    # The network is too small to gain by more, and results then do not depend on the number of cores.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    console, messages = Console(highlight=False), Console(stderr=True, highlight=False)
    messages.print("Measuring time and memory of a step ...")
    costs = measure_costs(options.seed)
    results: dict[str, list[Run]] = {method: [] for method in METHODS}
    interrupted = False
    try:
        _train_all(options, results, messages)
    except KeyboardInterrupt:
        interrupted = True
        finished = min(map(len, results.values()))
        messages.print(f"Interrupted: all methods had finished {finished} of {options.seeds} seeds.")
        if finished == 0:
            return INTERRUPTED
        results = {method: runs[:finished] for method, runs in results.items()}
    print_results(console, results, costs)
    if interrupted:
        return INTERRUPTED
    try:
        save_picture(options.output, results)
    except OSError as error:
        messages.print(f"The picture could not be written: {error}", markup=False)
        return 1
    console.print(f"Picture: {options.output}", markup=False, soft_wrap=True)
    return 0


def _train_all(options: argparse.Namespace, results: dict[str, list[Run]], messages: Console) -> None:
    """Train every method on one seed after the other; fills in `results`, so that an interruption loses little."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    with Progress(*columns, TimeRemainingColumn(), console=messages) as progress:
        bar = progress.add_task("", total=len(METHODS) * options.seeds * options.epochs)
        for i in range(options.seeds):
            data = make_data(options.seed + i, options.epochs)
            for method in METHODS:
                progress.update(bar, description=f"seed {i + 1} of {options.seeds}, {method:22}")
                run = train(method, options.seed + i, data, lambda: progress.advance(bar))
                results[method].append(run)
