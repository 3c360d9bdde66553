"""Draws the pictures of the page on GradDrop: `python docs/pictures/graddrop.py`. Every number is one of mtopt's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

import mtopt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
# Told apart in grey, too: by lightness and hatch.
LOSSES = ({"color": "#0072B2"}, {"color": "#E69F00", "hatch": "//"}, {"color": "#D9D9D9"})

ROWS = torch.tensor([[3.0, 5.0, 2.0, -1.0], [1.0, -3.0, -4.0, -3.0], [2.0, 2.0, 2.0, -2.0]])  # (loss, coordinate)
DRAWS = torch.tensor([0.9, 0.4, 0.8, 0.2])
PAIR = torch.tensor([[7.0], [-3.0]])  # source, target
LEAKS = (0.0, 0.5, 1.0)
EXAMPLES = torch.tensor([[2.0, -1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, -2.0, 1.0]])  # (loss, example)
ACTIVATION = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0])
FOUR = torch.tensor([[7.0], [-3.0], [2.0], [-1.0]])
SLOPES = [i / 10 for i in range(11)]
EVERY_DRAW = (torch.arange(260) + 0.5) / 260  # spread evenly: with FOUR and SLOPES, the shares are exact


def kept_rows(rows: Tensor, uniform: Tensor, **settings: Any) -> Tensor:
    """What is left of each row: every loss has an example of its own here, and one decision is taken for all."""
    apart = torch.eye(len(rows))[:, :, None] * rows[:, None]  # (T, T, n)
    activation = torch.ones_like(rows)
    return mtopt.sign_dropout(apart, uniform=uniform, activation=activation, marginalize=0, **settings)


def outcomes(slope: float) -> Tensor:
    """The result for each of the draws that are spread evenly."""
    return mtopt.sign_dropout(FOUR.expand(-1, len(EVERY_DRAW)), uniform=EVERY_DRAW, keep=slope)


# -- the pictures ------------------------------------------------------------------------------------------------------


def purity() -> Figure:
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _grouped(above, ROWS, ["loss 1", "loss 2", "loss 3"])
    above.set(ylabel="gradient", ylim=(-5.5, 6.5))
    _purity_bars(below)
    _legend(figure, above, below)
    return figure


def pick() -> Figure:
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    kept = kept_rows(ROWS, DRAWS)
    _grouped(above, kept, ["loss 1, kept", "loss 2, kept", "loss 3, kept"])
    _grouped(above, ROWS - kept, ["dropped"] * 3, dropped=True)
    _results(above, mtopt.sign_dropout(ROWS, uniform=DRAWS), 8)
    above.set(ylabel="gradient", ylim=(-5.5, 10))
    _purity_bars(below)
    below.plot(DRAWS.tolist(), "o", color="#D55E00", markeredgecolor="white", markersize=9, label="the draw U")
    for x, draw in enumerate(DRAWS.tolist()):
        below.text(x + 0.08, draw, f"U = {draw:g}", va="center", bbox={"facecolor": "white", "pad": 1.5})
    _legend(figure, above, below)
    return figure


def leak() -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    share = mtopt.sign_purity(PAIR).item()
    for axes, uniform, title in (
        (both[0], torch.tensor([0.5]), f"positive sign picked: {100 * share:.0f} %"),
        (both[1], torch.tensor([0.9]), f"negative sign picked: {100 - 100 * share:.0f} %"),
    ):
        kept = [kept_rows(PAIR, uniform, leak=[0.0, of_target]) for of_target in LEAKS]
        _grouped(axes, torch.cat(kept, 1), ("source (7)", "target (−3)"))
        results = [mtopt.sign_dropout(PAIR, uniform=uniform, leak=[0.0, of_target]) for of_target in LEAKS]
        _results(axes, torch.cat(results), 10)
        axes.set(title=title, xlabel="leak of the target", ylim=(-4.5, 12))
        axes.set_xticks(range(3), [f"{of_target:g}" for of_target in LEAKS])
    both[0].set(ylabel="kept of the gradient")
    _legend(figure, both[0])
    return figure


def batch() -> Figure:
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    (gradients, votes), (sums, left) = figure.subplots(2, 2)
    signed = EXAMPLES * ACTIVATION.sign()
    totals = signed.sum(1, keepdim=True)  # (loss, 1)
    uniform, share = torch.tensor([0.3]), mtopt.sign_purity(totals).item()
    result = mtopt.sign_dropout(EXAMPLES[:, :, None], uniform=uniform, activation=ACTIVATION[:, None], marginalize=0)
    kept = result[:, 0] * (EXAMPLES != 0)  # each example has one loss
    _by_example(gradients, EXAMPLES, "1. gradients")
    _by_example(votes, signed, "2. votes: times the sign of A")
    _by_example(left, kept, "4. what is kept")
    _by_example(left, EXAMPLES - kept, "4. what is kept", dropped=True)
    signs = ["A > 0" if value > 0 else "A < 0" for value in ACTIVATION.tolist()]
    gradients.set_xticks(range(6), [f"{i + 1}\n{sign}" for i, sign in enumerate(signs)], fontsize=8.5)
    for row, total in enumerate(totals[:, 0].tolist()):
        bars = sums.bar(row, total, 0.6, label=f"sum {row + 1}", **_style(row))
        sums.bar_label(bars, [_text(total)], padding=2)
    sums.axhline(0, color="black", linewidth=0.8)
    sums.set(title=f"3. their sums: P = {share:.2f}", ylim=(-5.9, 5.9))
    sums.set_xlabel(f"U = {uniform.item():g}: {'positive' if uniform < share else 'negative'} is picked")
    sums.set_xticks([0, 1], ["loss 1", "loss 2"])
    _legend(figure, gradients, left)
    return figure


def noise() -> Figure:
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    chances, means, variances = (figure.add_subplot(place) for place in (grid[0, :], grid[1, 0], grid[1, 1]))
    plain = FOUR.sum().item()
    positive, negative = mtopt.sign_dropout(FOUR.expand(-1, 2), uniform=torch.tensor([0.0, 0.99])).tolist()
    for i, slope in enumerate((0.0, 0.5, 1.0)):
        shares = [(outcomes(slope) == value).double().mean().item() for value in (negative, positive)]
        at = [value + 1.3 * (i - 1) for value in (negative, positive)]
        chances.bar_label(chances.bar(at, shares, 1.3, label=f"k = {slope:g}", **_style(i)), fmt="%.2f", padding=2)
    chances.axvline(plain, color="black", linestyle="--")
    chances.text(plain - 0.2, 0.1, f"plain sum {plain:g}", ha="right")
    rows = ", ".join(map(_text, FOUR[:, 0].tolist()))
    chances.set(title=f"rows {rows}", xlabel="result", ylabel="probability", ylim=(0, 0.85))
    chances.set_xticks([negative, 0, plain, positive], [_text(negative), "0", _text(plain), _text(positive)])
    chances.legend(frameon=False, loc="upper center")
    _by_slope(means, [outcomes(slope).mean().item() for slope in SLOPES], plain, f"plain sum {plain:g}")
    means.set(ylabel="mean of the result", ylim=(0, 6))
    spread = [outcomes(slope).var(correction=0).item() for slope in SLOPES]
    _by_slope(variances, spread, -positive * negative, f"a · b = {-positive * negative:g}")
    variances.set(ylabel="variance of the result", ylim=(0, 50))
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "purity": purity,
    "pick": pick,
    "leak": leak,
    "batch": batch,
    "noise": noise,
}


def main(folder: Path = HERE) -> None:
    """Write every picture, the same bytes in every run of one version of matplotlib."""
    for name, draw in PICTURES.items():
        with matplotlib.rc_context({"svg.hashsalt": name, "font.size": 10, "hatch.linewidth": 0.6}):
            creator = f"matplotlib {matplotlib.__version__}"
            metadata = {"Date": None, "Creator": creator, "Format": None, "Type": None}
            draw().savefig(folder / f"graddrop-{name}.svg", metadata=metadata)


# -- parts of a picture ------------------------------------------------------------------------------------------------


def _grouped(axes: Axes, rows: Tensor, names: Sequence[str], *, dropped: bool = False) -> None:
    """Bars side by side, a group for each coordinate."""
    width = 0.8 / len(rows)
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        at = torch.arange(len(row)) + width * (i - (len(rows) - 1) / 2)
        bars = axes.bar(at.tolist(), row.tolist(), width, label=name, **_style(i, dropped))
        axes.bar_label(bars, [_text(value) for value in row.tolist()], padding=2)
    axes.axhline(0, color="black", linewidth=0.8)


def _by_example(axes: Axes, rows: Tensor, title: str, *, dropped: bool = False) -> None:
    """Bars of a batch in which the first half belongs to one loss, the second half to the other."""
    half = rows.shape[1] // 2
    for i, of_loss in enumerate((range(half), range(half, 2 * half))):
        values = rows[i, list(of_loss)].tolist()
        bars = axes.bar(of_loss, values, 0.7, label="dropped" if dropped else f"loss {i + 1}", **_style(i, dropped))
        axes.bar_label(bars, [_text(value) for value in values], padding=2)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(title=title, xlabel="example", ylim=(-2.9, 2.9))
    axes.set_xticks(range(2 * half), [f"{i + 1}" for i in range(2 * half)])


def _by_slope(axes: Axes, numbers: Sequence[float], reference: float, name: str) -> None:
    axes.plot(SLOPES, numbers, "o-", color="#0072B2", markersize=4)
    axes.axhline(reference, color="black", linestyle="--")
    axes.annotate(name, (0.5, reference), (0, -4), textcoords="offset points", va="top", ha="center")
    axes.annotate(f"{numbers[0]:g}", (0, numbers[0]), (0, 5), textcoords="offset points", ha="center")
    axes.set(xlabel="keep slope k", xlim=(-0.15, 1.1))


def _purity_bars(axes: Axes) -> None:
    """The share of each sign, from 0 to 1."""
    shares = mtopt.sign_purity(ROWS)
    positive, negative = shares.tolist(), (1 - shares).tolist()
    axes.bar(range(4), positive, 0.5, label="positive share P", color="#404040", edgecolor="black", linewidth=0.8)
    axes.bar(range(4), negative, 0.5, positive, label="negative share", color="white", edgecolor="black", linewidth=0.8)
    axes.set(ylabel="share", ylim=(0, 1))
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_xticks(range(4), [f"coordinate {i + 1}\nP = {share:g}" for i, share in enumerate(positive)])


def _results(axes: Axes, results: Tensor, height: float) -> None:
    """The result of each group, in a line above the bars."""
    for x, result in enumerate(results.tolist()):
        axes.text(x, height, f"result\n{_text(result)}", ha="center", va="center", weight="bold")


def _style(i: int, dropped: bool = False) -> dict[str, Any]:
    if dropped:
        return {"fill": False, "edgecolor": "#808080", "linestyle": "--"}
    return {"edgecolor": "black", "linewidth": 0.8, **LOSSES[i]}


def _text(value: float) -> str:
    """Nothing for a bar of no height."""
    return f"{value:g}".replace("-", "−") if value else ""


def _legend(figure: Figure, *panels: Axes) -> None:
    """One for all panels, below them, with each name once."""
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, frameon=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
