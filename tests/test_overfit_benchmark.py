"""The benchmark of trainings that overfit: many networks are as each alone, fair tuning, a page with its numbers."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

import mtopt
from mtopt import GradDrop

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results" / "overfit.jsonl"
PAGE = ROOT / "docs" / "overfitting.md"
OURS = ("overfit", "overfit_page", "problems", "evidence", "data")


@pytest.fixture
def overfit(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        monkeypatch.delitem(sys.modules, name)
    import overfit

    return overfit


# -- many networks as one ----------------------------------------------------------------------------------------------


def larger(purity):
    """A pick that needs no luck: the sign with more mass."""
    return (purity > 0.5).float()


PICKS = {  # of many networks as one, of one network, site, Adam's first beta, weight decay
    "the sum": (list, list, "activations", 0.9, 0.0),
    "weight decay": (list, list, "activations", 0.9, 0.3),
    "at activations": (lambda: [GradDrop(keep=larger)], lambda: [GradDrop(keep=larger)], "activations", 0.9, 0.0),
    "marginalized": (
        lambda: [GradDrop(keep=larger, marginalize=1)],
        lambda: [GradDrop(keep=larger, marginalize=0)],
        "trunk",
        0.9,
        0.0,
    ),
    "momenta at parameters": (
        lambda: [mtopt.Momentum(), GradDrop(keep=larger)],
        lambda: [mtopt.Momentum(), GradDrop(keep=larger)],
        "parameters",
        0.0,
        0.0,
    ),
}


def on_its_own(problem, make, at, momentum, decay, run):
    """The network after an ordinary training."""
    model = problem.make_model(run.seed)
    inner = torch.optim.AdamW(model.parameters(), lr=run.rate, betas=(momentum, 0.999), weight_decay=decay)
    optimizer = mtopt.MultiLossOptimizer(inner, make(), at=model.trunk if at == "trunk" else at)
    batches = problem.batches(run.seed)
    for _ in range(problem.steps):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        pairs = zip(model(inputs).items(), targets.unbind(1), strict=True)
        optimizer.step({task: functional.cross_entropy(output, target) for (task, output), target in pairs})
    return model


@pytest.mark.parametrize("name", PICKS)
def test_each_of_many_networks_trains_as_on_its_own(overfit, monkeypatch, name):
    of_many, of_one, at, momentum, decay = PICKS[name]
    way = overfit.DECAY if decay else "a way"
    made = type(overfit.ways("yeast")[overfit.DECAY])(lambda _: of_many(), at, (decay,), momentum)
    monkeypatch.setattr(overfit, "ways", lambda _: {way: made})
    problem = overfit.problem_of("quick_digits")
    runs = [overfit.Run("quick_digits", way, rate, decay, seed) for rate, seed in ((1e-3, 3), (1e-2, 4), (3e-3, 3))]
    for run, found in zip(runs, overfit.train(runs), strict=True):
        model = on_its_own(problem, of_one, at, momentum, decay, run)
        for split, examples in problem.splits.items():
            with torch.no_grad():
                outputs = list(model(examples.inputs).values())
            pairs = list(zip(outputs, examples.targets.unbind(1), strict=True))
            loss = sum(functional.cross_entropy(output, target) for output, target in pairs)
            score = sum((output.argmax(1) == target).float().mean() for output, target in pairs) / 2
            assert found["end"][split] == pytest.approx([float(score), float(loss)], rel=1e-3)


def test_a_loss_is_the_mean_over_the_examples_that_have_its_label(overfit):
    torch.manual_seed(0)
    outputs = {"a": torch.randn(2, 4, 3), "b": torch.randn(2, 4, 3)}
    none = overfit.NONE
    targets = torch.tensor([[0, none], [2, none], [none, 1], [none, 1]]).expand(2, 4, 2)
    found = overfit.losses(outputs, targets)
    for i in range(2):
        torch.testing.assert_close(found["a"][i], functional.cross_entropy(outputs["a"][i, :2], torch.tensor([0, 2])))
        torch.testing.assert_close(found["b"][i], functional.cross_entropy(outputs["b"][i, 2:], torch.tensor([1, 1])))


def test_the_score_of_yes_or_no_is_the_area_under_the_curve_ties_included(overfit):
    torch.manual_seed(0)
    outputs = torch.randn(3, 200, 1).mul(4).round()
    targets = (torch.rand(200, 2) < 0.3).float()
    found = overfit.scores({"a": outputs, "b": -outputs}, targets)
    for i in range(3):
        areas = roc_auc_score(targets[:, 0], outputs[i, :, 0]), roc_auc_score(targets[:, 1], -outputs[i, :, 0])
        assert found[i].item() == pytest.approx(sum(areas) / 2)


def test_the_weights_of_the_best_look_are_kept_for_each_network(overfit):
    network = nn.Linear(1, 2, bias=False)  # its rows stand for two networks
    best = overfit.Best(network, 2)
    for step, values in enumerate(([0.5, 0.1], [0.4, 0.3], [math.nan, 0.2])):
        network.weight.data.fill_(step)
        best.look(torch.tensor(values), step)
    assert best.weights["weight"].flatten().tolist() == [0, 1]
    assert best.steps.tolist() == [0, 1]


def test_units_are_dropped_in_training_alone(overfit):
    models = [overfit.problem_of("quick_digits").make_model(seed) for seed in range(2)]
    network, inputs = overfit.stacked(models, 0.5), torch.rand(1000, 64)
    plain = overfit.stacked(models, 0.0)
    zeros, before = (n.trunk(inputs).eq(0).float().mean().item() for n in (network, plain))
    assert zeros == pytest.approx(1 - 0.5 * (1 - before), abs=0.1)
    network.eval()
    assert all(torch.equal(a, b) for a, b in zip(network(inputs).values(), plain(inputs).values(), strict=True))


# -- tuning ------------------------------------------------------------------------------------------------------------


def record(score):
    return {"best": {"validation": [score, 1.0]}}


def test_rates_grow_for_all_ways_alike_until_no_best_is_at_an_edge(overfit):
    """The plain sum is best at the highest rate, weight decay at a strength that is not among the first ones."""

    def score(run):
        if run.way == overfit.DECAY:
            return -abs(math.log10(run.strength / 3)) - abs(math.log10(run.rate / 3e-3))
        return -abs(math.log10(run.rate / (3e-2 if run.way == "plain sum" else 3e-3)))

    done = {}
    while missing := [run for run in overfit.tuning("yeast", done) if run not in done]:
        done |= {run: record(score(run)) for run in missing}
    tried = {}
    for run in done:
        tried.setdefault(run.way, set()).add((run.rate, run.strength))
    assert {rate for rate, _ in tried["plain sum"]} == {1e-3, 3e-3, 1e-2, 3e-2, 1e-1}
    assert all({rate for rate, _ in settings} == {1e-3, 3e-3, 1e-2, 3e-2, 1e-1} for settings in tried.values())
    assert {strength for _, strength in tried[overfit.DECAY]} == {0.1, 0.3, 1.0, 3.0, 10.0}
    assert {strength for _, strength in tried[overfit.DROPOUT]} == {0.1, 0.3, 0.5}
    chosen = {(run.way, run.rate, run.strength) for run in overfit.testing("yeast", done)}
    assert {("plain sum", 3e-2, 0.0), (overfit.DECAY, 3e-3, 3.0)} <= chosen
    assert {run.seed for run in overfit.testing("yeast", done)}.isdisjoint({run.seed for run in done})


def test_what_is_finished_is_not_trained_again(overfit, tmp_path):
    runs = [overfit.Run("quick_digits", "GradDrop", 1e-2, 0.0, seed) for seed in (100, 101)]
    path = tmp_path / "runs.jsonl"
    assert overfit.do(runs[:1], path, "the first")
    assert overfit.do(runs, path, "both")
    assert not overfit.do(runs, path, "nothing")
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [100, 101]


def test_the_quick_form_tries_every_way_and_prints_its_tables(overfit, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["overfit.py", "--quick"])
    overfit.main()
    printed = capsys.readouterr().out
    assert all(f"| {way} |" in printed for way in overfit.ways("quick_digits"))


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lines():
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def by_way(lines):
    """By problem and way, the test scores of seeds 0 to 9 in percent: whatever was tested, without our own choosing."""
    found = {}
    for line in lines:
        if line["seed"] < 100:
            found.setdefault((line["problem"], line["way"]), {})[line["seed"]] = 100 * line["best"]["test"][0]
    return found


def corrected(ps):
    """Holm's p-values, by their definition: the largest of those that come no later, each times what is left."""
    ordered = sorted(ps, key=ps.get)
    times = {key: min(1.0, (len(ordered) - i) * ps[key]) for i, key in enumerate(ordered)}
    return {key: max(times[other] for other in ordered[: i + 1]) for i, key in enumerate(ordered)}


def verdicts(lines):
    """Of each way against the plain sum."""
    scores = by_way(lines)
    seeds = range(10)
    pairs = {
        key: ([own[s] for s in seeds], [scores[key[0], "plain sum"][s] for s in seeds])
        for key, own in scores.items()
        if key[1] != "plain sum"
    }
    ps = corrected({key: stats.ttest_rel(*pair).pvalue for key, pair in pairs.items()})
    gains = {key: sum(own) / 10 - sum(plain) / 10 for key, (own, plain) in pairs.items()}
    return {key: (gains[key], "" if p >= 0.05 else "better" if gains[key] > 0 else "worse") for key, p in ps.items()}


def test_the_tables_of_the_page_are_those_of_the_results(overfit):
    from blocks_of_a_page import blocks_of

    assert blocks_of(PAGE.read_text(encoding="utf-8")) == overfit.tables(overfit.finished(RESULTS))


def test_every_way_was_tested_with_ten_other_seeds_than_it_was_tuned_with(overfit, lines):
    scores = by_way(lines)
    problems = {problem for problem, _ in scores}
    assert {way for p in problems for way in overfit.ways(p)} == {way for _, way in scores}
    assert all(own.keys() == set(range(10)) for own in scores.values())
    done = overfit.finished(RESULTS)
    assert all(run in done for problem in problems for run in overfit.tuning(problem, done))


def test_the_table_of_all_problems_has_the_differences_and_the_words(overfit, lines):
    from blocks_of_a_page import blocks_of

    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in blocks_of(PAGE.read_text(encoding="utf-8"))["all"].splitlines()
    ]
    shown = {(title, row[0]): cell for row in rows for title, cell in zip(head[1:], row[1:], strict=True) if cell}
    from overfit_page import TITLES

    found = {(TITLES[problem], way): of for (problem, way), of in verdicts(lines).items()}
    assert shown.keys() == found.keys()
    for key, (gain, word) in found.items():
        number, _, said = shown[key].partition(", ")
        assert (float(number), said) == (pytest.approx(gain, abs=0.0051), word)


def prose():
    """The page's text in one line."""
    return " ".join(PAGE.read_text(encoding="utf-8").split())


def numbers(template):
    """What stands in the page in place of each {} of a sentence, which it must have once."""
    pattern = re.escape(template).replace(r"\{\}", r"([-+]?[\d.]+)").replace(r"\ ", " ")
    (found,) = re.findall(pattern, prose())
    return [float(number) for number in ([found] if isinstance(found, str) else found)]


def test_the_page_says_first_what_the_results_say_of_graddrop(lines):
    found = {key: of for key, of in verdicts(lines).items() if "GradDrop" in key[1] and key[1] != "Random GradDrop"}
    words = [word for _, word in found.values()]
    counts = [len(words), words.count("better"), words.count("worse"), words.count("")]
    sentence = (
        "In {} pairs of a form of GradDrop and a problem it was better in {}, worse in {}, and no difference was found"
    )
    assert numbers(sentence + " in {}. The") == counts
    gains = [gain for gain, _ in found.values()]
    assert numbers("The differences lie between {} and {} points") == [round(min(gains), 2), round(max(gains), 2)]


def test_the_page_says_how_often_the_regularizers_helped(lines):
    found = [word for (_, way), (_, word) in verdicts(lines).items() if way in ("dropout", "weight decay")]
    counts = [len(found), found.count("better"), found.count("worse")]
    assert numbers("dropout and weight decay, in {} pairs, were better in {} and worse in {}") == counts


def test_the_gaps_that_the_page_tells_are_those_with_the_same_learning_rate(lines):
    def gap(problem, way):
        ends = [line for line in lines if (line["problem"], line["way"]) == (problem, way) and line["seed"] < 100]
        rates.setdefault(problem, set()).update(line["rate"] for line in ends)
        return sum(100 * (line["end"]["training"][0] - line["end"]["test"][0]) for line in ends) / len(ends)

    rates = {}
    sentence = (
        "{} points with GradDrop and {} without on two digits, {} and {} on Multi-Fashion, {} and {} on Census-Income."
    )
    problems = ("two_digits", "multi_fashion", "census")
    expected = [gap(problem, way) for problem in problems for way in ("GradDrop", "plain sum")]
    assert numbers(sentence) == pytest.approx(expected, abs=0.051)
    assert all(len(of_problem) == 1 for of_problem in rates.values())
    gap("yeast", "GradDrop"), gap("yeast", "plain sum")
    assert len(rates["yeast"]) == 2
