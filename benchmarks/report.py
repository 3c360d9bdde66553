"""The results as tables and as JSON. Measures nothing, judges nothing."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cells import PLAIN, TRUNK
from checks import Check, Results, checks
from measure import READ, TORCHJD, Series, quartiles
from rich.console import Console
from rich.table import Table

import mtopt


def show(results: Results, console: Console) -> None:
    """Print everything that was measured, and the check list."""
    for (model, n_losses), cells in results.time.items():
        console.print(_time_table(f"{model}, T = {n_losses}", cells, results.best_peer((model, n_losses))))
    for (model, n_losses), cells in results.methods.items():
        console.print(_time_table(f"{model}, T = {n_losses}, methods of the papers", cells, None))
    for n_losses, cells in results.transforms.items():
        console.print(_short_table(f"transforms alone, T = {n_losses}: ms", cells))
    if results.traffic:
        console.print(_short_table("rows that are there: ms", results.traffic))
    for model, n_losses in dict.fromkeys(key[:2] for key in results.memory):
        console.print(_memory_table(results, model, n_losses))
    if any(series.samples for series in results.combination.values()):
        console.print(_combination_table(results.combination))
    found = checks(results)
    if found:
        console.print(_check_table(found))
        missed = sum(not check.passed for check in found)
        console.print(f"{len(found) - missed} of {len(found)} checks passed, {missed} missed")


def as_json(results: Results, settings: dict[str, Any], *, complete: bool) -> dict[str, Any]:
    """Everything that was measured, with what it was measured on."""
    return {
        **about(" ".join(sys.argv), settings),
        "complete": complete,
        "time": [
            {"model": model, "losses": n_losses, "method": method, **_summary(series, cells.get(PLAIN))}
            for (model, n_losses), cells in results.time.items()
            for method, series in cells.items()
            if series.samples
        ],
        "memory": [
            {
                "model": key[0],
                "losses": key[1],
                "method": key[2],
                **asdict(peak),
                "above_plain": results.above_plain(key),
            }
            for key, peak in results.memory.items()
        ],
        "combination": [
            {"method": method, **_summary(series, results.combination.get(TORCHJD))}
            for method, series in results.combination.items()
            if series.samples
        ],
        "methods": [
            {"model": model, "losses": n_losses, "method": name, **_summary(series, cells.get(PLAIN))}
            for (model, n_losses), cells in results.methods.items()
            for name, series in cells.items()
            if series.samples
        ],
        "transforms": [
            {"losses": n_losses, "method": name, **_summary(series, None)}
            for n_losses, cells in results.transforms.items()
            for name, series in cells.items()
            if series.samples
        ],
        "traffic": [
            {"method": name, **_summary(series, None)} for name, series in results.traffic.items() if series.samples
        ],
        "checks": [{**asdict(check), "passed": check.passed} for check in checks(results)],
    }


def about(command: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What results are worth nothing without: when and how they were measured, and on what."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "settings": settings,
        "machine": _machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchjd": version("torchjd"),
            "mtopt": mtopt.__version__,
        },
    }


def _time_table(title: str, cells: dict[str, Series], best: str | None) -> Table:
    table = Table(title=f"{title}: ms of a whole step", title_justify="left")
    table.add_column("method")
    for name in ("rounds", "step", "quartiles", "backward", "/ plain", "quartiles", "/ TorchJD's best"):
        table.add_column(name, justify="right")
    plain = cells.get(PLAIN)
    for method, series in cells.items():
        if not series.samples:
            continue
        low, middle, high = (1e3 * x for x in quartiles(series.steps()))
        backward = 1e3 * quartiles(series.backwards())[1]
        peer = cells[best] if best is not None and method != TRUNK else None
        table.add_row(
            method,
            str(len(series.samples)),
            f"{middle:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{backward:.2f}",
            *_ratio_columns(series, plain if method != TRUNK else None),
            _ratio_columns(series, peer)[0],
        )
    return table


def _memory_table(results: Results, model: str, n_losses: int) -> Table:
    table = Table(title=f"{model}, T = {n_losses}: peak memory in MB, above what is held between steps")
    table.title_justify = "left"
    table.add_column("method")
    for name in ("tensors", "resident", "tensors above plain", "× shared parameters", "× T", "batching"):
        table.add_column(name, justify="right")
    for key, peak in results.memory.items():
        if key[:2] != (model, n_losses):
            continue
        extra = results.above_plain(key)
        table.add_row(
            key[2],
            f"{peak.tensors / 1e6:.1f}",
            "" if peak.resident is None else f"{peak.resident / 1e6:.1f}",
            "" if extra is None else f"{extra / 1e6:.1f}",
            "" if extra is None else f"{extra / peak.shared:.2f}",
            "" if extra is None else f"{extra / peak.shared / n_losses:.2f}",
            peak.engine,
        )
    return table


def _combination_table(cells: dict[str, Series]) -> Table:
    table = Table(title="the bare combination: ms", title_justify="left")
    table.add_column("method")
    for name in ("rounds", "median", "quartiles", "/ TorchJD", "quartiles", "/ reading once"):
        table.add_column(name, justify="right")
    for method, series in cells.items():
        if series.samples:
            low, middle, high = (1e3 * x for x in quartiles(series.steps()))
            table.add_row(
                method,
                str(len(series.samples)),
                f"{middle:.1f}",
                f"{low:.1f} to {high:.1f}",
                *_ratio_columns(series, cells.get(TORCHJD)),
                _ratio_columns(series, cells.get(READ))[0],
            )
    return table


def _short_table(title: str, cells: dict[str, Series]) -> Table:
    table = Table("", "rounds", "median", "quartiles", title=title, title_justify="left")
    for name, series in cells.items():
        if series.samples:
            low, middle, high = (1e3 * x for x in quartiles(series.steps()))
            table.add_row(name, str(len(series.samples)), f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def _check_table(found: list[Check]) -> Table:
    table = Table(title="what must be reached", title_justify="left")
    for name in ("", "target", "where", "measured", "limit", "note"):
        table.add_column(name, justify="right" if name in ("measured", "limit") else "left")
    for check in found:
        mark = "[green]PASS[/]" if check.passed else "[red]miss[/]"
        table.add_row(mark, check.target, check.where, f"{check.measured:.3f}", f"{check.limit:.2f}", check.note)
    return table


def _ratio_columns(series: Series, base: Series | None) -> tuple[str, str]:
    ratios = [] if base is None else series.ratios(base)
    if not ratios:
        return "", ""
    low, middle, high = quartiles(ratios)
    return f"{middle:.3f}", f"{low:.3f} to {high:.3f}"


def _summary(series: Series, base: Series | None) -> dict[str, Any]:
    """Quartiles of the step, the backward and the paired ratio; all samples, by round."""
    ratios = [] if base is None else series.ratios(base)
    return {
        "ms": [round(1e3 * x, 4) for x in quartiles(series.steps())],
        "backward_ms": [round(1e3 * x, 4) for x in quartiles(series.backwards())],
        "ratio": [round(x, 4) for x in quartiles(ratios)] if ratios else None,
        "rounds": list(series.samples),
        "samples_ms": [round(1e3 * x, 4) for x in series.steps()],
        "backward_samples_ms": [round(1e3 * x, 4) for x in series.backwards()],
    }


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())
