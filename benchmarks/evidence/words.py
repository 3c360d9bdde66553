"""Numbers, names and lists in the words of the page. Knows no results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .summary import BETTER, DIVERGED, NO_DIFFERENCE, WORSE

EDGE = "†"  # the best learning rate was at the edge of those tried
SINUSOIDS = "sinusoids"
TITLES = {
    SINUSOIDS: "Sinusoids",
    "multi_fashion": "Multi-Fashion",
    "multi_fashion_mnist": "Multi-Fashion-MNIST",
    "yeast": "Yeast",
    "census": "Census-Income",
    "transfer": "Transfer",
    "helmholtz": "Helmholtz",
    "burgers": "Burgers",
    "quick_digits": "Quick digits",
    "quick_helmholtz": "Quick Helmholtz",
}


def listed(words: Iterable[str]) -> str:
    """As "a, b and c"; "none", if there are none."""
    found = list(words)
    if not found:
        return "none"
    *first, last = found
    return f"{', '.join(first)} and {last}" if first else last


def number(n: int, one: str, many: str) -> str:
    """As "1 problem", "3 problems" or "no problems"."""
    return f"{n or 'no'} {one if n == 1 else many}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def counted(verdicts: Sequence[str]) -> str:
    """As "better in 2, worse in 3, no difference found in 4"; those that did not happen are left out."""
    words = {BETTER: "better in", WORSE: "worse in", NO_DIFFERENCE: "no difference found in", DIVERGED: "diverged in"}
    return listed(f"{said} {n}" for verdict, said in words.items() if (n := verdicts.count(verdict)))


def of_these(n: int, total: int) -> str:
    """As "All 3", "None of these 3" or "2 of these 3"; the beginning of a sentence."""
    return f"All {total}" if n == total else f"{n or 'None'} of these {total}"


def share_of(names: Sequence[str], total: int, unit: str) -> str:
    """As "2 of 9 cells: a and b." or "0 of 9 cells."; the end of a sentence."""
    return f"{len(names)} of {total} {unit}" + (f": {listed(names)}." if names else ".")
