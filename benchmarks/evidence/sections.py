"""The parts of docs/evidence.md on one problem, and on the sinusoids. Nothing on several problems, or on peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prose import paragraph
from scaling.tables import table, three

from .claims import Found
from .methods import PLAIN
from .pictures import differences, shares
from .table import interval
from .words import EDGE, TITLES, counted, listed, number, p_value, percent

GRADDROP, RANDOM = "GradDrop", "Random GradDrop"
HEAD = ("method", "steps", "step / plain", "learning rate", "score", "difference", "p", "")


def problem_section(name: str, found: Found, folder: str) -> str:
    """What it is, the table, what could not be used, the noise, the picture."""
    settings = found["settings"]
    better = "larger" if settings["larger_is_better"] else "smaller"
    about = paragraph(
        settings["about"],
        f"{number(len(settings['tasks']), 'loss', 'losses')}, which meet at {settings['at']}.",
        f"The plain sum takes {settings['steps']:,} steps, each method as many as fit in its time.",
        f"The score is the {settings['metric']} ({better} is better), over {len(found['seeds'])} seeds.",
    )
    noise = f"Noise of the times: the plain sum, again, took {three(found['noise'])} times as long as the plain sum."
    parts = [f"## {TITLES[name]}", about, table(HEAD, _rows(found)), paragraph(noise)]
    if found["refused"]:
        reasons = (f"- {method}: {_one_line(reason)}" for method, reason in found["refused"].items())
        parts += ["Refused, with the reason given:", "\n".join(reasons)]
    if differences(found):
        parts.append(f"![{_alt(found)}]({folder}/{name}.svg)")
    return "\n\n".join(parts)


def _rows(found: Found) -> Iterator[tuple[str, ...]]:
    for name, entry in found["methods"].items():
        first = (name, f"{entry['steps']:,}", three(entry["ratio"]))
        summary = entry.get("summary")
        if summary is None:
            yield (*first, "", "", "", "", "every trial diverged")
            continue
        rate = f"{entry['setting']['lr']:g}{EDGE if entry['at_edge'] else ''}"
        lost = f" ({summary['diverged']} of {len(entry['runs'])} diverged)" if summary["diverged"] else ""
        yield (
            *first,
            rate,
            interval(summary["score"]),
            interval(summary.get("difference"), sign=True),
            p_value(summary.get("p")),
            summary.get("verdict", "") + lost,
        )


def _alt(found: Found) -> str:
    rows = differences(found)
    verdicts = [verdict for *_, verdict in rows]
    (worst, low, *_), (best, high, *_) = rows[0], rows[-1]
    return (
        f"The differences of {len(rows)} methods to the plain sum with their 95 % intervals, sorted, and a line at 0: "
        f"{counted(verdicts)}. The worst is {worst} ({low:+.4f}), the best {best} ({high:+.4f})."
    )


def _one_line(reason: str) -> str:
    return " ".join(reason.split()).replace("|", "\\|")


# -- sinusoids ---------------------------------------------------------------------------------------------------------

DRAWN = {
    "golden ratio": "each 1.618 times the one before, from 1/4 on",
    "1/4 to 4": "drawn anew for each start, log-uniformly between 1/4 and 4",
    "1 to 3": "drawn anew for each start, uniformly between 1 and 3",
}


def sinusoid_section(found: Found, folder: str) -> str:
    families, settings = found["rates"], found["settings"]
    names = list(next(iter(families.values())))
    rows = [(name, *(_share(rates[name]) for rates in families.values())) for name in names]
    times = {family: rates[GRADDROP]["share"] / rates[PLAIN]["share"] for family, rates in families.items()}
    rows.append((f"{GRADDROP} / {PLAIN}", *(f"{ratio:.2f}" for ratio in times.values())))
    what = paragraph(
        f"""
        Where theory says that GradDrop must differ: the one-dimensional example of the paper. Six losses of one number
        x are all 0 at one place alone, the joint minimum; their sum has many other minima. Each loss is 1 - cos(a x)
        with a frequency a of its own. From {settings["starts"]:,} starts, drawn within {settings["range"]:g} of the
        joint minimum, gradient descent takes {settings["steps"]:,} steps. The table says how many end within
        {settings["near"]:g} of it, with 95 % intervals; the learning rate was tuned for each method on other starts.
        """
    )
    drawn = "\n".join(f"- {family}: the frequencies are {DRAWN[family]}." for family in families)
    edges = any(rate["at_edge"] for rates in families.values() for rate in rates.values())
    alt = ". ".join(
        f"Frequencies {family}: " + ", ".join(f"{name} {percent(share)}" for name, share, *_ in rows_of)
        for family, rows_of in shares(found).items()
    )
    return "\n\n".join(
        [
            "## Sinusoids",
            what,
            drawn,
            table(("method", *families), rows),
            paragraph(*_said_of_sinusoids(families, times, edges)),
            f"![Shares of the starts with their intervals. {alt}.]({folder}/sinusoids.svg)",
        ]
    )


def _said_of_sinusoids(families: Mapping[str, Any], times: Mapping[str, float], edges: bool) -> Iterator[str]:
    said = listed(f"{ratio:.1f} ({family})" for family, ratio in times.items())
    yield f"GradDrop reached the joint minimum so many times as often as the plain sum: {said}."
    yield (
        "Do not take the first number alone: this family was chosen after some 20 settings had been tried and their"
        " results seen; with the first GradDrop gained nothing. Its scales are far apart, which is where"
        " the slow losses can lead out of the minima of the fast ones. Where frequencies are close together, little is"
        " gained."
        if list(times.values()) == sorted(times.values(), reverse=True)
        else "The first family was chosen because its scales are far apart."
    )
    if all(rates[RANDOM]["share"] > rates[GRADDROP]["share"] for rates in families.values()):
        yield (
            "Random GradDrop, which does not look at the purity, reached it still more often: here it is the noise that"
            " helps, more than the choice of the sign."
        )
    if edges:
        yield f"{EDGE}: the best rate was the smallest or the largest tried; the smallest, if several did equally well."


def _share(rate: Mapping[str, Any]) -> str:
    low, high = rate["interval"]
    edge = EDGE if rate["at_edge"] else ""
    return f"{percent(rate['share'])}{edge} ({percent(low)} to {percent(high)})"
