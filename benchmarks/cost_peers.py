"""Which cells of the results of `cost.py` there are, and in which of them TorchJD is ahead. No text but names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

# Names as `cells.py`, `methods.py` and `measure.py` have them; those import models, and measure.
PLAIN, AGAIN, TRUNK = "plain sum", "plain sum, again", "trunk's backward alone"
ACTIVATIONS, PARAMETERS, MTL = 'at="activations"', 'at="parameters"', "TorchJD mtl_backward"
READ = "rows.sum(0)"
PEER = "TorchJD"  # how the names of its ways begin

Entry = Mapping[str, Any]
Methods = Mapping[str, Entry]
Cells = Mapping[tuple[str, int], Methods]  # by model and number of losses, then by method


@dataclass(frozen=True)
class Comparison:
    """One of mtopt's ways beside one of TorchJD's.

    Attributes:
        what: "step", "combination" or "peak memory".
        model: Its name; empty for a combination.
        losses: How many.
        method: mtopt's way.
        ours: Median in ms, or bytes.
        theirs: The same of TorchJD.
        ratio: mtopt's over TorchJD's; of times the median over rounds.
    """

    what: str
    model: str
    losses: int
    method: str
    ours: float
    theirs: float
    ratio: float


def cells_of(entries: Sequence[Entry]) -> Cells:
    found: dict[tuple[str, int], dict[str, Entry]] = {}
    for entry in entries:
        found.setdefault((entry["model"], entry["losses"]), {})[entry["method"]] = entry
    return found


def over(entry: Entry, other: Entry) -> float:
    """Median over rounds of a step over another's in the same round."""
    steps = dict(zip(other["rounds"], other["samples_ms"], strict=True))
    pairs = zip(entry["rounds"], entry["samples_ms"], strict=True)
    return float(median(ms / steps[i] for i, ms in pairs if i in steps))


def best_peer(methods: Methods) -> Entry | None:
    """The fastest of TorchJD's ways."""
    peers = [entry for name, entry in methods.items() if name.startswith(PEER)]
    return min(peers, key=lambda entry: float(entry["ms"][1]), default=None)


def comparisons(results: Mapping[str, Any]) -> list[Comparison]:
    """Everything that both do: GradDrop's step by each way, the other methods', bare combinations, memory."""
    return [
        *_ways(cells_of(results["time"])),
        *_methods(cells_of(results["methods"])),
        *_combinations(results["combination"]),
        *_memory(cells_of(results["memory"])),
    ]


def _ways(cells: Cells) -> Iterator[Comparison]:
    """With TorchJD's fastest."""
    for (model, n), methods in cells.items():
        peer = best_peer(methods)
        if peer is None:
            continue
        for name, entry in methods.items():
            if name not in (PLAIN, AGAIN, TRUNK) and not name.startswith(PEER):
                yield _timed("step", model, n, entry, peer)


def _methods(cells: Cells) -> Iterator[Comparison]:
    """At parameters, with TorchJD's step of the same method."""
    for (model, n), methods in cells.items():
        for name, entry in methods.items():
            method, _, form = name.partition(" ")
            peer = methods.get(f"{method} {MTL}")
            if form == PARAMETERS and peer is not None:
                yield _timed("step", model, n, entry, peer)


def _combinations(entries: Sequence[Entry]) -> Iterator[Comparison]:
    peer = next(entry for entry in entries if entry["method"].startswith(PEER))
    for entry in entries:
        if entry is not peer and entry["method"] != READ:
            yield _timed("combination", "", 0, entry, peer)


def _memory(cells: Cells) -> Iterator[Comparison]:
    """At parameters, with TorchJD's leanest way, or its step of the same method."""
    for (model, n), methods in cells.items():
        leanest = min((e["tensors"] for name, e in methods.items() if name.startswith(PEER)), default=None)
        for name, entry in methods.items():
            method, _, form = name.partition(" ")
            same = methods.get(f"{method} {MTL}") if form == PARAMETERS else None
            theirs = leanest if name.startswith(PARAMETERS) else None if same is None else same["tensors"]
            if theirs is not None:
                mine = entry["tensors"]
                yield Comparison("peak memory", model, n, name, mine, theirs, mine / theirs)


def _timed(what: str, model: str, n_losses: int, entry: Entry, peer: Entry) -> Comparison:
    medians = float(entry["ms"][1]), float(peer["ms"][1])
    return Comparison(what, model, n_losses, entry["method"], *medians, over(entry, peer))
