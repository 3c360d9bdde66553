"""What the measurements must reach, and whether they do. Measures nothing, prints nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cells import ACTIVATIONS, JD, JD_LOOP, LAYER, LOOP, MODULE, MTL, MTL_LOOP, PARAMETERS, PLAIN, TRUNK, VMAP
from measure import SIGN_DROPOUT, STREAMED, TORCHJD, Series, quartiles
from memory import Key, Peak
from methods import COMBINED, FROM_GRAMIAN, TRAFFIC

Pair = tuple[str, int]  # model, number of losses

FORMS = (LAYER, ACTIVATIONS, MODULE)
ROWS = (PARAMETERS, VMAP, LOOP)
PEERS = (MTL, MTL_LOOP, JD, JD_LOOP)


@dataclass
class Results:
    """All that was measured so far."""

    time: dict[Pair, dict[str, Series]] = field(default_factory=dict)
    memory: dict[Key, Peak] = field(default_factory=dict)
    combination: dict[str, Series] = field(default_factory=dict)
    methods: dict[Pair, dict[str, Series]] = field(default_factory=dict)
    transforms: dict[int, dict[str, Series]] = field(default_factory=dict)  # alone, by the number of losses
    traffic: dict[str, Series] = field(default_factory=dict)

    def series(self, pair: Pair, method: str) -> Series | None:
        """A cell's samples, if there are any."""
        series = self.time.get(pair, {}).get(method)
        return series if series is not None and series.samples else None

    def best_peer(self, pair: Pair, methods: Iterable[str] = PEERS) -> str | None:
        """The fastest of TorchJD's ways here."""
        known = {method: series for method in methods if (series := self.series(pair, method)) is not None}
        return min(known, key=lambda method: quartiles(known[method].steps())[1], default=None)

    def above_plain(self, key: Key) -> int | None:
        """Peak tensor bytes above the plain sum's peak."""
        peak, plain = self.memory.get(key), self.memory.get((*key[:2], PLAIN))
        return None if peak is None or plain is None else peak.tensors - plain.tensors


@dataclass(frozen=True)
class Check:
    """One target: a measured number and its limit."""

    target: str
    where: str
    measured: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.measured <= self.limit


def checks(results: Results) -> list[Check]:
    """All targets that the results can speak of."""
    return [
        *_activations(results),
        *_parameters(results),
        *_memory(results),
        *_combination(results),
        *_toy(results),
        *_methods(results),
    ]


def _activations(results: Results) -> Iterator[Check]:
    for model, n_losses in results.time:
        if model == "toy":
            continue
        for method in FORMS:
            limit = 1.05
            if model == "mlp":
                few, many = (1.10, 1.20) if method == LAYER else (1.15, 1.25)
                limit = few if n_losses <= 8 else many
            measured = _ratio(results, (model, n_losses), method, PLAIN)
            if measured is not None:
                yield Check("step / plain step", _where(model, n_losses, method), measured, limit)


def _parameters(results: Results) -> Iterator[Check]:
    pairs = [pair for pair in results.time if pair[0] != "toy"]
    for model, n_losses in pairs:
        limits = {2: 0.9, 40: 0.6}
        mtl = results.best_peer((model, n_losses), (MTL, MTL_LOOP))
        if model == "mlp" and n_losses in limits and mtl is not None:
            measured = _ratio(results, (model, n_losses), PARAMETERS, mtl)
            if measured is not None:
                where = _where(model, n_losses, PARAMETERS)
                yield Check("step / TorchJD mtl_backward's step", where, measured, limits[n_losses], f"against {mtl}")
    for model, n_losses in pairs:
        best = results.best_peer((model, n_losses))
        measured = None if best is None else _ratio(results, (model, n_losses), PARAMETERS, best)
        if measured is not None:
            where = _where(model, n_losses, PARAMETERS)
            yield Check("step / TorchJD's best step", where, measured, 1.0, f"against {best}")
    for model, n_losses in pairs:
        rows, trunk = (results.series((model, n_losses), method) for method in (PARAMETERS, TRUNK))
        if rows is not None and trunk is not None:
            backward = quartiles(rows.backward_ratios(trunk))[1] / n_losses
            step = quartiles(rows.ratios(trunk))[1] / n_losses
            where = _where(model, n_losses, PARAMETERS)
            note = f"the whole step: {step:.2f}"
            yield Check("backward / (T × plain backward of the trunk)", where, backward, 1.3, note)


def _memory(results: Results) -> Iterator[Check]:
    for model in dict.fromkeys(key[0] for key in results.memory):
        for method in ROWS:
            few, many = (results.above_plain((model, n_losses, method)) for n_losses in (8, 40))
            if few is not None and many is not None:
                where = f"{model}, {method}"
                yield Check("extra memory at T = 40 / at T = 8", where, many / few, 1.10)
    for (model, n_losses, method), peak in results.memory.items():
        extra = results.above_plain((model, n_losses, method))
        if method in ROWS and extra is not None:
            chunk = 1 if "loop" in peak.engine else 4
            limit = chunk + 4 + peak.forward / peak.shared
            note = (
                f"chunk of {chunk}; in multiples of the shared parameters, activations {peak.forward / peak.shared:.2f}"
            )
            where = _where(model, n_losses, method)
            yield Check("extra memory ≤ (chunk + 4) × shared + activations", where, extra / peak.shared, limit, note)


def _combination(results: Results) -> Iterator[Check]:
    peer = results.combination.get(TORCHJD)
    for method in (SIGN_DROPOUT, STREAMED):
        series = results.combination.get(method)
        if series is not None and peer is not None and (ratios := series.ratios(peer)):
            yield Check("combination / TorchJD's aggregator", method, quartiles(ratios)[1], 0.35)


def _toy(results: Results) -> Iterator[Check]:
    for model, n_losses in results.time:
        for method in (*FORMS, PARAMETERS) if model == "toy" else ():
            measured = _ratio(results, (model, n_losses), method, PLAIN)
            if measured is not None:
                yield Check("step / plain step", _where(model, n_losses, method), measured, 2.0)


def _methods(results: Results) -> Iterator[Check]:
    for (model, n_losses), cells in results.methods.items():
        for name, series in cells.items():
            method, _, form = name.partition(" ")
            if form == ACTIVATIONS and (ratios := series.ratios(cells[PLAIN])):
                yield Check("step / plain step", _where(model, n_losses, name), quartiles(ratios)[1], 1.15)
            peer = cells.get(f"{method} {MTL}")
            if form == PARAMETERS and peer is not None and (ratios := series.ratios(peer)):
                yield Check("step / TorchJD's, same method", _where(model, n_losses, name), quartiles(ratios)[1], 0.8)
    for n_losses, cells in results.transforms.items():
        for method, series in cells.items():
            if series.samples:
                limit = 1.0 if n_losses <= 8 else 10.0
                milliseconds = 1e3 * quartiles(series.steps())[1]
                yield Check("transform alone, ms", f"T = {n_losses}, {method}", milliseconds, limit)
    for (model, n_losses, name), peak in results.memory.items():
        extra = results.above_plain((model, n_losses, name))
        if name.partition(" ")[0] in FROM_GRAMIAN and name.endswith(PARAMETERS) and extra is not None:
            rows = n_losses * peak.shared
            theirs = results.above_plain((model, n_losses, f"{name.partition(' ')[0]} {MTL}"))
            note = "" if theirs is None else f"TorchJD: {theirs / rows:.2f}"
            where = _where(model, n_losses, name)
            yield Check("extra memory / (T × shared parameters)", where, extra / rows, 1.2, note)
    ours, traffic = results.traffic.get(COMBINED), results.traffic.get(TRAFFIC)
    if ours is not None and traffic is not None and (ratios := ours.ratios(traffic)):
        yield Check("combination / its memory traffic", COMBINED, quartiles(ratios)[1], 1.5)


def _ratio(results: Results, pair: Pair, method: str, other: str) -> float | None:
    """Median over rounds of a method's step over another's in the same round."""
    series, base = results.series(pair, method), results.series(pair, other)
    ratios = [] if series is None or base is None else series.ratios(base)
    return quartiles(ratios)[1] if ratios else None


def _where(model: str, n_losses: int, method: str) -> str:
    return f"{model}, T = {n_losses}, {method}"
