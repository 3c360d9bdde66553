"""The step's time against the number of losses, ours and TorchJD's, as a picture. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cost_peers import ACTIVATIONS, PARAMETERS, PEER, PLAIN, Cells, Entry, Methods, best_peer
from svg import log_ticks, svg

MODELS = {"mlp": "MLP, 4 layers of 512", "transformer": "Transformer, 4 layers of 256"}
# Told apart in grey by line and marker; the colours are Okabe and Ito's, safe for the colour-blind.
STYLES: Mapping[str, tuple[str, str, str, str]] = {
    PLAIN: ("plain sum", "#555555", ":", "v"),
    ACTIVATIONS: ('mtopt, at="activations" (the default)', "#0072B2", "-", "o"),
    PARAMETERS: ('mtopt, at="parameters"', "#D55E00", "-", "s"),
    PEER: ("TorchJD's fastest way, at parameters", "#000000", "-.", "x"),
}


def draw(path: Path, cells: Cells) -> None:
    """One panel a model: milliseconds a step with GradDrop, both axes logarithmic."""
    with svg(path, 8, 3.4) as figure:
        for axes, (model, title) in zip(figure.subplots(1, len(MODELS)), MODELS.items(), strict=True):
            own = {n: methods for (name, n), methods in cells.items() if name == model}
            for method, (label, color, line, marker) in STYLES.items():
                times = [_entry(methods, method)["ms"][1] for methods in own.values()]
                axes.plot(list(own), times, label=label, color=color, linestyle=line, marker=marker, markersize=5)
            axes.set(title=title, xlabel="losses", ylabel="ms a step", xscale="log", yscale="log")
            log_ticks(axes, list(own))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


def _entry(methods: Methods, name: str) -> Entry:
    entry = best_peer(methods) if name == PEER else methods[name]
    assert entry is not None
    return entry
