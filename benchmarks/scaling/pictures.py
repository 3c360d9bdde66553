"""The measurements as pictures on log-log axes, readable in grey. No numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svg import log_ticks, svg

from .theory import (
    DROP_ACTIVATIONS,
    DROP_PARAMETERS,
    SEPARATE,
    TORCHJD,
    UPGRAD_ACTIVATIONS,
    UPGRAD_PARAMETERS,
)
from .traffic import DDP, FSDP2, MARGINALIZED

# Told apart in grey by line and marker; the colours are Okabe and Ito's, safe for the colour-blind.
STYLES: dict[str, tuple[str, str, str]] = {
    DROP_ACTIVATIONS: ("#0072B2", "-", "o"),
    MARGINALIZED: ("#56B4E9", "--", "P"),
    UPGRAD_ACTIVATIONS: ("#009E73", "--", "^"),
    DROP_PARAMETERS: ("#D55E00", "-", "s"),
    UPGRAD_PARAMETERS: ("#CC79A7", "--", "D"),
    TORCHJD: ("#000000", "-.", "x"),
    SEPARATE: ("#777777", ":", "v"),
}
AXES = {
    "losses": "losses T",
    "parameters": "parameters P of the trunk",
    "batch": "examples B in the batch",
}
TIMES, MILLISECONDS = "times the plain sum's step", "added time (ms)"

Line = tuple[str, list[float], list[float]]  # method, x, y


def ratio_lines(sweep: dict[str, Any], xs: Sequence[float]) -> list[Line]:
    """The step over the plain sum's, of every method."""
    points = sweep["points"]
    return [(m, list(xs), [p["methods"][m]["ratio"][1] for p in points]) for m in STYLES if m in points[0]["methods"]]


def added_lines(sweep: dict[str, Any], xs: Sequence[float]) -> list[Line]:
    """What every method adds to the plain sum, where it can be told from 0."""
    lines = []
    for method, x, _ in ratio_lines(sweep, xs):
        added = [point["methods"][method]["added_ms"] for point in sweep["points"]]
        seen = [(at, middle) for at, (low, middle, _) in zip(x, added, strict=True) if low > 0]
        lines.append((method, [at for at, _ in seen], [y for _, y in seen]))
    return lines


def rank_lines(ranks: dict[str, Any], wrapper: str) -> list[Line]:
    """The step over the plain sum's with the same wrapper and as many ranks."""
    lines = []
    for method in STYLES:
        y = [
            row["ratio"][1]
            for point in ranks["points"]
            for row in point["methods"]
            if (row["method"], row["wrapper"]) == (method, wrapper)
        ]
        if y:
            lines.append((method, [float(point["ranks"]) for point in ranks["points"]], y))
    return lines


def draw_sweep(path: Path, name: str, sweep: dict[str, Any], xs: Sequence[float]) -> None:
    panels = [
        (ratio_lines(sweep, xs), "a step over the plain sum's", TIMES),
        (added_lines(sweep, xs), "what a method adds to the plain sum", MILLISECONDS),
    ]
    _draw(path, panels, AXES[name], xs)


def draw_ranks(path: Path, ranks: dict[str, Any]) -> None:
    panels = [
        (rank_lines(ranks, wrapper), f"{wrapper}: a step over the plain sum's", TIMES) for wrapper in (DDP, FSDP2)
    ]
    _draw(path, panels, "ranks", [float(point["ranks"]) for point in ranks["points"]])


def _draw(path: Path, panels: Sequence[tuple[list[Line], str, str]], label: str, xs: Sequence[float]) -> None:
    with svg(path, 9, 4.6) as figure:
        for place, (axes, (lines, title, unit)) in enumerate(zip(figure.subplots(1, 2), panels, strict=True)):
            for method, x, y in lines:
                color, line, marker = STYLES[method]
                style = {"color": color, "linestyle": line, "marker": marker, "markersize": 5}
                axes.plot(x, y, label=method, gid=f"{place} {method}", **style)
            axes.set(title=title, xlabel=label, ylabel=unit, xscale="log", yscale="log")
            if unit == TIMES:
                axes.axhline(1, color="black", linewidth=0.8)
            log_ticks(axes, xs)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
