"""A conflict report as text for people, in as many columns as there are. No numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from textwrap import wrap

from .._combine.conflict import Conflict
from .._pictures.names import abbreviated, clipped, shortened
from .findings import Findings
from .rows import ConflictAt

NARROWEST, WIDEST = 80, 120
SHOWN = 12
SQUARE = 8  # losses whose cosines are shown as a square

LEGEND = (
    "conflict: share of the numbers at which some losses ask for more and others for less; {chance:.0f} % where {n} "
    "losses have nothing to do with each other. purity: share of the gradient that is positive, a mean over these "
    "numbers: at one number 0 or 1 if all losses agree, 0.5 if they cancel out. cosine: 1 if two gradients point the "
    "same way, 0 if unrelated, -1 if opposite. longest : shortest: whose gradient is longest, and how many times as "
    "long as the shortest; a far longer one dominates the sum."
)


def as_text(report: Findings, width: int) -> str:
    """The whole report, in `width` columns; never fewer than 80."""
    width = min(max(width, NARROWEST), WIDEST)
    n, total = len(report.losses), sum(module.size for module in report.modules)
    parts = [
        *_wrapped(f"Gradients of {n} losses on one batch: {_listed(report.losses)}", width, ""),
        "",
        f"At the {total:,} shared parameters, by module in the order of the forward pass",
        *_modules(report, width),
        "",
        *_cosines(report.total, width),
        "",
        *_meetings(report, width),
        "",
        "Best place to combine them",
        *_wrapped(report.best.code, width),
        *_wrapped(report.best.reason, width),
        "",
        *_wrapped(
            f"A backward pass, predicted in {report.clock} (the plain sum of the losses: "
            f"{_seconds(report.plain_seconds)})",
            width,
            "",
        ),
        *_costs(report),
        "",
    ]
    for note in report.notes:
        parts += _wrapped(f"Note: {note}", width, "")
    parts += _wrapped(LEGEND.format(chance=100 * (1 - 2.0 ** (1 - n)), n=n), width, "")
    parts += ["", "Verdict"]
    for sentence in report.verdict:
        parts += _wrapped(sentence, width)
    return "\n".join(parts)


def most_in_conflict(modules: Sequence[ConflictAt], n: int) -> list[ConflictAt]:
    """Those with most numbers in conflict, in their order."""
    chosen = sorted(modules, key=lambda module: -module.conflict.conflicting)[:n]
    return [module for module in modules if any(module is other for other in chosen)]


def shown_name(module: ConflictAt) -> str:
    return module.name or "(model itself)"


HEADINGS = "parameters", "conflict", "purity", "lowest cosine", "longest : shortest"


def _modules(report: Findings, width: int) -> list[str]:
    shown = most_in_conflict(report.modules, SHOWN)
    lines = [_row(width, "module", *HEADINGS)]
    lines += [_conflict_row(width, shown_name(module), module.size, module.conflict) for module in shown]
    if len(shown) < len(report.modules):
        lines.append(f"  ... and {len(report.modules) - len(shown)} more, with fewer numbers in conflict")
    if len(report.modules) > 1:
        lines.append(_conflict_row(width, "all", sum(module.size for module in report.modules), report.total))
    return lines


def _conflict_row(width: int, name: str, size: int, conflict: Conflict) -> str:
    pair = conflict.lowest
    cosine = ratio = "-"
    if pair is not None:
        names = clipped(conflict.losses, 5)
        cosine = f"{conflict.cosines[pair].item():+.2f} {names[pair[0]]}/{names[pair[1]]}"
        norms = [(norm, name) for norm, name in zip(conflict.norms.tolist(), names, strict=True) if norm > 0]
        (longest, one), (shortest, other) = max(norms), min(norms)
        ratio = f"{one} {longest / shortest:.3g} × {other}"
    return _row(width, name, f"{size:,}", f"{100 * conflict.share:.0f} %", f"{conflict.purity:.2f}", cosine, ratio)


def _row(width: int, name: str, size: str, share: str, purity: str, cosine: str, ratio: str) -> str:
    room = width - 67
    return f"  {abbreviated(name, room):<{room}} {size:>10} {share:>8} {purity:>6}  {cosine:<17} {ratio}".rstrip()


def _cosines(conflict: Conflict, width: int) -> list[str]:
    n, cosines = len(conflict.losses), conflict.cosines
    names = clipped(conflict.losses, 8)
    if n > SQUARE:
        pairs = sorted(combinations(range(n), 2), key=lambda pair: cosines[pair].item())
        told = ", ".join(f"{names[i]}/{names[j]} {cosines[i, j].item():+.2f}" for i, j in pairs[:6])
        return ["Lowest cosines of the gradients for all shared parameters", *_wrapped(told, width)]
    lines = ["Cosines of the gradients for all shared parameters, and their norms"]
    lines.append("  " + "  ".join(f"{name:>8}" for name in ["", *names, "norm"]))
    for name, row, norm in zip(names, cosines.tolist(), conflict.norms.tolist(), strict=True):
        lines.append(f"  {name:>8}" + "".join(f"  {cosine:>+8.2f}" for cosine in row) + f"  {norm:>8.3g}")
    return lines


def _meetings(report: Findings, width: int) -> list[str]:
    activations = report.meetings
    if not activations:
        return ["No activation is read by several losses directly."]
    lines = [
        "At the activations where the losses meet",
        _row(width, "made by", "numbers", *HEADINGS[1:]),
    ]
    for meeting in activations[:SHOWN]:
        lines.append(_conflict_row(width, f"{meeting.name} {meeting.shape}", meeting.size, meeting.conflict))
        if len(meeting.losses) < len(report.losses):
            lines.append(f"    of {_listed(meeting.losses)} only")
    if len(activations) > SHOWN:
        lines.append(f"  ... and {len(activations) - SHOWN} more")
    return lines


def _costs(report: Findings) -> list[str]:
    lines = [f"  {'at':<16} {'time':>22}   {'more memory, at most':<20}  with MGDA, ..."]
    for cost in report.costs:
        at = f'"{cost.at}"' if cost.at != "module" else report.best.module or "model"
        time = f"{cost.times:.1f} × plain, {_seconds(cost.seconds)}"
        more = _bytes(cost.memory)
        held = "-" if cost.memory_of_rows is None else _bytes(cost.memory_of_rows)
        lines.append(f"  {shortened(at, 16):<16} {time:>22}   {more:<20}  {held}")
    return lines


def _listed(names: Sequence[str]) -> str:
    shown = [shortened(name, 24) for name in names[:6]]
    return ", ".join(shown) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _wrapped(text: str, width: int, indent: str = "  ") -> list[str]:
    return wrap(text, width, initial_indent=indent, subsequent_indent=indent or "  ", break_on_hyphens=False)


def _seconds(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.0f} µs"


def _bytes(size: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"
