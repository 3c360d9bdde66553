"""What the demo's parts print: a title, a few sentences, a table, and one verdict in bold. No numbers of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .._comparison.extras import extra
from .._comparison.table import terminal_width, wrapped


def show(title: str, about: Iterable[str], header: Sequence[str], rows: Iterable[Sequence[str]], verdict: str) -> None:
    """Print a part of the demo in at most as many columns as the terminal has.

    Args:
        title: What it is about.
        about: What was done, each a paragraph.
        header: Of the table.
        rows: Its lines; their first cells are names, the others stand to the right.
        verdict: What came of it, behind the word "Verdict:".
    """
    width, text = terminal_width(), extra("rich.text").Text
    console = extra("rich.console").Console(width=width, highlight=False)
    table = extra("rich.table").Table(box=extra("rich.box").SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, cell in enumerate(header):
        table.add_column(text(cell), justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*map(text, row))
    console.print(text(title, style="bold"))
    for line in wrapped(about, width):
        console.print(text(line))
    console.print()
    console.print(table)
    console.print()
    for line in wrapped([f"Verdict: {verdict}"], width):
        console.print(text(line, style="bold"))


def count(number: int, what: str) -> str:
    """A number and what it counts."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
