"""docs/costs.md, from the results of `cost.py`. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cost_peers import (
    ACTIVATIONS,
    AGAIN,
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
from prose import paragraph, with_whole_numbers
from scaling.tables import table, three

PARTS = ("time", "memory", "combination", "methods", "transforms", "traffic")
AT_ACTIVATIONS = ("MultiLossLayer", ACTIVATIONS, "at=module")
TOY = "toy"
MODELS = {
    "mlp": ("MLP", "Four layers of 512 with ReLU, a batch of 256, heads of one output, squared error."),
    "resnet": ("ResNet", "Three stages of two basic blocks, a batch of 32 images of 32 × 32, ten classes a loss."),
    "transformer": ("Transformer", "Four encoder layers of width 256, a batch of 8 × 64 tokens, ten classes a loss."),
    "toy": ("Overhead", "A layer of 8 and a batch of 4, whose step takes microseconds: what is left is overhead."),
}


COMMANDS = """```bash
pip install -e ".[bench]"
python benchmarks/cost.py --output benchmarks/results/cost.json    # everything, 15 to 20 minutes
python benchmarks/cost.py --publish                                # this page, from what was measured
```"""


def publish(results: Mapping[str, Any], docs: Path) -> None:
    """Write the page.

    Raises:
        ValueError: If a part was not measured, or the run was stopped.
    """
    missing = [part for part in PARTS if not results[part]]
    if missing or not results["complete"]:
        what = f"lack {', '.join(missing)}" if missing else "are of a run that was stopped"
        raise ValueError(f"`results` {what}. Measure all parts: python benchmarks/cost.py --output FILE")
    (docs / "costs.md").write_text(page(results), encoding="utf-8")


def page(results: Mapping[str, Any]) -> str:
    parts = [
        _opening(results),
        _ahead(comparisons(results)),
        *_times(cells_of(results["time"])),
        _memory(cells_of(results["memory"])),
        _combination(results["combination"]),
        *_of_papers(results),
        *_promises(results["checks"]),
        _how(results),
    ]
    return with_whole_numbers("\n\n".join(parts)) + "\n"


# -- the answer --------------------------------------------------------------------------------------------------------


def _opening(results: Mapping[str, Any]) -> str:
    cells = {key: methods for key, methods in cells_of(results["time"]).items() if key[0] != TOY}
    models = ", ".join(dict.fromkeys(MODELS[model][0] for model, _ in cells))
    numbers = ", ".join(str(n) for n in dict.fromkeys(n for _, n in cells))
    at_activations = [methods[form]["ratio"][1] for methods in cells.values() for form in AT_ACTIVATIONS]
    at_parameters = [methods[PARAMETERS]["ratio"][1] for methods in cells.values()]
    peers = [peer["ratio"][1] for methods in cells.values() if (peer := best_peer(methods)) is not None]
    checks = results["checks"]
    kept = sum(check["passed"] for check in checks)
    answer = paragraph(
        f"""
        At activations a step with GradDrop took {_range(at_activations)} times as long as one with the plain sum
        (models: {models}; losses: {numbers}). At parameters it took {_range(at_parameters)} times as long; TorchJD's
        best way, which combines at parameters too, {_range(peers)} times. Of the {len(checks)} promises that mtopt
        makes on its costs, {kept} were kept and {len(checks) - kept} missed: [both are listed](#promises).
        """
    )
    terms = paragraph(
        f"""
        A step is `zero_grad`, forward, losses, backward and `SGD.step`. Times are medians; ratios are medians over
        rounds of the ratio within a round. `{AGAIN}` is the plain sum in another place: how far its ratio is from 1
        is the noise.
        """
    )
    question = "How much longer does a step take than one with the plain sum, and how does that compare with TorchJD?"
    return "\n\n".join(["# What does a step cost?", question, answer, terms])


def _range(ratios: Sequence[float]) -> str:
    low, high = three(min(ratios)), three(max(ratios))
    return low if low == high else f"{low} to {high}"


def _ahead(found: Sequence[Comparison]) -> str:
    """Every cell in which TorchJD is faster or leaner."""
    numbers = {what: [c.what for c in found].count(what) for what in dict.fromkeys(c.what for c in found)}
    kinds = ", ".join(f"{what} {n}" for what, n in numbers.items())
    behind = [c for c in found if c.ratio > 1]
    text = paragraph(
        f"""
        {len(found)} comparisons ({kinds}): every way of mtopt with TorchJD's fastest, every other method at parameters
        with TorchJD's step of the same, the bare combination with TorchJD's, and the peak memory at parameters with
        that of TorchJD's leanest way or of its step of the same method.
        """,
        f"TorchJD was ahead in {len(behind)}:" if behind else "TorchJD was ahead in none.",
    )
    rows = [(_where(c), _amount(c, c.ours), _amount(c, c.theirs), f"{c.ratio:.3f}") for c in behind]
    parts = ["## Where TorchJD is ahead", text]
    return "\n\n".join([*parts, table(("", "mtopt", PEER, "mtopt / TorchJD"), rows)] if behind else parts)


def _where(c: Comparison) -> str:
    return f"{c.what}: {f'{MODELS[c.model][0]}, T = {c.losses}, ' if c.model else ''}{c.method}"


def _amount(c: Comparison, number: float) -> str:
    return f"{number / 1e6:.1f} MB" if c.what == "peak memory" else _ms(number)


def _ms(number: float) -> str:
    return f"{number:,.0f} ms" if number >= 100 else f"{number:.3g} ms"


# -- tables ------------------------------------------------------------------------------------------------------------


def _times(cells: Cells) -> Iterator[str]:
    for model in dict.fromkeys(model for model, _ in cells):
        title, about = MODELS[model]
        own = {n: methods for (name, n), methods in cells.items() if name == model}
        head = ("", *(f"T = {n}" for n in own), *(f"T = {n}, / TorchJD's best" for n in own))
        names = dict.fromkeys(name for methods in own.values() for name in methods if name != TRUNK)
        rows = ((name, *_plain_columns(name, own.values()), *_peer_columns(name, own.values())) for name in names)
        what = "The plain sum's step, and the others' as multiples of it; then as multiples of TorchJD's fastest."
        yield f"## {title}\n\n{paragraph(about, what)}\n\n{table(head, rows)}"


def _plain_columns(name: str, cells: Iterable[Mapping[str, Entry]]) -> Iterator[str]:
    for methods in cells:
        entry = methods.get(name)
        yield "" if entry is None else _ms(entry["ms"][1]) if name == PLAIN else three(entry["ratio"][1])


def _peer_columns(name: str, cells: Iterable[Mapping[str, Entry]]) -> Iterator[str]:
    for methods in cells:
        entry, peer = methods.get(name), best_peer(methods)
        yield "" if entry is None or peer is None else three(over(entry, peer))


def _memory(cells: Cells) -> str:
    parts = []
    for model in dict.fromkeys(model for model, _ in cells):
        own = {n: methods for (name, n), methods in cells.items() if name == model}
        names = [n for n in dict.fromkeys(n for methods in own.values() for n in methods) if not _of_a_paper(n)]
        rows = [(name, *(_megabytes(methods, name) for methods in own.values())) for name in names]
        shared = next(iter(next(iter(own.values())).values()))["shared"]
        parts.append(
            f"**{MODELS[model][0]}**, whose shared parameters take {shared / 1e6:.1f} MB\n\n"
            + table(("", *(f"T = {n}" for n in own)), rows)
        )
    what = paragraph(
        """
        The peak of all tensors in a step of the plain sum, in MB above what is held between steps; of the other ways,
        what comes on top of that. Each was measured in a process of its own.
        """
    )
    return "\n\n".join(["## Memory", what, *parts])


def _megabytes(methods: Mapping[str, Entry], name: str) -> str:
    if name not in methods:
        return ""
    entry = methods[name]
    return f"{entry['tensors'] / 1e6:.1f}" if name == PLAIN else f"{entry['above_plain'] / 1e6:+.1f}"


def _of_a_paper(name: str) -> bool:
    return " " in name and name.partition(" ")[2] in (ACTIVATIONS, PARAMETERS, MTL)


def _combination(entries: Sequence[Entry]) -> str:
    rows = [(e["method"], f"{e['ms'][1]:.3g}", three(e["ratio"][1])) for e in entries]
    what = paragraph(
        "Rows that are there already, combined. `rows.sum(0)` reads them once, which is the least that any way must do."
    )
    return f"## The bare combination\n\n{what}\n\n{table(('', 'ms', '/ TorchJD'), rows)}"


def _of_papers(results: Mapping[str, Any]) -> Iterator[str]:
    """The other methods, on the MLP."""
    alone = {(e["losses"], e["method"]): e for e in results["transforms"]}
    memory = cells_of(results["memory"])
    yield "## Other methods"
    yield paragraph(
        """
        On the MLP: steps as multiples of the plain sum's; at parameters also of TorchJD's with the same method; the
        peak memory of tensors there; and the transform alone, from the Gramian to the weights.
        """
    )
    head = ("", ACTIVATIONS, PARAMETERS, PEER, "mtopt / TorchJD", "mtopt, MB", "TorchJD, MB", "alone, ms")
    for (model, n), methods in cells_of(results["methods"]).items():
        rows = []
        for method in dict.fromkeys(name.partition(" ")[0] for name in methods if _of_a_paper(name)):
            own = [methods.get(f"{method} {form}") for form in (ACTIVATIONS, PARAMETERS, MTL)]
            ratios = ("" if entry is None else three(entry["ratio"][1]) for entry in own)
            both = "" if own[1] is None or own[2] is None else three(over(own[1], own[2]))
            peaks = (memory.get((model, n), {}).get(f"{method} {form}") for form in (PARAMETERS, MTL))
            bytes_ = ("" if peak is None else f"{peak['tensors'] / 1e6:.1f}" for peak in peaks)
            lone = alone.get((n, method))
            rows.append((method, *ratios, both, *bytes_, "" if lone is None else f"{lone['ms'][1]:.3g}"))
        yield f"**{n} losses**, the plain sum's step in {_ms(methods[PLAIN]['ms'][1])}\n\n{table(head, rows)}"
    ours, traffic = results["traffic"]
    yield paragraph(
        f"{ours['method']}: {_ms(ours['ms'][1])}.",
        f"The memory traffic that this cannot do without, {traffic['method']}: {_ms(traffic['ms'][1])}.",
    )


# -- what was promised -------------------------------------------------------------------------------------------------


def _promises(checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    kept = [check for check in checks if check["passed"]]
    missed = [check for check in checks if not check["passed"]]
    yield f"## Promises\n\nA promise is a limit on a measured number. {len(kept)} of {len(checks)} were kept."
    if missed:
        rows = ((c["promise"], c["where"], f"{c['measured']:.3f}", f"{c['limit']:.2f}", c["note"]) for c in missed)
        yield f"Missed:\n\n{table(('promise', 'where', 'measured', 'limit', ''), rows, numbers=False)}"
    names = dict.fromkeys(check["promise"] for check in checks)
    groups = {name: [check for check in checks if check["promise"] == name] for name in names}
    nearest = {name: max(group, key=lambda c: float(c["measured"] / c["limit"])) for name, group in groups.items()}
    rows = (
        (
            name,
            f"{sum(c['passed'] for c in groups[name])} of {len(groups[name])}",
            near["where"],
            f"{near['measured']:.3f}",
            f"{near['limit']:.2f}",
        )
        for name, near in nearest.items()
    )
    head = ("promise", "kept", "nearest to its limit, or furthest beyond", "measured", "limit")
    yield f"All, with the case that came off worst:\n\n{table(head, rows, numbers=False)}"


def _how(results: Mapping[str, Any]) -> str:
    machine, settings = results["machine"], results["settings"]
    software = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    what = paragraph(
        f"""
        On {results["date"][:10]}, on {machine["cores"]} cores ({machine["cpu"]}), with {machine["threads"]} threads and
        {software}. The load of the machine by other programs was {settings["load"]:.1f} before. Every round runs each
        way once, in a new order, for {settings["repeats"]} rounds; a way that has used up {settings["budget"]:g}
        seconds sits out the later ones. TorchJD's ways are `backward` and `mtl_backward`, which is told the features,
        each with its default and with its loop. All samples are in `benchmarks/results/cost.json`, and
        this page is made from them:
        """
    )
    return f"## How it was measured\n\n{what}\n\n{COMMANDS}"
