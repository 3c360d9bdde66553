"""The benchmark of the promise: what each way trains with, that a run goes on where it was stopped, and its tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def promise(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("promise", "problems", "problems.physics", "problems.base"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import promise

    return promise


def test_every_way_trains_with_what_its_name_says(promise):
    for way in promise.ways():
        transforms = promise.transforms_of(way, 0.99, 3)
        described = str(transforms)
        assert ("Whitening(beta=0.99" in described) == ("whitened" in way)
        if way.startswith("sum"):
            weight = float(way.split()[-1])
            assert described == ("[]" if weight == 1 else f"[ConstantWeights(weight=(1.0, {weight}, {weight}))]")


def test_what_is_finished_is_not_trained_again_and_the_best_rate_is_tested(promise, tmp_path, monkeypatch):
    path, runs, lines = tmp_path / "runs.jsonl", [], []
    monkeypatch.setattr(promise, "RATES", (0.1, 0.2))
    monkeypatch.setattr(promise, "ways", lambda: ["sum, weight 1"])
    for run in promise.tuning(["burgers"]):
        score = {0.1: -1.0, 0.2: -2.0}[run.rate] + run.beta
        lines.append(json.dumps({**vars(run), "score": score, "seconds": 1.0, "raised": {}}))
        runs.append(run)
    path.write_text("\n".join(lines))
    done = promise.finished(path)
    assert list(done) == runs
    assert set(promise.best_rates(done).values()) == {0.2}
    tests = list(promise.testing(done))
    assert {run.seed for run in tests} == set(promise.TESTING)
    assert {run.rate for run in tests} == {0.2}
    promise.tables(path, console := Console(record=True, width=120))
    assert "(0.2!)" in console.export_text()  # at an edge of the grid


def test_a_run_trains_and_tells_harm(promise):
    record = promise.train(promise.Run("helmholtz", "ConFIG, whitened", 1e-2, 0.9, 0), steps=3)
    assert -3 < record["score"] < 1
    assert record["raised"].keys() == {"residual", "boundary"}
