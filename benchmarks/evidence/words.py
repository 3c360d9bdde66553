"""Titles of the problems, and numbers as the tables of the page show them. Knows no results."""

from __future__ import annotations

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


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
