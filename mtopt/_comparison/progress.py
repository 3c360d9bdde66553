"""The progress bar over all runs of a study. No training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .extras import extra

_PERIOD = 0.2  # seconds between two drawings: the steps are not to be slowed down

Report = Callable[[str, float], None]
"""Told what runs, and how many runs are done, in parts of one."""


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Report]:
    """A bar on stderr, which goes when it is left; or none."""
    if not shown:
        yield lambda what, done: None
        return
    rich, console = extra("rich.progress"), extra("rich.console").Console(stderr=True, highlight=False)
    columns = [rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), rich.MofNCompleteColumn()]
    columns += [rich.TextColumn("runs"), rich.TimeRemainingColumn()]
    with rich.Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = progress.add_task("", total=total)
        next_time = 0.0

        def report(what: str, done: float) -> None:
            nonlocal next_time
            if time.monotonic() >= next_time or done == total:
                next_time = time.monotonic() + _PERIOD
                progress.update(bar, description=what, completed=done, refresh=True)

        yield report
