"""The digits as a picture: what the network sees, how often each method is right, what a step costs. No statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

from .._pictures.figure import SMALL, Style, labels, picture, styles, tick
from .data import Pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

SHOWN = 6  # pictures


@dataclass(frozen=True)
class Scores:
    """One quantity of one method: a value for each seed, their mean and half of its 95 % interval, if there is one."""

    values: Sequence[float]
    mean: float
    half: float | None


def draw(
    examples: Pictures,
    scores: Mapping[str, Mapping[str, Scores]],
    milliseconds: Mapping[str, float | None],
    about: str,
    path: str | PathLike[str] | None,
) -> Figure:
    """Draw, and save if there is a path.

    Args:
        examples: Pictures to show.
        scores: By title, then by method.
        milliseconds: A step of each method.
        about: The title of all.
        path: Where to.
    """
    looks = styles(milliseconds)
    with picture(path, 11, 3.6) as figure:
        figure.suptitle(about, fontsize=11)
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(3, 8))[0]
        _draw_examples(left, examples)
        *panels, last = right.subplots(1, len(scores) + 1, squeeze=False)[0]
        for axes, (title, of_method) in zip(panels, scores.items(), strict=True):
            _draw_scores(axes, of_method, looks)
            axes.set_title(title, fontsize=10)
        _draw_times(last, list(milliseconds.values()))
        for axes in (*panels[1:], last):
            axes.set_yticklabels([])
        panels[0].set_yticklabels(labels(looks, 24))
    return figure


def _draw_examples(figure: SubFigure, examples: Pictures) -> None:
    for i, axes in enumerate(figure.subplots(2, SHOWN // 2, squeeze=False).flat):
        axes.imshow(examples.images[i, 0].numpy(), cmap="gray_r")
        answers = [str(int(of_task[i])) for of_task in examples.labels.values()]
        axes.set_title(" and ".join(answers), fontsize=SMALL)
        axes.set(xticks=(), yticks=())


def _draw_scores(axes: Axes, of_method: Mapping[str, Scores], looks: Mapping[str, Style]) -> None:
    """From top to bottom: each seed a dot, and the mean with its interval."""
    for place, (method, scores) in enumerate(of_method.items()):
        axes.plot(scores.values, [place + 0.22] * len(scores.values), "o", color="0.75", markersize=3)
        axes.errorbar(scores.mean, place, xerr=scores.half, capsize=3, **looks[method].markers(7))
    _scale(axes, len(of_method))


def _draw_times(axes: Axes, milliseconds: Sequence[float | None]) -> None:
    bars = axes.barh(range(len(milliseconds)), [each or 0 for each in milliseconds], height=0.5, color="0.75")
    axes.bar_label(bars, ["not known" if each is None else f"{each:.2g}" for each in milliseconds], padding=3)
    axes.margins(x=0.2)
    axes.set_title("time of a step, ms", fontsize=10)
    _scale(axes, len(milliseconds))


def _scale(axes: Axes, n_methods: int) -> None:
    axes.set_yticks(range(n_methods))
    axes.set_ylim(n_methods - 0.5, -0.5)
    axes.tick_params(labelsize=SMALL)
    tick(axes.xaxis, most=4)
    axes.grid(axis="x", alpha=0.3)
