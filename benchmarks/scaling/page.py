"""docs/scaling.md and its pictures, from the results and the calculation. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .billion import section as billion_section
from .pictures import added_lines, draw_ranks, draw_sweep
from .tables import table, three
from .theory import (
    ADDED,
    AGAIN,
    BASE,
    DEPTH,
    DROP_ACTIVATIONS,
    DROP_PARAMETERS,
    PLAIN,
    SEPARATE,
    TORCHJD,
    Size,
    expected,
    fit,
)
from .traffic import CHECKSUM, DDP, FACTS, FSDP2, MARGINALIZED, payload

LAST = 3  # points of the second fit
FOLDER = "scaling"  # of the pictures, beside the page
ORDER = (PLAIN, AGAIN, *ADDED)

TITLES = {
    "losses": ("With the number of losses", "T", "losses"),
    "parameters": ("With the size of the model", "P", "parameters"),
    "batch": ("With the batch", "B", "examples"),
}


def publish(results: dict[str, Any], docs: Path) -> None:
    """Write the page and the pictures.

    Raises:
        ValueError: If a section was not measured yet.
    """
    missing = [name for name in (*TITLES, "ranks") if name not in results]
    if missing:
        raise ValueError(f"`results` lack {', '.join(missing)}. Measure them first, with --only {' '.join(missing)}.")
    (docs / FOLDER).mkdir(exist_ok=True)
    for name in TITLES:
        draw_sweep(docs / FOLDER / f"{name}.svg", name, results[name], xs_of(name, results[name]))
    draw_ranks(docs / FOLDER / "ranks.svg", results["ranks"])
    (docs / f"{FOLDER}.md").write_text(page(results), encoding="utf-8")


def page(results: dict[str, Any]) -> str:
    parts = [
        _opening(results),
        *(_sweep(name, results[name]) for name in TITLES),
        _ranks(results["ranks"]),
        billion_section(),
        _again(results),
    ]
    return "\n\n".join(parts) + "\n"


def sizes_of(section: dict[str, Any]) -> list[Size]:
    return [Size(**point["size"]) for point in section["points"]]


def xs_of(name: str, section: dict[str, Any]) -> list[float]:
    return [float(getattr(size, name)) for size in sizes_of(section)]


def _opening(results: dict[str, Any]) -> str:
    rows = [(m, ", ".join(f"${term.formula}$ ({term.what})" for term in parts)) for m, parts in ADDED.items()]
    torchjd = results["losses"]["versions"]["torchjd"]
    at_last = results["losses"]["points"][-1]
    drop, at_parameters = (at_last["methods"][m]["ratio"][1] for m in (DROP_ACTIVATIONS, DROP_PARAMETERS))
    return f"""# Cost at scale

How does the cost of a step grow with the number of losses, the size of the model, the batch and the ranks?

At activations a method adds work on the rows of one activation. At parameters it adds a backward of the trunk for each
loss. With {at_last["size"]["losses"]} losses GradDrop took {three(drop)} times as long as the plain sum at activations,
and {three(at_parameters)} times as long at parameters.

The model is a trunk of {DEPTH} square linear layers with ReLU, {BASE.width} wide, and a linear head for each loss.
If not said otherwise there are $T = {BASE.losses}$ losses, $P$ = {BASE.parameters:,} parameters in the trunk, and
$B = {BASE.batch}$ examples in a batch, on each rank. A step is `zero_grad`, forward, losses, backward and `SGD.step`.
TorchJD's UPGrad is at parameters, too: `mtl_backward` of version {torchjd}, told the features. T separate backwards
add their gradients up in `.grad`, and combine nothing.

What each method adds to the plain sum is, in theory, a sum of these parts, where $w \\approx \\sqrt{{P / {DEPTH}}}$
is the width of the activation. At parameters Python hardly counts, but for the smallest sizes.

{table(("method", "grows as"), rows, numbers=False)}

So on log-log axes the slope lies between those of the flattest and of the steepest part, and comes nearer to the
steepest one as sizes grow. Below, theory gives both ends, fitted to the same sizes as the measured points: this is why
$T - 1$ has a slope a little above 1. The slopes measured at the last {LAST} sizes show where it goes."""


def _sweep(name: str, section: dict[str, Any]) -> str:
    title, letter, unit = TITLES[name]
    points, xs = section["points"], xs_of(name, section)
    ratios = [(m, *(three(point["methods"][m]["ratio"][1]) for point in points)) for m in ORDER]
    ratios[0] = (PLAIN, *(f"{point['methods'][PLAIN]['ms'][1]:.3g} ms" for point in points))
    slopes = []
    for method, x, y in added_lines(section, xs):
        theory = " to ".join(
            dict.fromkeys(f"{round(power, 2) + 0.0:.2f}" for power in _ends(expected(method, name, sizes_of(section))))
        )
        slopes.append((method, theory, _slope(x, y), _slope(x[-LAST:], y[-LAST:]), f"{len(x)} of {len(xs)}"))
    return f"""## {title}

The plain sum's step in ms, and the other methods' as multiples of it: medians over rounds of the ratio within a round.

{table(("", *(f"${letter}$ = {x:,.0f}" for x in xs)), ratios)}

![{_alt(name, section)}]({FOLDER}/{name}.svg)

The slopes of what each method adds: the power of the number of {unit} that it grows with, ± one standard error.

{table(("added by", "theory", "measured", f"the last {LAST}", "points"), slopes)}"""


def _alt(name: str, section: dict[str, Any]) -> str:
    """What the picture shows, for those who do not see it."""
    first, last = section["points"][0]["methods"], section["points"][-1]["methods"]
    xs = xs_of(name, section)
    ends = _listed(
        f"{m} from {three(first[m]['ratio'][1])} to {three(last[m]['ratio'][1])}"
        for m in (DROP_ACTIVATIONS, DROP_PARAMETERS, TORCHJD, SEPARATE)
    )
    unit = TITLES[name][2]
    return (
        f"Two panels on log-log axes, from {xs[0]:,.0f} to {xs[-1]:,.0f} {unit}. Left, the step over the plain sum's: "
        f"{ends} times. Right, the milliseconds that each method adds."
    )


def _ranks(section: dict[str, Any]) -> str:
    numbers = [point["ranks"] for point in section["points"]]
    rows = []
    for wrapper in (DDP, FSDP2):
        found = [{r["method"]: r for r in p["methods"] if r["wrapper"] == wrapper} for p in section["points"]]
        size, ranks = Size(**section["points"][-1]["size"]), numbers[-1]
        plain = found[-1][PLAIN]["bytes"]
        for method in found[0]:
            cells = (f"{f[method]['ms'][1]:.3g} ms" if method == PLAIN else three(f[method]["ratio"][1]) for f in found)
            formula = payload(PLAIN if method == AGAIN else method, wrapper, size, ranks=ranks)
            counted = found[-1][method]["bytes"]
            rows.append((f"{method}, {wrapper}", *cells, f"{counted:,}", f"{formula:,}", f"{counted - plain:,}"))
    head = ("", *(f"{n} {'rank' if n == 1 else 'ranks'}" for n in numbers), "bytes", "by formula", "more than plain")
    return f"""## With the ranks

The plain sum's step in ms under DistributedDataParallel (DDP) and FSDP2, and the other methods' as multiples of it, by
gloo on one machine of {section["machine"]["cores"]} cores, where the ranks share the cores and the memory. So the times
say little about a network. The bytes say more: they are those that each of {numbers[-1]} ranks hands to collective
calls in a step, counted in torch's dispatcher.

{table(head, rows)}

![{_rank_alt(section)}]({FOLDER}/ranks.svg)

The formula, in numbers of 4 bytes: DDP sums $P$ and the heads once, and at parameters the trunk's rows, $T P$.
FSDP2 gathers the trunk for the forward and for the backward and scatters its gradient, $3 P$; at parameters it moves
the trunk $1 + 2 T$ times: twice for each loss, and once for the forward. The heads it gathers once in a step and
scatters once; at parameters it gathers them once for each loss. On top of that come {FACTS} bytes with which the ranks
compare what they are about to do, $(T + 1) w + T$ numbers for a marginalized decision, $T (T + 1)$ numbers of 8 bytes
for a Gramian, and a checksum of {CHECKSUM} bytes at parameters under DDP."""


def _rank_alt(section: dict[str, Any]) -> str:
    last = section["points"][-1]
    ratio = {(row["method"], row["wrapper"]): row["ratio"][1] for row in last["methods"]}
    said = _listed(
        f"{method} {three(ratio[method, wrapper])} under {wrapper}"
        for wrapper in (DDP, FSDP2)
        for method in (MARGINALIZED, DROP_PARAMETERS)
    )
    return (
        f"Two panels on log-log axes, the step over the plain sum's by ranks. On {last['ranks']} ranks: {said} times."
    )


def _again(results: dict[str, Any]) -> str:
    sections = {name: results[name] for name in (*TITLES, "ranks")}
    rows = [
        (
            name,
            s["date"][:10],
            f"`{s['command']}`",
            s["settings"]["repeats"],
            s["settings"]["threads"],
            f"{s['settings']['load']:.1f}",
        )
        for name, s in sections.items()
    ]
    about = [(s["machine"], s["versions"]) for s in sections.values()]
    machine, versions = about[0]
    elsewhere = "" if all(a == about[0] for a in about) else " Some parts were measured elsewhere: see the JSON."
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"""## How it was measured

On {machine["cores"]} cores of a machine that other programs use, too ({machine["cpu"]}), with {software}.{elsewhere}

Every round runs each method once, in a new order. `plain sum, again` is the plain sum in another place: how far its
ratio is from 1 is the noise. A point is left out of a fit, and of the picture, where what a method adds cannot be told
from 0: where a quarter of the rounds show nothing.

{table(("part", "date", "command", "rounds", "threads", "load before"), rows, numbers=False)}

All samples are in `benchmarks/results/scaling.json`, and this page is made from them:

```bash
pip install -e ".[bench]"
python benchmarks/scaling                        # all parts, 8 minutes
python benchmarks/scaling --only losses ranks    # some parts; the others stay
python benchmarks/scaling --publish              # this page and its pictures, from what was measured
```"""


def _ends(powers: Sequence[float]) -> tuple[float, float]:
    return powers[0], powers[-1]


def _slope(x: Sequence[float], y: Sequence[float]) -> str:
    found = fit(x, y)
    return "" if found is None else f"{found.power:.2f} ± {found.error:.2f}"


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
