"""Draws where losses meet in the autograd graphs of two small models. It walks them by itself, without mtopt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from torch import Tensor, nn
from torch.autograd.graph import Node

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
Place = tuple[float, float]
Losses = frozenset[str]

# Tints of Okabe and Ito's colours; the hatches tell them apart in grey.
LOOKS = {
    "seg": ("#B7DDF3", "////"),
    "depth": ("#F6D896", "\\\\\\\\"),
    "penalty": ("#E9CBDC", "xxxx"),
}
SHARED = ("#D0D0D0", "")
BOX = 0.72, 0.27  # half its width, half its height
DIAMOND = 0.16, 0.16
ROW = 1.65  # from one row of boxes to the next
BESIDE = 0.95  # from a box to a parameter below it
STYLES: dict[str, dict[str, Any]] = {
    "edge": {"color": "0.35", "linewidth": 0.9},
    "row": {"color": "black", "linewidth": 2.6},
    "alone": {"color": "black", "linewidth": 2.6, "linestyle": (0, (2, 1))},
    "combined": {"color": "black", "linewidth": 2.6},
}
PAD = {"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.12"}  # behind a text


@dataclass
class Graph:
    """What lies below some losses. Transposes of weights, which only pass on, are left out.

    Attributes:
        losses: By name.
        names: Of the parameters.
    """

    losses: dict[str, Tensor]
    names: dict[Tensor, str]

    @cached_property
    def reach(self) -> dict[Node, Losses]:
        """For each node the losses that reach it."""
        found: dict[Node, Losses] = {}
        for name, loss in self.losses.items():
            assert loss.grad_fn is not None
            stack: list[Node] = [loss.grad_fn]
            while stack:
                node = stack.pop()
                if name not in found.get(node, ()):
                    found[node] = found.get(node, Losses()) | {name}
                    stack += children(node)
        return found

    @cached_property
    def edges(self) -> list[tuple[Node, Node]]:
        return [(node, child) for node in self.reach for child in children(node)]

    @cached_property
    def frontier(self) -> dict[Node, list[Node]]:
        """For each shared node that an exclusive one leads to: those."""
        found: dict[Node, list[Node]] = {}
        for node, child in self.edges:
            if len(self.reach[node]) == 1 and len(self.reach[child]) > 1:
                found.setdefault(child, []).append(node)
        return found

    def combined(self, node: Node) -> bool:
        """Whether the rows of two losses or more arrive at a node."""
        return len({self.reach[above] for above in self.frontier.get(node, [])}) > 1

    def height(self, node: Node) -> int:
        """The longest way down, to a node above parameters only."""
        return 1 + max((self.height(child) for child in children(node) if not is_leaf(child)), default=-1)

    def label(self, node: Node) -> str:
        if is_leaf(node):
            return self.names[node.variable]  # type: ignore[attr-defined]
        return node.name().removesuffix("Backward0")


def children(node: Node) -> list[Node]:
    """The nodes that a backward goes to from here."""
    below = [child for child, _ in node.next_functions if child is not None]
    return [last for child in below for last in (children(child) if child.name() == "TBackward0" else [child])]


def is_leaf(node: Node) -> bool:
    return hasattr(node, "variable")


# -- the models --------------------------------------------------------------------------------------------------------


def two_heads() -> Graph:
    """A trunk, and two heads of different depth."""
    trunk, seg = linear(8, 16), linear(16, 1)
    depth = nn.Sequential(linear(16, 8), nn.Tanh(), linear(8, 1))
    features = trunk(torch.ones(4, 8)).relu()
    losses = {"seg": seg(features).square().mean(), "depth": depth(features).square().mean()}
    model = nn.ModuleDict({"trunk": trunk, "seg": seg, "depth": depth})
    return Graph(losses, {parameter: name for name, parameter in model.named_parameters()})


def skip_connection() -> Graph:
    """Two blocks; both heads read both of them. A third loss is a penalty on a weight."""
    low, high, seg, depth = linear(8, 16), linear(16, 16), linear(32, 1), linear(32, 1)
    first = low(torch.ones(4, 8)).tanh()
    second = high(first).tanh()
    losses = {
        "seg": seg(torch.cat([first, second], 1)).square().mean(),
        "depth": depth(torch.cat([first, second], 1)).square().mean(),
        "penalty": low.weight.square().sum(),
    }
    model = nn.ModuleDict({"low": low, "high": high, "seg": seg, "depth": depth})
    return Graph(losses, {parameter: name for name, parameter in model.named_parameters()})


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


# -- the drawing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where things are drawn.

    Attributes:
        columns: For each set of losses where the nodes are that it reaches.
        left: The losses whose parameters are on the left of their nodes; the others are on the right.
        combining: From a node to where its rows are combined.
        lift: How much higher the nodes are that one loss reaches.
    """

    columns: dict[Losses, float]
    left: Losses
    combining: Place
    lift: float = 0

    def places(self, graph: Graph) -> dict[Node, Place]:
        inner = {}
        for node, losses in graph.reach.items():
            if not is_leaf(node):
                inner[node] = self.columns[losses], ROW * graph.height(node) + self.lift * (len(losses) == 1)
        leaves = {}
        for leaf in filter(is_leaf, graph.reach):
            above = [inner[node] for node, child in graph.edges if child is leaf]
            side = 0.0 if len(above) > 1 else -BESIDE if graph.reach[leaf] == self.left else BESIDE
            leaves[leaf] = sum(x for x, _ in above) / len(above) + side, above[0][1] - ROW / 2
        return inner | leaves


def losses_of(*names: str) -> Losses:
    return Losses(names)


TWO_HEADS = Layout(
    {losses_of("seg"): -1.3, losses_of("depth"): 1.3, losses_of("seg", "depth"): 0},
    left=losses_of("seg"),
    combining=(0, 1.1),
    lift=0.6,
)
SKIP = Layout(
    {losses_of("seg"): -4.4, losses_of("depth"): -2.3, losses_of("seg", "depth"): 0, losses_of("penalty"): 3.0},
    left=losses_of(),
    combining=(-1.25, 0),
)


def draw(graph: Graph, layout: Layout, path: Path) -> None:
    """Save a picture. Each node and each edge is a group of the SVG that says what it is."""
    places = layout.places(graph)
    xs, ys = zip(*places.values(), strict=True)
    left, right, low, high = min(xs) - 0.8, max(xs) + 0.8, min(ys) - 0.4, max(ys) + 0.8
    with matplotlib.rc_context({"svg.hashsalt": path.name, "font.size": 9, "hatch.linewidth": 0.5}):
        figure = Figure(figsize=(0.75 * (right - left), 0.54 * (high - low) + 0.9), layout="constrained")
        axes = figure.subplots()
        axes.set(xlim=(left, right), ylim=(low, high))
        axes.set_axis_off()
        for node, child in graph.edges:
            draw_edge(axes, graph, node, child, places, layout.combining)
        for node in graph.frontier:
            if graph.combined(node):
                draw_combination(axes, graph, node, places[node], layout.combining)
        for node, place in places.items():
            draw_node(axes, graph, node, place)
        for name, loss in graph.losses.items():
            x, y = places[loss.grad_fn]  # type: ignore[index]
            axes.text(x, y + 0.4, f"loss {name}", ha="center", fontweight="bold")
        figure.legend(handles=legend(graph), loc="outside lower center", ncols=2, frameon=False)
        figure.savefig(path, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})


def draw_node(axes: Axes, graph: Graph, node: Node, place: Place) -> None:
    color, hatch = look(graph.reach[node])
    (x, y), (dx, dy) = place, BOX
    leaf = is_leaf(node)
    box = FancyBboxPatch(
        (x - dx, y - dy),
        2 * dx,
        2 * dy,
        boxstyle="square,pad=0" if leaf else "round,pad=0,rounding_size=0.2",
        facecolor=color,
        edgecolor="black",
        hatch=hatch,
        linestyle="--" if leaf else "-",
        gid=f"node {graph.label(node)}: {' '.join(sorted(graph.reach[node]))}",
        zorder=3,
    )
    axes.add_patch(box)
    axes.text(x, y, graph.label(node), ha="center", va="center", fontsize=8, bbox=PAD, zorder=4)


def draw_edge(axes: Axes, graph: Graph, node: Node, child: Node, places: dict[Node, Place], combining: Place) -> None:
    name = f"{graph.label(node)} of {' '.join(sorted(graph.reach[node]))} to {graph.label(child)}"
    start, end = places[node], places[child]
    if node not in graph.frontier.get(child, []):
        draw_arrow(axes, start, end, BOX, f"edge {name}")
    elif not graph.combined(child):
        draw_arrow(axes, start, end, BOX, f"alone {name}")
    else:
        draw_arrow(axes, start, (end[0] + combining[0], end[1] + combining[1]), DIAMOND, f"row {name}")


def draw_combination(axes: Axes, graph: Graph, node: Node, place: Place, combining: Place) -> None:
    x, y = place[0] + combining[0], place[1] + combining[1]
    draw_arrow(axes, (x, y), place, BOX, f"combined {graph.label(node)}")
    axes.plot(x, y, "D", color="black", markersize=11, zorder=3)
    text = f"{len(graph.frontier[node])} rows {tuple(node._input_metadata[0].shape)},\ncombined"
    if combining[0]:
        axes.text(x - 0.2, y - 0.35, text, ha="left", va="top", fontsize=8)
    else:
        axes.text(x + 0.2, y - 0.2, text, ha="left", va="top", fontsize=8)


def draw_arrow(axes: Axes, start: Place, end: Place, around: Place, gid: str) -> None:
    """An arrow that ends at the border of a thing that is so large: half its width, half its height."""
    dx, dy = start[0] - end[0], start[1] - end[1]
    inside = min(half / abs(d) for half, d in zip(around, (dx, dy), strict=True) if d)
    tip = end[0] + inside * dx, end[1] + inside * dy
    style = STYLES[gid.split()[0]]
    arrow = FancyArrowPatch(start, tip, arrowstyle="-|>", mutation_scale=11, shrinkA=0, shrinkB=0, gid=gid, **style)
    axes.add_patch(arrow)


def look(losses: Losses) -> tuple[str, str]:
    return LOOKS[next(iter(losses))] if len(losses) == 1 else SHARED


def legend(graph: Graph) -> list[Patch | Line2D]:
    entries: list[Patch | Line2D] = []
    for name in graph.losses:
        color, hatch = LOOKS[name]
        entries.append(Patch(facecolor=color, hatch=hatch, edgecolor="black", label=f"{name} alone"))
    entries.append(Patch(facecolor=SHARED[0], edgecolor="black", label="several losses: shared"))
    entries.append(Patch(facecolor="white", edgecolor="black", linestyle="--", label="a parameter"))
    entries.append(Line2D([], [], **STYLES["row"], label="frontier: a row, combined"))
    if not all(map(graph.combined, graph.frontier)):
        entries.append(Line2D([], [], **STYLES["alone"], label="frontier: a row, as it is"))
    entries.append(Line2D([], [], color="black", marker="D", linestyle="", label="rows are combined here"))
    return entries


def main(folder: Path = HERE) -> None:
    draw(two_heads(), TWO_HEADS, folder / "frontier-heads.svg")
    draw(skip_connection(), SKIP, folder / "frontier-skip.svg")


if __name__ == "__main__":
    main()
