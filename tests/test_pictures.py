"""Pictures: what is drawn is what was found, in grey too, and no text covers another or is cut off."""

from __future__ import annotations

import functools
import io
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from unittest.mock import patch

import matplotlib
import matplotlib.style
import numpy
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from methods import METHODS
from torch import nn

import mtopt
from mtopt._comparison.compare import Comparison
from mtopt._pictures.cosines import draw_cosines
from mtopt._pictures.figure import styles
from mtopt._pictures.names import abbreviated, clipped, shortened
from mtopt._pictures.tradeoff import pareto_front

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]
PLAIN = "plain sum"
NAMES = "seg", "depth", "normal"
LONG = (
    "a_long_name_of_the_segmentation_of_the_left_eye",
    "a_long_name_of_the_segmentation_of_the_right_eye",
    "_hidden",
    "$x_1$ and \\alpha",
    "W" * 40,
)
NOT_BY_NAME = ("ConstantWeights", "CRMOGM", "Krum")  # which need an argument, or more losses
ALL_METHODS = sorted(name for name in METHODS if hasattr(mtopt, name) and name not in NOT_BY_NAME)


class Net(nn.Module):
    def __init__(self, names=NAMES, layers=1) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), *(nn.Linear(8, 8) for _ in range(layers - 1)), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in names)
        self.names = names

    def losses(self, x):
        z = self.trunk(x)
        return {n: (h(z) - 3 * i).square().mean() for i, (n, h) in enumerate(zip(self.names, self.heads, strict=True))}


BATCHES = list(torch.randn(24, 8, 4, generator=torch.Generator().manual_seed(0)))


def compared(
    names=NAMES, methods=("GradDrop", "PCGrad"), seeds=3, change=lambda losses: losses, n=24, make_model=Net, **settings
):
    def make_losses(model, batch):
        return change(model.losses(batch))

    settings = {"progress": False, **settings}
    return mtopt.compare(lambda: make_model(names), make_losses, BATCHES[:n], methods, seeds, **settings)


def metrics(model):
    return {f"minus {name}": -loss for name, loss in model.losses(BATCHES[0]).items()}


def watched(names=NAMES, steps=30, change=lambda step, losses: losses):
    torch.manual_seed(0)
    net = Net(names)
    optimizer = mtopt.MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.02), mtopt.GradDrop(seed=0))
    monitor = mtopt.Monitor(optimizer, every=3)
    for step in range(steps):
        optimizer.zero_grad()
        optimizer.step(change(step, net.losses(BATCHES[step % len(BATCHES)])))
    return monitor


def report(names=NAMES, layers=1):
    torch.manual_seed(0)
    net = Net(names, layers)
    return mtopt.conflict_report(net.losses(BATCHES[0]), net)


@pytest.fixture(scope="module")
def result():
    return compared(make_metrics=metrics)


@pytest.fixture(scope="module")
def monitor():
    return watched()


def titled(figure, start):
    (axes,) = [axes for axes in figure.axes if axes.get_title().startswith(start)]
    return axes


def runs_of(result, method):
    return [run for run in result.runs if run["method"] == method]


def interval(values):
    """Mean and half the width, by SciPy."""
    return numpy.mean(values), scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)


# -- compare -----------------------------------------------------------------------------------------------------------


def test_the_curves_of_a_comparison_are_means_with_students_intervals_of_the_difference_to_the_plain_sum(result):
    figure = result.plot()
    for loss in NAMES:
        axes = titled(figure, f"loss {loss}")
        plain = numpy.array([run["curves"][loss] for run in runs_of(result, PLAIN)])
        assert len(axes.collections) == len(axes.lines) - 1  # the plain sum has no band
        for method, line, band in zip(result.study["methods"], axes.lines, [None, *axes.collections], strict=True):
            curves = numpy.array([run["curves"][loss] for run in runs_of(result, method)])
            means = curves.mean(0)
            numpy.testing.assert_allclose(line.get_xdata(), numpy.arange(2.5, 100, 5))
            numpy.testing.assert_allclose(line.get_ydata(), means)
            if band is not None:
                halves = numpy.array([interval(part)[1] for part in (curves - plain).T])
                corners = band.get_paths()[0].vertices[:, 1]
                assert corners.min() == pytest.approx((means - halves).min())
                assert corners.max() == pytest.approx((means + halves).max())


@pytest.mark.parametrize(("methods", "bands"), [(4, 4), (5, 0)])
def test_a_few_bands_are_drawn_or_none(methods, bands):
    result = compared(methods={str(i): mtopt.GradDrop(seed=i) for i in range(methods)}, n=4)
    figure = result.plot()
    assert len(titled(figure, "loss seg").collections) == bands
    assert any("bands: 95 %" in text for text in texts_of(figure)) == (bands > 0)


def test_bands_stay_apart_where_methods_differ_and_seeds_start_far_apart(result):
    """What a seed does to all methods alike is in no band."""
    lower = {PLAIN: 0.0, "GradDrop": 1.0, "PCGrad": 2.0}

    def curve(method, seed):
        return [10 * seed - lower[method] * (1 + 0.05 * seed) + 0.01 * i for i in range(20)]

    runs = [{**run, "curves": {"seg": curve(run["method"], run["seed"])}} for run in result.runs]
    axes = titled(Comparison(result.study, [{**run, "losses": {"seg": 0.0}} for run in runs], True).plot(), "loss seg")
    plain, *others = axes.lines
    below = plain.get_ydata()
    for line, band in zip(others, axes.collections, strict=True):
        edges = band.get_paths()[0].vertices
        tops = [edges[numpy.isclose(edges[:, 0], x), 1].max() for x in line.get_xdata()]
        assert (tops < below).all()
        below = [edges[numpy.isclose(edges[:, 0], x), 1].min() for x in line.get_xdata()]


@pytest.mark.parametrize("n", [6, 7, 30, 60])
def test_what_is_below_0_is_told_from_what_is_above_in_grey(n):
    """By a number, or a dash; of more losses than have names it is in colour alone."""
    cosines = [[1.0 if i == j else (-1) ** (i + j) * 0.7 for j in range(n)] for i in range(n)]
    axes = Figure().subplots()
    draw_cosines(axes, [str(i) for i in range(n)], cosines, "Cosines")
    below = {(j, i) for i, row in enumerate(cosines) for j, cosine in enumerate(row) if cosine < 0}
    dashed = {tuple(place) for dashes in axes.collections for place in dashes.get_offsets().tolist()}
    assert dashed == (below if 6 < n <= 48 else set())
    assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (-1, 1)
    red, white, blue = (axes.images[0].cmap(axes.images[0].norm(value)) for value in (-1, 0, 1))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert min(white) > 0.95


@pytest.mark.parametrize(
    ("names", "drawn"),
    [(None, ("minus seg", "minus depth")), (("depth", "minus normal"), ("depth", "minus normal"))],
)
def test_the_trade_off_shows_means_and_intervals_of_two_quantities(result, names, drawn):
    axes = titled(result.plot(trade_off=names), "Trade-off")
    for method, bars in zip(result.study["methods"], axes.containers, strict=True):
        point, _, ranges = bars
        assert len(ranges) == (0 if method == PLAIN else 2)
        for i, name in enumerate(drawn):
            values, plain = (
                numpy.array([{**run["losses"], **run["metrics"]}[name] for run in runs_of(result, m)])
                for m in (method, PLAIN)
            )
            assert point.get_xydata()[0, i] == pytest.approx(values.mean())
            if method != PLAIN:
                assert numpy.ptp(ranges[i].get_segments()[0][:, i]) == pytest.approx(2 * interval(values - plain)[1])
    assert all(name in label for name, label in zip(drawn, (axes.get_xlabel(), axes.get_ylabel()), strict=True))


def test_the_front_goes_through_the_means_that_none_beats_in_both_metrics(result):
    axes = titled(result.plot(), "Trade-off")
    means = [tuple(bars[0].get_xydata()[0]) for bars in axes.containers]
    beaten = [p for p in means if any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in means)]
    (front,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert {tuple(p) for p in front.get_xydata()} == set(means) - set(beaten)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_front_is_what_no_other_point_beats(points):
    front = [points[i] for i in pareto_front(points)]
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert front == sorted(set(points) - beaten)


@pytest.mark.parametrize(
    ("title", "key", "unit", "times"),
    [("Time", "seconds_per_step", "ms, CPU time, 1 thread", 1000), ("Peak memory", "memory", "MB", 1e-6)],
)
def test_the_bars_are_ratios_of_medians(result, title, key, unit, times):
    axes = titled(result.plot(), title)
    medians = {m: statistics.median(run[key] for run in runs_of(result, m)) for m in result.study["methods"]}
    ratios = [median / medians[PLAIN] for median in medians.values()]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(ratios)
    assert [text.get_text() for text in axes.texts] == [f"{ratio:.2f}" for ratio in ratios]
    assert axes.get_xlabel().endswith(f"{times * medians[PLAIN]:.3g} {unit}")


def test_one_seed_has_no_bands_and_the_title_says_so():
    figure = compared(seeds=1).plot()
    assert not titled(figure, "loss seg").collections
    assert "Losses while training: one seed" in texts_of(figure)


def test_copies_of_a_seed_make_no_band():
    """The same start and the same batches with each seed: there is but one independent run."""
    result = compared(make_model=Fixed, methods=["MGDA"])
    assert len({run["losses"]["seg"] for run in runs_of(result, "MGDA")}) == 1
    assert not titled(result.plot(), "loss seg").collections


class Fixed(Net):
    def __init__(self, names) -> None:
        super().__init__(names)
        for i, parameter in enumerate(self.parameters()):
            parameter.data = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) + i


def test_a_loss_that_is_absent_at_times_is_drawn_where_it_is_there():
    """Every other step, so that it is in every other part of the run."""
    result = compared(change=Absences("seg", [False, True]), n=20)
    figure = result.plot()
    assert list(titled(figure, "loss seg").lines[0].get_xdata()) == [2.5 + 10 * i for i in range(10)]
    assert len(titled(figure, "loss depth").lines[0].get_xdata()) == 20


class Absences:
    """Which calls, in turn, are without the loss; each compare has a new one, and each of its runs as many calls."""

    def __init__(self, name, turns) -> None:
        self.name = name
        self.turns = itertools.cycle(turns)

    def __call__(self, losses):
        return {**losses, self.name: None} if next(self.turns) else losses


def test_diverged_runs_are_told_and_left_out():
    result = compared(change=Diverging(from_call=30), methods=["GradDrop"], seeds=2)
    assert [bool(run["diverged"]) for run in result.runs] == [False, True, True, True]
    figure = result.plot()
    assert len(titled(figure, "loss seg").lines) == 1
    assert {"plain sum (1 of 2 diverged)", "GradDrop (2 of 2 diverged)"} < set(texts_of(figure))
    assert [text.get_text() for text in titled(figure, "Time").texts] == ["1.00", "not known"]


class Diverging:
    def __init__(self, from_call) -> None:
        self.calls = itertools.count()
        self.first = from_call

    def __call__(self, losses):
        return {**losses, "seg": losses["seg"] * (math.nan if next(self.calls) >= self.first else 1)}


def test_a_study_of_which_nothing_is_left_says_so():
    result = compared(change=Diverging(from_call=0), seeds=1, n=3)
    with pytest.raises(ValueError, match="no run is finished without having diverged"):
        result.plot()


def test_a_method_without_a_run_yet_is_told(result):
    begun = Comparison(result.study, [run for run in result.runs if run["method"] != "PCGrad"], complete=False)
    assert "PCGrad (no run yet)" in texts_of(begun.plot())


def test_without_a_run_of_the_plain_sum_there_is_no_multiple_of_its_cost(result):
    begun = Comparison(result.study, runs_of(result, "GradDrop"), complete=False)
    assert [axes.get_title().split("\n")[0] for axes in begun.plot().axes] == [
        *(f"loss {name}" for name in NAMES),
        "Trade-off",
    ]


def test_runs_of_different_length_are_put_together_by_their_share_of_the_run(result):
    """As with equal time: one run of four steps and one of two."""
    first, second = [{**run, "seed": i} for i, run in enumerate(runs_of(result, PLAIN)[:2])]
    first["curves"] = {**first["curves"], "seg": [1.0, 2.0, 3.0, 4.0]}
    second["curves"] = {**second["curves"], "seg": [10.0, 20.0]}
    line = titled(Comparison(result.study, [first, second], complete=False).plot(), "loss seg").lines[0]
    assert line.get_xydata().tolist() == [[25.0, 6.0], [75.0, 12.0]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("seg", "`trade_off` must be two names of losses or metrics, but it is 'seg'"),
        (["seg"], "`trade_off` must be two names"),
        (["seg", "seg"], "`trade_off` must be two names"),
        (["seg", "dept"], "'dept', which is no loss and no metric. Did you mean 'depth'"),
        (["seg", "x"], "There are seg, depth, normal, minus seg"),
    ],
)
def test_a_trade_off_of_something_else_is_refused(result, names, message):
    with pytest.raises(ValueError, match=message):
        result.plot(trade_off=names)


# -- Monitor -----------------------------------------------------------------------------------------------------------


def test_the_curves_of_a_monitor_are_its_numbers(monitor):
    figure = monitor.plot()
    records = monitor.history
    for title, prefix in (("Losses", "loss"), ("Gradients", "site0/norm")):
        for name, line in zip(NAMES, plain_lines(titled(figure, title)), strict=True):
            assert list(line.get_xdata()) == [record.step for record in records] == list(range(0, 30, 3))
            assert list(line.get_ydata()) == [record.numbers[f"{prefix}/{name}"] for record in records]


def test_the_columns_of_purity_are_the_histograms_in_per_cent(monitor):
    (mesh,) = [mesh for mesh in titled(monitor.plot(), "Purity").collections if mesh.get_array() is not None]
    counts = numpy.array([record.purity["site0"] for record in monitor.history])
    shares = mesh.get_array()
    numpy.testing.assert_allclose(shares.sum(0), 100)
    numpy.testing.assert_allclose(shares, (100 * counts / counts.sum(1, keepdims=True)).T)
    edges = mesh.get_coordinates()
    numpy.testing.assert_allclose(edges[0, :, 0], numpy.arange(-1.5, 30, 3))
    numpy.testing.assert_allclose(edges[:, 0, 1], numpy.linspace(0, 1, 21))


def test_the_cosines_are_means_over_the_records(monitor):
    axes = titled(monitor.plot(), "Cosines")
    means = numpy.mean([record.cosines["site0"] for record in monitor.history], axis=0)
    numpy.testing.assert_allclose(axes.images[0].get_array(), means)
    told = [[float(text.get_text()) for text in axes.texts[i : i + 3]] for i in (0, 3, 6)]
    numpy.testing.assert_allclose(told, means, atol=0.005)
    assert "mean of 10 records" in axes.get_title()


def test_two_losses_that_are_never_there_together_have_no_cosine():
    """One step has seg and depth, the next seg and normal."""
    monitor = watched(change=lambda step, losses: {**losses, ("depth", "normal")[step % 2]: None})
    axes = titled(monitor.plot(), "Cosines")
    shown = axes.images[0].get_array()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["seg", "normal", "depth"]
    assert numpy.argwhere(numpy.ma.getmaskarray(numpy.ma.masked_invalid(shown))).tolist() == [[1, 2], [2, 1]]
    assert axes.patch.get_hatch()
    assert "hatched" in axes.get_xlabel()


def test_what_is_not_finite_stands_at_the_upper_edge_and_leaves_a_gap():
    monitor = watched(change=lambda step, losses: {**losses, "seg": losses["seg"] * (math.inf if step > 20 else 1)})
    figure = monitor.plot()
    axes = titled(figure, "Losses")
    assert axes.get_ylim()[1] < 1e3
    (at_the_edge,) = [line for line in edge_lines(axes) if len(line.get_xdata()) == 3]
    assert list(at_the_edge.get_xdata()) == [21, 24, 27]
    assert "not finite" in axes.get_xlabel()
    purity = titled(figure, "Purity")
    assert "hatched" in purity.get_xlabel()
    assert numpy.isnan(purity.collections[0].get_array().filled(math.nan)[:, -2:]).all()


def test_a_layer_s_monitor_knows_no_losses_and_shows_the_lengths_alone():
    layer = mtopt.MultiLossLayer(["a", "b"], mtopt.GradDrop(seed=0))
    monitor = mtopt.Monitor(layer, every=1)
    a, b = layer(torch.randn(8, 5, generator=torch.Generator().manual_seed(0), requires_grad=True))
    (a.square().sum() + b.sum()).backward()
    assert [axes.get_title() for axes in monitor.plot().axes if axes.get_title()] == [
        "Gradients at site0",
        "Purity at site0",
        "Cosines at site0, one record",
    ]


def test_a_monitor_that_has_seen_nothing_says_so(monitor):
    unused = mtopt.Monitor(mtopt.MultiLossLayer(2, mtopt.GradDrop()))
    with pytest.raises(ValueError, match="no step that was looked at has two losses that meet"):
        unused.plot()
    with pytest.raises(ValueError, match="`site` is 'site1', but the records have site0"):
        monitor.plot(site="site1")


# -- conflict_report ---------------------------------------------------------------------------------------------------


def test_the_bars_of_a_report_are_the_shares_of_conflict():
    found = report(layers=3)
    axes = titled(found.plot(), "Conflict per module")
    told = found.to_dict()
    shares = [100 * module["conflict"] for module in told["modules"]]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(shares)
    lengths = titled(found.plot(), "Lengths of the gradients")
    assert [bar.get_width() for bar in lengths.patches] == pytest.approx(list(told["total"]["norms"].values()))
    assert [text.get_text() for text in axes.texts] == [f"{share:.0f}" for share in shares]
    names = [f"{module['name']} ({module['size']:,})" for module in told["modules"]]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    lines = [line.get_xdata()[0] for line in axes.lines]
    assert lines == pytest.approx([100 * told["total"]["conflict"], 75.0])  # 3 signs: 6 of 8 are not all alike


def test_a_loss_without_a_gradient_has_no_cosine():
    net = Net()
    nn.init.zeros_(net.heads[0].weight)
    cosines = titled(mtopt.conflict_report(net.losses(BATCHES[0]), net).plot(), "Cosines").images[0].get_array()
    assert numpy.ma.getmaskarray(numpy.ma.masked_invalid(cosines)).tolist() == [[True] * 3, *[[True, False, False]] * 2]


# -- for the eye -------------------------------------------------------------------------------------------------------

FIGURES = {
    "comparison": lambda: compared(make_metrics=metrics).plot(),
    "one loss, one seed": lambda: compared(["alone"], ["RLW"], seeds=1).plot(),
    "two seeds": lambda: compared(seeds=2).plot(),
    "one step": lambda: compared(seeds=2, n=1).plot(),
    "fourteen losses": lambda: compared([f"task {i}" for i in range(14)], n=4).plot(),
    "all methods": lambda: compared(methods=ALL_METHODS, seeds=2, n=4).plot(),
    "long names": lambda: compared(LONG, {name: mtopt.GradDrop() for name in LONG}, n=4).plot(),
    "diverged": lambda: compared(change=Diverging(from_call=30), seeds=2).plot(),
    "nearly equal": lambda: compared(methods={"same": mtopt.GradDrop(leak=1.0)}, seeds=1, n=9).plot(),
    "monitor": lambda: watched().plot(),
    "one record": lambda: watched(steps=1).plot(),
    "monitor of two": lambda: watched(["seg", "depth"]).plot(),
    "monitor of 14": lambda: watched([f"quantity {i}" for i in range(14)]).plot(),
    "monitor of 40": lambda: watched([f"quantity {i}" for i in range(40)]).plot(),
    "monitor of 100": lambda: watched([f"quantity {i}" for i in range(100)], steps=4).plot(),
    "monitor of long names": lambda: watched(LONG).plot(),
    "monitor of NaN": lambda: watched(change=lambda _, losses: {n: math.nan * x for n, x in losses.items()}).plot(),
    "monitor of inf": lambda: watched(
        change=lambda step, losses: {n: x * (math.inf if step > 20 else 1e30) for n, x in losses.items()}
    ).plot(),
    "late steps": lambda: late().plot(),
    "six methods": lambda: compared(methods=["GradDrop", "PCGrad", "MGDA", "UPGrad", "DWA"], n=4).plot(),
    "report": lambda: report().plot(),
    "report of lengths far apart": lambda: far_apart().plot(),
    "report on 40 modules": lambda: report([f"quantity {i}" for i in range(40)], 40).plot(),
    "report of long names": lambda: report(LONG).plot(),
}


def late():
    """A monitor of steps of seven digits."""
    monitor = watched()
    for record in monitor.history:
        record.step += 1234560
    return monitor


def far_apart():
    torch.manual_seed(0)
    net = Net()
    losses = {name: loss * 1000.0**i for i, (name, loss) in enumerate(net.losses(BATCHES[0]).items())}
    return mtopt.conflict_report(losses, net)


@pytest.fixture(scope="module")
def drawn():
    return {name: functools.cache(make) for name, make in FIGURES.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_covers_another_or_is_cut_off(drawn, name):
    figure = drawn[name]()
    boxes = boxes_of(figure)
    for text, box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0, (one, other)


@pytest.mark.parametrize("name", FIGURES)
def test_no_axes_of_bars_is_half_empty(drawn, name):
    """Of two bars or more: they fill two thirds of its height, and the longest half of its width."""
    figure = drawn[name]()
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
        if len(bars) > 1 and any(bar.get_width() > 0 for bar in bars):
            heights = [patch.get_window_extent().height for patch in bars]
            assert sum(heights) / 0.8 > 0.6 * axes.get_window_extent().height
            assert max(patch.get_window_extent().width for patch in bars) > 0.5 * axes.get_window_extent().width


@pytest.mark.parametrize("name", FIGURES)
def test_every_axes_has_a_title_and_labels(drawn, name):
    for axes in drawn[name]().axes:
        if axes.get_label() == "<colorbar>":
            assert axes.get_ylabel()
        else:
            assert axes.get_title()
            assert axes.get_xlabel()
            names = [label.get_text() for label in axes.get_yticklabels()]
            assert axes.get_ylabel() or not any(names)  # bars beside bars of the same names


@pytest.mark.parametrize("name", FIGURES)
def test_curves_of_the_same_axes_are_told_apart_in_grey(drawn, name):
    for axes in drawn[name]().axes:
        looks = [(line.get_marker(), line.get_fillstyle()) for line in plain_lines(axes)]
        assert len(set(looks)) == len(looks)


def test_styles_are_told_apart_in_grey():
    looks = list(styles(map(str, range(30))).values())
    assert len({(look.marker, look.fill) for look in looks}) == 30
    greys = [numpy.dot(to_rgb(look.color), (0.299, 0.587, 0.114)) for look in looks]
    assert min(abs(a - b) for a, b in itertools.pairwise(greys)) > 0.1


def test_no_name_is_taken_for_maths_and_none_is_hidden(drawn):
    texts = [text for text, _ in boxes_of(drawn["long names"]())]
    assert {" _hidden", "\\$x_1\\$ and \\alpha"} < set(texts)


def texts_of(figure):
    return [text.replace("\\$", "$") for text, _ in boxes_of(figure)]


def boxes_of(figure):
    """Each text that is really drawn, with its box; hair's breadth off, for boxes that touch."""
    found = []
    draw = Text.draw

    def seen(self, renderer, *args, **kwargs):
        draw(self, renderer, *args, **kwargs)
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), self.get_window_extent(renderer).padded(-0.5)))

    with patch.object(Text, "draw", seen):
        FigureCanvasAgg(figure).draw()
    return found


def plain_lines(axes):
    """The curves: no lines across the axes, and no markers at the edge."""
    return [line for line in axes.lines if line.get_transform() == axes.transData and line.get_marker() != "None"]


def edge_lines(axes):
    return [line for line in axes.lines if line.get_transform() == axes.get_xaxis_transform()]


# -- names -------------------------------------------------------------------------------------------------------------

WORDS = st.text("ab_./0", min_size=1, max_size=40)


@given(st.lists(WORDS, min_size=1, max_size=8, unique=True), st.integers(6, 20))
def test_clipped_names_fit_and_differ(names, width):
    cut = clipped(names, width)
    assert len(set(cut)) == len(names)
    assert max(map(len, cut)) <= width


@pytest.mark.parametrize(
    ("names", "cut"),
    [
        (["loss/seg", "loss/depth"], ["loss/seg", "loss/depth"]),
        (["training/seg", "training/depth"], ["seg", "depth"]),
        (["left_segmentation", "right"], ["left_segmen…", "right"]),
        (["segmentation_left", "segmentation_right"], ["left", "right"]),
        (["segmentation left", "segmentation right", "x"], ["segmentat…ft", "segmentat…ht", "x"]),
        (
            ["segmentation of 0 at the left", "segmentation of 1 at the left", "x"],
            ["segmentat… 0", "segmentat… 1", "x"],
        ),
    ],
)
def test_a_name_keeps_what_tells_it_from_the_others(names, cut):
    assert clipped(names, 12) == cut


@given(WORDS, st.integers(4, 30))
def test_shortened_and_abbreviated_names_fit(name, width):
    assert len(shortened(name, width)) <= width
    assert len(abbreviated(name, width)) <= width
    if len(name) <= width:
        assert shortened(name, width) == abbreviated(name, width) == name


def test_layers_of_one_stack_are_told_apart():
    names = [f"encoder.layer.{i}.attention.self.query" for i in range(12)]
    assert abbreviated(names[3], 24) == "e.l.3.a.self.query"
    assert len({abbreviated(name, 20) for name in names}) == 12


# -- files, and what is left behind ------------------------------------------------------------------------------------


@pytest.fixture(params=["Comparison", "Monitor", "ConflictReport"])
def plot(request, result, monitor):
    return {"Comparison": result, "Monitor": monitor, "ConflictReport": report()}[request.param].plot


@pytest.mark.parametrize(("suffix", "start"), [("PNG", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_suffix_chooses_the_format(monitor, tmp_path, suffix, start):
    path = tmp_path / f"picture.{suffix}"
    monitor.plot(str(path))
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("picture.gift", ValueError, "`path` must end in a format .* such as .png, .svg or .pdf, but it is '.*gift'"),
        ("picture", ValueError, "`path` must end in"),
        ("no/picture.png", FileNotFoundError, "`path` is in a folder that does not exist; make it first"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left(plot, tmp_path, path, error, message):
    with pytest.raises(error, match=message):
        plot(tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_a_path_must_be_one(plot):
    with pytest.raises(TypeError, match="`path` must be a str or a Path, but it is a BytesIO"):
        plot(io.BytesIO())


def test_a_picture_that_cannot_be_drawn_leaves_the_one_before(monitor, tmp_path, monkeypatch):
    path = tmp_path / "picture.svg"
    path.write_text("before")
    monkeypatch.setattr(FigureCanvasSVG, "print_svg", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        monitor.plot(path)
    assert path.read_text() == "before"


def test_without_matplotlib_it_says_what_to_install(plot, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'`plot` needs matplotlib.*pip install "mtopt\[plot\]"'):
        plot(tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_the_picture_is_the_same_whatever_style_is_set(monitor, tmp_path):
    before, after = tmp_path / "before.png", tmp_path / "after.png"
    monitor.plot(before)
    with matplotlib.style.context(["dark_background", {"font.size": 30, "text.usetex": True}]):
        set_by_user = matplotlib.rcParams.copy()
        monitor.plot(after)
        assert matplotlib.rcParams.copy() == set_by_user
    assert before.read_bytes() == after.read_bytes()


def test_drawing_imports_no_pyplot_and_chooses_no_backend():
    code = """
        import sys, matplotlib, mtopt, torch
        before = matplotlib.rcParams.copy()
        layer = mtopt.MultiLossLayer(2, mtopt.GradDrop())
        monitor = mtopt.Monitor(layer)
        a, b = layer(torch.ones(2, 3, requires_grad=True))
        (a.sum() - b.square().sum()).backward()
        monitor.plot("picture.png")
        assert "matplotlib.pyplot" not in sys.modules
        assert matplotlib.rcParams.copy() == before
    """
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, check=True, cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)})


def test_the_pictures_of_the_docs_can_be_made(tmp_path):
    script = ROOT / "docs" / "pictures" / "seeing.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == sorted(path.name for path in script.parent.glob("seeing-*.svg"))
    assert len(made) == 3
