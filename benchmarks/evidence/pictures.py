"""The results as pictures, readable in grey: differences to the plain sum, and how often sinusoids end well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svg import svg

from .summary import BETTER, DIVERGED, NO_DIFFERENCE, WORSE

# Told apart in grey by marker and fill; the colours are Okabe and Ito's, safe for the colour-blind.
VERDICTS: dict[str, tuple[str, str, str]] = {  # colour, marker, its face
    BETTER: ("#0072B2", "^", "#0072B2"),
    WORSE: ("#D55E00", "v", "#D55E00"),
    NO_DIFFERENCE: ("#000000", "o", "white"),
    DIVERGED: ("#777777", "x", "#777777"),
}
FAMILIES = (("#0072B2", "o"), ("#D55E00", "s"), ("#000000", "^"))
WIDEST = 4.0  # intervals that reach further than so many times the third quartile leave the picture

Interval = tuple[str, float, float, str]  # method, mean, half, verdict
Share = tuple[str, float, float, float]  # method, share, and the ends of its interval


def differences(found: Mapping[str, Any]) -> list[Interval]:
    """Of every method that has one to the plain sum, from the worst to the best."""
    sign = 1 if found["settings"]["larger_is_better"] else -1
    known = [
        (name, difference["mean"], difference["half"], entry["summary"]["verdict"])
        for name, entry in found["methods"].items()
        if (difference := entry.get("summary", {}).get("difference")) and difference["half"] is not None
    ]
    return sorted(known, key=lambda row: sign * row[1])


def shown(intervals: list[Interval]) -> tuple[float, float]:
    """The range of the picture: all intervals, but for those much wider or further off than the others."""
    reach = sorted(max(abs(mean - half), abs(mean + half)) for _, mean, half, _ in intervals)
    limit = WIDEST * max(reach[(3 * len(reach) - 1) // 4], 1e-9)
    low = min(0.0, *(max(mean - half, -limit) for _, mean, half, _ in intervals))
    high = max(0.0, *(min(mean + half, limit) for _, mean, half, _ in intervals))
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def draw_differences(path: Path, found: Mapping[str, Any]) -> None:
    """To the right is better; what is left of, or right of, the picture has an arrow."""
    rows = differences(found)
    low, high = shown(rows)
    with svg(path, 8, 1.2 + 0.2 * len(rows)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color="black", linewidth=0.8)
        seen = {}
        for place, (name, mean, half, verdict) in enumerate(rows):
            color, marker, face = VERDICTS[verdict]
            axes.plot([mean - half, mean + half], [place, place], color=color, linewidth=1.2, gid=f"interval {name}")
            gid = f"mean {name}"
            seen[verdict] = axes.plot([mean], [place], marker, color=color, mfc=face, markersize=5.5, gid=gid)[0]
            for outside, edge, arrow in ((mean < low, low, 4), (mean > high, high, 5)):
                if outside:  # matplotlib's markers 4 and 5 are arrows to the left and to the right
                    if not found["settings"]["larger_is_better"]:
                        arrow = 9 - arrow
                    axes.plot([edge], [place], color=color, marker=arrow, markersize=6, clip_on=False)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set(xlim=(low, high), ylim=(-0.8, len(rows) - 0.2))
        axes.set_xlabel(f"difference to the plain sum: {found['settings']['metric']} (to the right: better)")
        if not found["settings"]["larger_is_better"]:
            axes.invert_xaxis()
        axes.grid(axis="both", alpha=0.3)
        order = [verdict for verdict in VERDICTS if verdict in seen]
        figure.legend([seen[v] for v in order], order, loc="outside lower center", ncols=4, frameon=False)


def shares(found: Mapping[str, Any]) -> dict[str, list[Share]]:
    """Of the starts that reach the joint minimum, by family and method."""
    return {
        family: [(name, rate["share"], *rate["interval"]) for name, rate in rates.items()]
        for family, rates in found["rates"].items()
    }


def draw_shares(path: Path, found: Mapping[str, Any]) -> None:
    families = shares(found)
    with svg(path, 8, 2.8) as figure:
        axes = figure.subplots()
        names = [name for name, *_ in next(iter(families.values()))]
        for number, (family, rows) in enumerate(families.items()):
            color, marker = FAMILIES[number]
            for place, (name, share, low, high) in enumerate(rows):
                height = place + 0.2 * (number - 1)
                axes.plot([low, high], [height, height], color=color, linewidth=1.2)
                label = f"frequencies: {family}" if place == 0 else None
                gid = f"{family} | {name}"
                axes.plot([share], [height], marker, color=color, markersize=5.5, label=label, gid=gid)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="share of the starts that reach the joint minimum")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
