"""The tables of docs/costs.md, from the results of `cost.py`. Measures nothing, and writes no prose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks_of_a_page import fill
from cost_chart import draw
from cost_peers import (
    ACTIVATIONS,
    MTL,
    PARAMETERS,
    PEER,
    PLAIN,
    TRUNK,
    Cells,
    Comparison,
    Entry,
    best_peer,
    cells_of,
    comparisons,
    over,
)
from markdown_tables import table, three
from run_tables import machine_table, run_table

PARTS = ("time", "memory", "combination", "methods", "transforms", "traffic")
TITLES = {"mlp": "MLP", "resnet": "ResNet", "transformer": "Transformer", "toy": "Overhead"}

Checks = Sequence[Mapping[str, Any]]


def publish(results: Mapping[str, Any], docs: Path) -> None:
    """Put the tables into the page and the targets into CONTRIBUTING.md, and draw the picture.

    Raises:
        ValueError: If a part was not measured, or the run was stopped, or a table has no place on the page.
    """
    missing = [part for part in PARTS if not results[part]]
    if missing or not results["complete"]:
        what = f"lack {', '.join(missing)}" if missing else "are of a run that was stopped"
        raise ValueError(f"`results` {what}. Measure all parts: python benchmarks/cost.py --output FILE")
    fill(docs / "costs.md", tables(results))
    fill(docs.parent / "CONTRIBUTING.md", {"targets": targets_table(results["checks"])})
    draw(docs / "pictures" / "cost-losses.svg", cells_of(results["time"]))


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """All tables of the page, by the names of their blocks."""
    time, memory = cells_of(results["time"]), cells_of(results["memory"])
    whole = {"all": results}
    return {
        "ahead": _ahead(comparisons(results)),
        **{f"time {model}": _times(cells) for model, cells in _by_model(time).items()},
        **{f"memory {model}": _memory(cells) for model, cells in _by_model(memory).items()},
        "combination": _combination(results["combination"]),
        **{f"methods {n}": _of_papers(n, cell, results) for (_, n), cell in cells_of(results["methods"]).items()},
        "traffic": table(("", "time"), ((e["method"], _ms(e["ms"][1])) for e in results["traffic"])),
        "missed": _missed(results["checks"]),
        "run": run_table(whole, {"rounds": "repeats", "budget, s": "budget", "load before": "load"}),
        "machine": machine_table(whole),
    }


def _by_model(cells: Cells) -> dict[str, dict[int, Mapping[str, Entry]]]:
    """First by model, then by number of losses."""
    found: dict[str, dict[int, Mapping[str, Entry]]] = {}
    for (model, n), methods in cells.items():
        found.setdefault(model, {})[n] = methods
    return found


def _ahead(found: Iterable[Comparison]) -> str:
    """Every cell in which TorchJD is faster or leaner."""
    behind = (c for c in found if c.ratio > 1)
    rows = ((_where(c), _amount(c, c.ours), _amount(c, c.theirs), f"{c.ratio:.3f}") for c in behind)
    return table(("", "mtopt", PEER, "mtopt / TorchJD"), rows)


def _where(c: Comparison) -> str:
    return f"{c.what}: {f'{TITLES[c.model]}, T = {c.losses}, ' if c.model else ''}{c.method}"


def _amount(c: Comparison, number: float) -> str:
    return f"{number / 1e6:.1f} MB" if c.what == "peak memory" else _ms(number)


def _ms(number: float) -> str:
    return f"{number:,.0f} ms" if number >= 100 else f"{number:.3g} ms"


def _times(own: Mapping[int, Mapping[str, Entry]]) -> str:
    head = ("", *(f"T = {n}" for n in own), *(f"T = {n}, / TorchJD's best" for n in own))
    names = dict.fromkeys(name for methods in own.values() for name in methods if name != TRUNK)
    rows = ((name, *_plain_columns(name, own.values()), *_peer_columns(name, own.values())) for name in names)
    return table(head, rows)


def _plain_columns(name: str, cells: Iterable[Mapping[str, Entry]]) -> Iterator[str]:
    for methods in cells:
        entry = methods.get(name)
        yield "" if entry is None else _ms(entry["ms"][1]) if name == PLAIN else three(entry["ratio"][1])


def _peer_columns(name: str, cells: Iterable[Mapping[str, Entry]]) -> Iterator[str]:
    for methods in cells:
        entry, peer = methods.get(name), best_peer(methods)
        yield "" if entry is None or peer is None else three(over(entry, peer))


def _memory(own: Mapping[int, Mapping[str, Entry]]) -> str:
    names = [n for n in dict.fromkeys(n for methods in own.values() for n in methods) if not _of_a_paper(n)]
    rows = [(name, *(_megabytes(methods, name) for methods in own.values())) for name in names]
    return table(("", *(f"T = {n}" for n in own)), rows)


def _megabytes(methods: Mapping[str, Entry], name: str) -> str:
    if name not in methods:
        return ""
    entry = methods[name]
    return f"{entry['tensors'] / 1e6:.1f}" if name == PLAIN else f"{entry['above_plain'] / 1e6:+.1f}"


def _of_a_paper(name: str) -> bool:
    return " " in name and name.partition(" ")[2] in (ACTIVATIONS, PARAMETERS, MTL)


def _combination(entries: Sequence[Entry]) -> str:
    return table(("", "ms", "/ TorchJD"), ((e["method"], f"{e['ms'][1]:.3g}", three(e["ratio"][1])) for e in entries))


def _of_papers(n: int, methods: Mapping[str, Entry], results: Mapping[str, Any]) -> str:
    """The other methods, on the MLP with one number of losses."""
    alone = {e["method"]: e for e in results["transforms"] if e["losses"] == n}
    memory = {e["method"]: e for e in results["memory"] if (e["model"], e["losses"]) == ("mlp", n)}
    head = ("", ACTIVATIONS, PARAMETERS, PEER, "mtopt / TorchJD", "mtopt, MB", "TorchJD, MB", "alone, ms")
    rows = [(PLAIN, *[_ms(methods[PLAIN]["ms"][1])] * 3, "", "", "", "")]
    for method in dict.fromkeys(name.partition(" ")[0] for name in methods if _of_a_paper(name)):
        own = [methods.get(f"{method} {form}") for form in (ACTIVATIONS, PARAMETERS, MTL)]
        ratios = ["" if entry is None else three(entry["ratio"][1]) for entry in own]
        both = "" if own[1] is None or own[2] is None else three(over(own[1], own[2]))
        peaks = (memory.get(f"{method} {form}") for form in (PARAMETERS, MTL))
        ours, theirs = ("" if peak is None else f"{peak['tensors'] / 1e6:.1f}" for peak in peaks)
        lone = alone.get(method)
        rows.append((method, *ratios, both, ours, theirs, "" if lone is None else f"{lone['ms'][1]:.3g}"))
    return table(head, rows)


def _missed(checks: Checks) -> str:
    missed = (c for c in checks if not c["passed"])
    rows = ((c["target"], c["where"], f"{c['measured']:.3f}", f"{c['limit']:.2f}", c["note"]) for c in missed)
    return table(("target", "where", "measured", "limit", ""), rows, numbers=False)


def targets_table(checks: Checks) -> str:
    """Each kind of target with the case that came off worst."""
    rows = []
    for name in dict.fromkeys(check["target"] for check in checks):
        own = [check for check in checks if check["target"] == name]
        near = max(own, key=lambda c: float(c["measured"] / c["limit"]))
        reached = f"{sum(c['passed'] for c in own)} of {len(own)}"
        rows.append((name, reached, near["where"], f"{near['measured']:.3f}", f"{near['limit']:.2f}"))
    head = ("target", "reached", "nearest to its limit, or furthest beyond", "measured", "limit")
    return table(head, rows, numbers=False)
