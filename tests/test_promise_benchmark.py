"""The benchmark of the promise: what each way trains with, that a run goes on where it was stopped, and its tables."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def promise(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("promise", "promise_page", "batched", "problems", "problems.physics", "problems.base"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import promise

    return promise


def test_every_way_trains_with_what_its_name_says(promise):
    for way in promise.ways():
        transforms = promise.transforms_of(way, 0.99, 3)
        described = str(transforms)
        assert ("Whitening(beta=0.99" in described) == ("whitened" in way or way.startswith("recipe"))
        assert ("pairs=True" in described) == ("by pairs" in way)
        if way.startswith("sum"):
            weight = float(way.split()[-1])
            assert described == ("[]" if weight == 1 else f"[ConstantWeights(weight=(1.0, {weight}, {weight}))]")


def written(path, scores):
    """Finished runs with these scores, by what `Run` is made of."""
    lines = []
    for (way, rate, beta, seed), score in scores.items():
        run = {"problem": "burgers", "way": way, "rate": rate, "beta": beta, "seed": seed}
        lines.append(json.dumps({**run, "score": score, "raised": {}}))
    path.write_text("\n".join(lines) + "\n")


def test_rates_are_tried_until_the_best_is_inside(promise, tmp_path, monkeypatch):
    """One that is best at 1e-3, and one whose error falls up to the last rate that there is."""
    path, tried = tmp_path / "runs.jsonl", []
    scores = {}
    monkeypatch.setattr(promise, "BETAS", (0.9,))
    monkeypatch.setattr(promise, "ways", lambda *_: ["UPGrad", "ConFIG"])

    def pretend(runs, path, workers, steps, what):
        tried.append({(run.way, run.rate) for run in runs} - {(way, rate) for way, rate, *_ in scores})
        for run in runs:
            score = abs(math.log10(run.rate) + 3) if run.way == "UPGrad" else -run.rate
            scores[run.way, run.rate, run.beta, run.seed] = score
        written(path, scores)

    monkeypatch.setattr(promise, "do", pretend)
    promise.tune(["burgers"], path, 1)
    assert tried[0] == {(way, rate) for way in ("UPGrad", "ConFIG") for rate in (3e-3, 1e-2, 3e-2)}
    assert tried[1:] == [{("UPGrad", 1e-3), ("ConFIG", 1e-1)}, {("UPGrad", 3e-4), ("ConFIG", 3e-1)}]
    done = promise.finished(path)
    assert promise.best_rates(done) == {("burgers", "UPGrad", 0.9): 1e-3, ("burgers", "ConFIG", 0.9): 3e-1}
    assert {(run.way, run.rate) for run in promise.testing(done)} == {("UPGrad", 1e-3), ("ConFIG", 3e-1)}
    promise.tables(path, console := Console(record=True, width=120))
    assert console.export_text().count("(0.3!)") == 1  # at the edge of what can be tried


def test_sums_are_tested_with_weight_1_and_with_the_best_one(promise, tmp_path):
    ways = {"sum, weight 1": 0.0, "sum, weight 10": -2.0, "sum, weight 100": -1.0, "UPGrad": -3.0}
    written(tmp_path / "r", {(way, 1e-2, 0.9, 100): score for way, score in ways.items()})
    tests = list(promise.testing(promise.finished(tmp_path / "r")))
    assert {run.way for run in tests} == ways.keys() - {"sum, weight 100"}
    assert {run.seed for run in tests} == set(promise.TESTING)


def test_what_is_finished_is_not_trained_again(promise, tmp_path):
    path = tmp_path / "runs.jsonl"
    runs = [promise.Run("burgers", "sum, weight 1", 1e-2, 0.9, seed) for seed in (100, 101)]
    promise.do(runs[:1], path, 1, 2, "the first")
    promise.do(runs, path, 1, 2, "both")
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [100, 101]


def test_runs_train_together_and_tell_harm(promise):
    ways = "ConFIG, whitened", "sum, weight 1"
    watched, plain = promise.train([promise.Run("helmholtz", way, 1e-2, 0.9, 0) for way in ways], steps=3)
    assert -3 < watched["score"] < 1
    assert watched["raised"].keys() == {"residual", "boundary"}
    assert plain["score"] != watched["score"]
    assert not plain["raised"]


def test_the_tables_of_the_page_have_what_was_found(promise, tmp_path):
    """Errors that are known: whitening halves each method's, the recipe has 1.1 times the best sum's, in each seed."""
    from promise_page import publish

    path, lines = tmp_path / "runs.jsonl", []
    for problem, way, beta in itertools.product(promise.PROBLEMS, promise.ways(), promise.BETAS):
        weight = float(way.split()[-1]) if way.startswith("sum") else 10
        score = -2 + 0.1 * abs(math.log10(weight) - 1) + 0.5 * (beta == 0.999)
        if way.startswith(tuple(promise.METHODS)):
            score += 0.3 - math.log10(2) * ("whitened" in way) - math.log10(4) * ("by pairs" in way)
        score += math.log10(1.1) * (way.startswith("recipe"))
        for rate, seed in itertools.product(promise.FIRST_RATES, [*promise.TUNING, *promise.TESTING]):
            run = {"problem": problem, "way": way, "rate": rate, "beta": beta, "seed": seed}
            raised = {} if way.startswith("sum") else {"residual": 0.25, "boundary": 0.5}
            lines.append(json.dumps({**run, "score": score + (rate != 1e-2) + 0.01 * seed, "raised": raised}))
    path.write_text("\n".join(lines))
    names = ["recipe", "whitening", "pairs", *(f"promise {problem}" for problem in promise.PROBLEMS)]
    page = tmp_path / "page.md"
    page.write_text("\n\n".join(f"<!-- table: {name} -->\n<!-- end -->" for name in names))
    publish(path, page)
    text = page.read_text()
    swept = 3 * 3 * len(promise.WEIGHTS)
    assert f"| sum, all swept | 0.0111 (of {swept} settings) |" in text
    assert "| recipe / sum, all swept | 1.10 (1.10 to 1.10) | 1.10 (1.10 to 1.10) |" in text
    assert "| recipe / sum, weights 1, β₂ 0.999 | 0.28 (0.28 to 0.28) | 0.28 (0.28 to 0.28) |" in text
    (mean,) = (line for line in text.splitlines() if line.startswith("| geometric mean |"))
    assert re.findall(r"\d+\.\d\d", mean) == ["0.50"] * 7
    assert "(rate 0.01, harm 50%)" in text
    assert text.count("| ConFIG | 0.25 |") == 1


def test_other_problems_have_the_sums_and_the_recipe_alone(promise):
    for problem in promise.OTHERS:
        assert {way.split(",")[0] for way in promise.ways(problem)} == {"sum", "recipe"}
        record, other = promise.train(
            [promise.Run(problem, way, 1e-3, 0.9, 0) for way in ("recipe", "sum, weight 3")], 2
        )
        assert -2 < record["score"] < 1
        assert record["score"] != other["score"]
