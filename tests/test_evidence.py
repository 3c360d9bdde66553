"""The evidence: fair tuning, runs that go on after a stop, honest statistics, a page that says what was measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCS = ROOT / "docs"
PAGE = DOCS / "evidence.md"
PLAIN, SUMS = "plain sum", ("tuned weights", "weight decay")
pytestmark = pytest.mark.timeout(600)  # the quick form takes half a minute where nothing else runs
QUICK = {"quick_digits", "quick_helmholtz", "sinusoids"}


@pytest.fixture(scope="module")
def evidence():
    """The parts, of which some need modules that are named like the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        of_tests = {name: sys.modules.pop(name) for name in ("methods", "models") if name in sys.modules}
        import blocks_of_a_page
        import problems
        import sinusoids
        from evidence import claims, methods, page, peers, pictures, runs, study, summary, training, variants, words

        for name in ("methods", "models"):
            sys.modules.pop(name, None)
        sys.modules.update(of_tests)
        yield SimpleNamespace(
            blocks=blocks_of_a_page,
            claims=claims,
            methods=methods,
            page=page,
            peers=peers,
            pictures=pictures,
            problem=problems.problem,
            problems=problems.PROBLEMS,
            problems_and_quick={**problems.PROBLEMS, **problems.QUICK},
            runs=runs,
            sinusoids=sinusoids,
            study=study,
            summary=summary,
            training=training,
            variants=variants,
            words=words,
        )
        problems.problem.cache_clear()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick form, stopped by Ctrl-C after a few runs, and then run to its end: what was there at both times."""
    folder = tmp_path_factory.mktemp("evidence")
    command = [sys.executable, "benchmarks/evidence", "--quick", "--folder", str(folder)]
    # A shell starts what runs in its background deaf to Ctrl-C, which a process hands on.
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with (
        (folder / "said").open("w") as said,
        subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, preexec_fn=hears) as process,
    ):
        while process.poll() is None and len(finished_runs(folder)) < 4:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stopped = process.wait(60), finished_runs(folder), (folder / "said").read_text()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=560)
    assert run.returncode == 0, run.stdout + run.stderr
    return SimpleNamespace(folder=folder, stopped=stopped, results=as_read(folder / "quick"))


@pytest.fixture(scope="module")
def quick_in_steps(tmp_path_factory):
    """The quick form in equal steps, with a few methods and what stands beside them: the results by problem."""
    folder = tmp_path_factory.mktemp("in_steps")
    beside = ("ConFIG, one length", "Random GradDrop, one length", "ConFIG, at parameters", "ConFIG, whitened")
    command = [sys.executable, "benchmarks/evidence", "--quick", "--equal", "steps", "--folder", str(folder)]
    command += ["--methods", "ConFIG", "Random GradDrop", "FAMO", *beside]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=560)
    assert run.returncode == 0, run.stdout + run.stderr
    return as_read(folder / "quick/equal_steps")


def finished_runs(folder: Path) -> list[str]:
    """The whole lines of the file of finished runs, but for its first."""
    lines = [line for path in folder.glob("quick_digits*.jsonl") for line in path.read_text().splitlines(keepends=True)]
    return [line for line in lines[1:] if line.endswith("\n")]


def as_read(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


@pytest.fixture(scope="module")
def published(evidence):
    """What is published, in the page's order."""
    return evidence.page.read(RESULTS)


@pytest.fixture(scope="module")
def in_steps(evidence):
    """What is published in equal steps."""
    return evidence.page.read(RESULTS / "equal_steps")


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_stopped_study_keeps_what_is_finished_and_goes_on_from_there(quick):
    code, kept, said = quick.stopped
    assert (code, "the same command goes on" in said) == (130, True)
    lines = finished_runs(quick.folder)
    keys = [json.loads(line)["key"] for line in lines]
    assert 4 <= len(kept) < len(lines)
    assert lines[: len(kept)] == kept
    assert len(set(keys)) == len(keys)


class Pool:
    """Does each job at once, and remembers it."""

    def __init__(self, score=lambda job: float(job.seed)) -> None:
        self.jobs = []
        self.score = score

    def submit(self, run, job) -> Future:
        self.jobs.append(job)
        future: Future = Future()
        future.set_result({"score": self.score(job), "metrics": {"all": self.score(job)}})
        return future


def test_after_a_kill_only_what_is_missing_is_run(evidence, tmp_path):
    runs = evidence.runs
    jobs = [runs.Job("test", "toy", "MGDA", evidence.methods.Setting(0.1), 3, seed) for seed in range(5)]
    pools = Pool(), Pool()
    runs.Finished(tmp_path, "toy", {"steps": 3}).all_of(jobs[:3], pools[0], lambda job: None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b'{"key": "torn')  # killed while it wrote
    seen = []
    found = runs.Finished(tmp_path, "toy", {"steps": 3}).all_of(jobs, pools[1], seen.append)
    assert [pool.jobs for pool in pools] == [jobs[:3], jobs[3:]]
    assert [found[job]["score"] for job in jobs] == [0, 1, 2, 3, 4]
    assert sorted(job.seed for job in seen) == [0, 1, 2, 3, 4]


def test_other_settings_take_no_run_of_before(evidence, tmp_path):
    first = evidence.runs.Finished(tmp_path, "toy", {"steps": 3})
    assert first.once("costs", lambda: {"ms": 1}) == first.once("costs", lambda: {"ms": 2})
    assert evidence.runs.Finished(tmp_path, "toy", {"steps": 4}).once("costs", lambda: {"ms": 2})["ms"] == 2


def test_the_best_trial_is_the_one_with_the_best_score_that_has_finished(evidence):
    jobs = [evidence.runs.Job("tuning", "toy", "MGDA", evidence.methods.Setting(lr), 3, 0) for lr in (1.0, 2.0, 3.0)]
    records = dict(zip(jobs, [{"score": 0.1}, {"diverged": "a loss was not finite"}, {"score": 0.3}], strict=True))
    assert evidence.runs.best(jobs, records, True) == jobs[2]
    assert evidence.runs.best(jobs, records, False) == jobs[0]
    assert evidence.runs.best(jobs[1:2], records, True) is None


@given(steps=st.integers(1, 10_000), ratio=st.floats(0.1, 50))
def test_steps_in_equal_time_take_the_time_of_the_plain_sum(evidence, steps, ratio):
    found = evidence.runs.steps_in_time(steps, ratio)
    assert found >= 1
    assert abs(found * ratio - steps) <= max(ratio / 2, ratio - steps) + 1e-6


# -- methods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quick_digits", "quick_helmholtz"])
def test_every_method_is_tuned_with_as_many_trials(evidence, name):
    methods, problem = evidence.methods, evidence.problem(name)
    for method in methods.methods_of(problem).values():
        settings = methods.settings_of(problem, method)
        assert len(set(settings)) == methods.TRIALS
        assert settings == methods.settings_of(problem, method)
        assert {setting.lr for setting in settings} <= {method.lr_factor * lr for lr in problem.lrs}
        for setting in settings:
            assert setting.weights is None or np.mean(setting.weights) == pytest.approx(1, abs=1e-3)
            assert setting.weight_decay == 0 or methods.DECAYS[0] <= setting.weight_decay <= methods.DECAYS[1]


def test_random_graddrop_is_tried_at_doubled_learning_rates(evidence):
    methods, problem = evidence.methods, evidence.problem("quick_digits")
    known = methods.methods_of(problem)
    plain, doubled = (methods.settings_of(problem, known[name]) for name in (PLAIN, "Random GradDrop"))
    assert [setting.lr for setting in doubled] == [2 * setting.lr for setting in plain]
    assert methods.at_edge(problem, known["Random GradDrop"], 2 * max(problem.lrs))
    assert not methods.at_edge(problem, known["Random GradDrop"], doubled[2].lr)


def test_sign_agnostic_masking_keeps_the_mean(evidence):
    rows = torch.tensor([[3.0, -1.0], [0.5, 2.0]])
    masking = evidence.methods.SignAgnostic(seed=0)
    found = torch.stack([masking.transform(rows, None) for _ in range(500)])
    assert ((found == 0) | (found == 2 * rows)).all()
    torch.testing.assert_close(found.mean(0), rows, rtol=0.2, atol=0)


# -- equal steps -------------------------------------------------------------------------------------------------------


def study_in_steps(evidence, name, folder, beside=("one length", "whitened")):
    """Of all methods, each with a best learning rate of its own; trains nothing."""
    study = evidence.study.Study(name, (), 3, folder, "steps", beside)
    costs = {method: {"ms": 1.0, "ratio": 3.0} for method in (*study.methods, evidence.methods.AGAIN)}
    study.finished.once("costs", lambda: {"costs": costs, "refused": {}})
    study.trials = evidence.methods.TRIALS
    pool = Pool(lambda job: -abs(np.log(job.setting.lr) + 3 + 1.3 * (len(job.method) % 5)) - job.seed / 1e6)
    return study, study.results(pool, lambda job: None), pool.jobs


@pytest.mark.parametrize("name", ["quick_digits", "quick_helmholtz"])
def test_in_equal_steps_every_method_takes_those_of_the_problem(evidence, tmp_path, name):
    study, found, jobs = study_in_steps(evidence, name, tmp_path)
    assert (
        {job.steps for job in jobs} == {entry["steps"] for entry in found["methods"].values()} == {study.problem.steps}
    )
    assert found["methods"].keys() == study.methods.keys() > evidence.methods.methods_of(study.problem).keys()
    assert (len(jobs), found["peers"]) == (study.n_jobs(), {})


@pytest.mark.parametrize("beside", [(), ("whitened",), ("whitened", "ConFIG, one length")])
def test_what_stands_beside_the_methods_may_come_later(evidence, tmp_path, beside):
    *_, jobs = study_in_steps(evidence, "quick_digits", tmp_path, beside)
    _, found, others = study_in_steps(evidence, "quick_digits", tmp_path)
    assert {entry.get("family", "") for entry in found["methods"].values()} == {"", "one length", "whitened"}
    assert not set(jobs) & set(others)
    first = {job.method for job in jobs}
    assert all(
        (name in first) == (entry.get("family", "") in ("", *beside) or name in beside)
        for name, entry in found["methods"].items()
    )


@pytest.mark.parametrize("name", ["quick_digits", "quick_helmholtz"])
def test_at_one_length_the_setting_is_the_plain_sums(evidence, tmp_path, name):
    _, found, jobs = study_in_steps(evidence, name, tmp_path)
    methods, known = found["methods"], evidence.methods.methods_of(evidence.problem(name))
    beside = {method: entry for method, entry in methods.items() if entry.get("family") == "one length"}
    assert {job.method for job in jobs if job.kind == "tuning"} == methods.keys() - beside
    for entry in beside.values():
        assert (entry["setting"], entry["tuning"]) == (methods[PLAIN]["setting"], [])
        assert entry["at_edge"] is methods[PLAIN]["at_edge"] is True
    assert any(methods[entry["partner"]]["setting"] != entry["setting"] for entry in beside.values())
    weightings = {"DWA", "FAMO", "GeometricMean", "IMTLL", "ReLoBRaLo", "RLW", "SoftAdapt", "STCH"}
    assert {entry["partner"] for entry in beside.values()} == known.keys() - weightings - {
        *(PLAIN, "tuned weights", "weight decay", "UncertaintyWeighting")
    }


def test_at_one_length_the_gradient_is_as_long_as_the_plain_sums(evidence):
    known = evidence.variants.methods_and_variants(evidence.problem("quick_helmholtz"))

    def length(method):
        setting = evidence.methods.Setting(1e-3)
        update = evidence.training.ours(known[method], setting, 8, 3)
        training = evidence.training.Training(evidence.problem("quick_helmholtz"), update, setting, 8, 3)
        training.step()
        return torch.cat([p.grad.flatten() for p in training.model.parameters()]).norm().item()

    assert length("MGDA, one length") == pytest.approx(length(PLAIN), rel=1e-4)
    assert length("MGDA") != pytest.approx(length(PLAIN), rel=0.1)


@pytest.mark.parametrize("name", ["quick_digits", "quick_helmholtz"])
def test_what_is_whitened_has_a_partner_at_parameters_that_is_tuned_alike(evidence, tmp_path, name):
    study, found, _ = study_in_steps(evidence, name, tmp_path)
    whitened = [method for method in found["methods"] if method.endswith(", whitened")]
    assert len(whitened) == 6
    for method in whitened:
        entry, partner = found["methods"][method], found["methods"][method]["partner"]
        *before, last = study.methods[method].make(0)
        beta = torch.optim.AdamW([torch.zeros(1)]).param_groups[0]["betas"][1]
        assert repr(last) == repr(evidence.variants.Whitening(beta=beta))
        assert list(map(repr, before)) == list(map(repr, study.methods[partner].make(0)))
        assert study.methods[method].at == study.methods[partner].at == "parameters"
        tried = [[trial["lr"] for trial in found["methods"][each]["tuning"]] for each in (method, partner)]
        assert tried[0] == tried[1]
        assert entry["family"] == "whitened"


def test_studies_in_equal_time_and_in_equal_steps_share_no_runs(evidence, tmp_path):
    for i, equal in enumerate(("time", "steps", "time")):
        finished = evidence.study.Study("quick_digits", (), 3, tmp_path, equal).finished
        assert finished.once("costs", lambda i=i: {"ms": i})["ms"] == i % 2


def test_the_sinusoids_are_not_asked_for_in_equal_steps(tmp_path):
    command = [sys.executable, "benchmarks/evidence", "--equal", "steps", "--problems", "sinusoids"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, "the sinusoids have equal steps already" in run.stderr) == (2, True)


def test_the_quick_form_has_equal_steps_where_it_is_asked_to(evidence, quick_in_steps):
    assert set(quick_in_steps) == {"quick_digits", "quick_helmholtz"}
    for name, found in quick_in_steps.items():
        check_steps(evidence, name, found)
        assert {len(entry["runs"]) for entry in found["methods"].values()} == {len(found["seeds"])}
        assert found["methods"]["ConFIG, whitened"]["partner"] == (
            "ConFIG, at parameters" if found["settings"]["at"] == "activations" else "ConFIG"
        )


def check_steps(evidence, name, found):
    """The problem's steps for all, the sum's setting at one length, and a partner for each that stands beside one."""
    methods = found["methods"]
    assert found["settings"]["equal"] == "steps"
    assert {entry["steps"] for entry in methods.values()} == {evidence.problems_and_quick[name].steps}
    for method, entry in methods.items():
        if method.endswith(", one length"):
            assert (entry["setting"], entry["tuning"]) == (methods[PLAIN]["setting"], [])
        else:
            assert len(entry["tuning"]) == found["settings"]["trials"]
        if method.endswith((", one length", ", whitened")):
            assert entry["partner"] in methods
            assert method.startswith(entry["partner"].removesuffix(", at parameters"))


# -- one run -----------------------------------------------------------------------------------------------------------


def trained(evidence, name, make_update, setting, steps=8, seed=3):
    training = evidence.training.Training(evidence.problem(name), make_update, setting, steps, seed)
    return training, training.record("validation")


@pytest.mark.parametrize(
    "method", [PLAIN, "GradDrop", "PCGrad, then GradDrop", "FAMO", "STCH", "sign-agnostic masking"]
)
def test_the_same_seed_gives_the_same_run(evidence, method):
    setting = evidence.methods.Setting(1e-2)
    known = evidence.methods.methods_of(evidence.problem("quick_digits"))[method]
    update = evidence.training.ours(known, setting, 8, 3)
    records = [trained(evidence, "quick_digits", update, setting)[1] for _ in range(2)]
    assert records[0]["metrics"] == records[1]["metrics"]


def test_the_plain_sum_is_the_loop_by_hand(evidence):
    setting = evidence.methods.Setting(1e-2)
    plain = evidence.methods.methods_of(evidence.problem("quick_digits"))[PLAIN]
    updates = evidence.training.ours(plain, setting, 8, 3), evidence.peers.by_hand
    ours, theirs = (trained(evidence, "quick_digits", update, setting)[0] for update in updates)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_run_that_diverges_says_so(evidence):
    setting = evidence.methods.Setting(1e30)
    plain = evidence.methods.methods_of(evidence.problem("quick_helmholtz"))[PLAIN]
    _, record = trained(evidence, "quick_helmholtz", evidence.training.ours(plain, setting, 8, 3), setting)
    assert set(record) == {"diverged"}
    assert re.match(r"a loss was not finite in step \d", record["diverged"])


def test_the_learning_rate_falls_to_zero(evidence):
    setting = evidence.methods.Setting(1e-2)
    training, record = trained(evidence, "quick_digits", evidence.peers.by_hand, setting)
    assert training.scheduler.get_last_lr() == [0]
    assert record["score"] == pytest.approx(np.mean(list(record["metrics"].values())), abs=1e-4)


# -- statistics, by other code -----------------------------------------------------------------------------------------


def holm(ps: list[float]) -> np.ndarray:
    """The k-th smallest of n, times n - k + 1; none below the one before it, none above 1."""
    order = np.argsort(ps, kind="stable")
    found = np.empty(len(ps))
    found[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(ps), 0, -1) * np.asarray(ps)[order]))
    return found


def scores(found, method) -> np.ndarray | None:
    """By seed; `None` if a run has diverged, or the method is missing."""
    runs = found["methods"].get(method, {}).get("runs", [])
    whole = len(runs) >= 3 and all("score" in run for run in runs)
    return np.array([run["score"] for run in sorted(runs, key=lambda run: run["seed"])]) if whole else None


def words_of(pairs, sign_of):
    """Of pairs of scores: p, corrected for all of them, and a word."""
    known = {key: both for key, both in pairs.items() if all(part is not None for part in both)}
    raw = [float(np.allclose(a, b)) if np.ptp(a - b) == 0 else stats.ttest_rel(a, b).pvalue for a, b in known.values()]
    words = {}
    for (key, (a, b)), p in zip(known.items(), holm(raw), strict=True):
        better = sign_of(key) * (a - b).mean() > 0
        words[key] = p, "no difference found" if p >= 0.05 else "better" if better else "worse"
    return words


def sign_in(found) -> int:
    return 1 if found["settings"]["larger_is_better"] else -1


def verdicts(found, pairs):
    """Of pairs of a method and another of one problem."""
    known = {pair: [scores(found, method) for method in pair] for pair in pairs}
    return words_of(known, lambda pair: sign_in(found))


def of_all_problems(results, pairs):
    """Of triples of a problem, a method and another, corrected for all of them."""
    known = {(name, a, b): [scores(results[name], a), scores(results[name], b)] for name, a, b in pairs}
    return {key[:2]: word for key, (_, word) in words_of(known, lambda key: sign_in(results[key[0]])).items()}


def families(results) -> list:
    """The same results for each family of methods alone, with the sums."""
    names = sorted({entry.get("family", "") for found in results.values() for entry in found["methods"].values()})
    return [{name: of_family(found, family) for name, found in results.items()} for family in names]


def of_family(found, family):
    methods = found["methods"].items()
    kept = {name: entry for name, entry in methods if entry.get("family", "") == family or name in (PLAIN, *SUMS)}
    return found | {"methods": kept}


def against_plain(found):
    """Of each method, corrected for the methods of its family."""
    words = {}
    for family in sorted({entry.get("family", "") for entry in found["methods"].values()}):
        own = [name for name, entry in found["methods"].items() if entry.get("family", "") == family and name != PLAIN]
        words |= verdicts(found, [(name, PLAIN) for name in own])
    return {pair[0]: known for pair, known in words.items()}


def gains_of(results):
    """The claim, from the runs alone: what is better than the plain sum, and whether also than the tuned sums."""
    claimed = {}
    for problem, found in (item for alone in families(results) for item in alone.items()):
        sums = [name for name in SUMS if scores(found, name) is not None]
        sign = 1 if found["settings"]["larger_is_better"] else -1
        base = max(sums, key=lambda name: sign * scores(found, name).mean(), default=None)
        names = [name for name in found["methods"] if name not in (PLAIN, *SUMS)]
        tuned = verdicts(found, [(name, base) for name in names])
        for name, (_, word) in against_plain(found).items():
            if word == "better" and name in names:
                claimed[problem, name] = base is not None and tuned[name, base][1] == "better"
    return claimed


BESIDE = {  # a partner and a family for each method
    **{f"{name}, one length": (name, "one length") for name in ("PCGrad", "GradDrop", "MGDA")},
    "GradDrop, whitened": ("GradDrop, at parameters", "whitened"),
    "PCGrad, at parameters": (None, "whitened"),
    "PCGrad, whitened": ("PCGrad, at parameters", "whitened"),
}


def made_up(evidence, seed, *, larger_is_better=True, shift=0.0, beside=False):
    """Results of runs that nobody has made, with variants beside the methods or without."""
    random = np.random.default_rng(seed)
    variants = BESIDE if beside else {}
    names = [PLAIN, *SUMS, "GradDrop", "GradDrop, at parameters", "MGDA", "PCGrad", "PCGrad, then GradDrop", "RLW"]
    names += variants
    of_seed = random.normal(size=6)
    values = {name: of_seed + random.normal(size=6) * 0.1 + random.choice([-1, 0, 0.3, 1]) for name in names}
    values["PCGrad"] += shift
    runs = {
        name: [{"seed": i, "score": round(float(x), 5), "metrics": {"a": float(x)}} for i, x in enumerate(own)]
        for name, own in values.items()
    }
    runs["RLW"][2] = {"seed": 2, "diverged": "a loss was not finite in step 3"}
    family_of = {name: variants.get(name, (None, ""))[1] for name in runs}
    known = evidence.summary.summarize_by_family(runs, family_of, larger_is_better)
    own = {
        name: {"family": family} | ({"partner": partner} if partner else {})
        for name, (partner, family) in variants.items()
    }
    settings = {"about": "Made up.", "tasks": ["a"], "metric": "score", "larger_is_better": larger_is_better}
    rest = {"steps": 10, "ratio": 1.0, "ms": 1.0, "at_edge": False, "setting": {"lr": 0.1}}
    return {
        "date": "2026-01-01",
        "command": "none",
        "machine": {"cores": 1, "cpu": "none", "threads": 1},
        "versions": {"torchjd": "0"},
        "settings": {**settings, "at": "activations", "steps": 10, "trials": 5},
        "noise": 1.0,
        "refused": {"CAGrad": "ValueError: it | would\nnot"},
        "seeds": list(range(6)),
        "methods": {
            n: {**rest, **own.get(n, {}), "runs": known_runs, "summary": known[n]} for n, known_runs in runs.items()
        },
        "peers": {},
    }


@given(seed=st.integers(0, 10_000), larger=st.booleans(), beside=st.booleans())
def test_means_intervals_and_tests_are_those_of_scipy(evidence, seed, larger, beside):
    found = made_up(evidence, seed, larger_is_better=larger, beside=beside)
    checked = against_plain(found)
    for name, entry in found["methods"].items():
        values = np.array([run["score"] for run in entry["runs"] if "score" in run])
        row = entry["summary"]
        low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        assert row["score"]["mean"] == pytest.approx(values.mean(), abs=1e-6)
        assert row["score"]["half"] == pytest.approx((high - low) / 2, abs=1e-6)
        if name in checked:
            assert (row["p"], row["verdict"]) == (pytest.approx(checked[name][0], rel=1e-2), checked[name][1])
    assert found["methods"]["RLW"]["summary"]["verdict"] == "diverged"
    assert found["methods"]["RLW"]["summary"]["p"] is None


@given(seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=3, unique=True), beside=st.booleans())
def test_gains_are_those_that_other_code_finds(evidence, seeds, beside):
    results = {str(i): made_up(evidence, i, larger_is_better=i % 2 == 0, beside=beside) for i in seeds}
    found = evidence.claims.gains(results)
    assert {gain.pair: gain.beats for gain in found} == gains_of(results)
    assert {gain.pair for gain in found if gain.overall} == {
        pair for pair in overall_of(results) if pair[1] not in SUMS
    }


@given(seed=st.integers(0, 10_000))
def test_more_tests_never_make_a_finding(evidence, seed):
    alone = {"a": made_up(evidence, seed)}
    together = {**alone, "b": made_up(evidence, seed + 1)}
    of_a = {pair for pair in evidence.claims.better_overall(together) if pair[0] == "a"}
    assert of_a <= evidence.claims.better_overall(alone)


def test_graddrop_behind_a_method_is_compared_with_that_method(evidence):
    results = {"a": made_up(evidence, 0, shift=5.0), "b": made_up(evidence, 0, shift=-5.0)}
    words = {pair: test.verdict(True) for pair, test in evidence.claims.with_graddrop(results).items()}
    assert words == {("a", "PCGrad"): "worse", ("b", "PCGrad"): "better"}


# -- the tables of the page --------------------------------------------------------------------------------------------


def rows(text: str) -> list[list[str]]:
    """Of a table, without its head."""
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    found = re.findall(r"^\| (?!---)(.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in found[1:]]


def number_of(cell: str) -> float:
    return float(cell.split(" ± ")[0])


def check_problem(text: str, found: dict) -> None:
    """Every row of the table says what scipy makes of the runs."""
    checked, plain = against_plain(found), scores(found, PLAIN)
    table = rows(text)
    n = len(found["methods"])
    assert [row[0] for row in table] == [*found["methods"], f"{PLAIN}, again", *found["refused"]]
    assert float(table[n][2]) == pytest.approx(found["noise"], abs=0.006)
    assert all(row[-1].startswith("refused: ") for row in table[n + 1 :])
    for name, steps, ratio, _, score, difference, p, verdict in table[:n]:
        entry, values = found["methods"][name], scores(found, name)
        assert int(steps.replace(",", "")) == entry["steps"]
        assert float(ratio.replace(",", "")) == pytest.approx(entry["ratio"], rel=0.01, abs=0.006)
        if values is not None:
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            assert number_of(score) == pytest.approx(values.mean(), abs=6e-5)
            assert float(score.split(" ± ")[1]) == pytest.approx(half, abs=6e-5)
        if name in checked:
            assert number_of(difference) == pytest.approx((values - plain).mean(), abs=6e-5)
            assert verdict == checked[name][1]
            assert (p == "< 0.001") == (checked[name][0] < 0.001)
            assert p == "< 0.001" or float(p) == pytest.approx(checked[name][0], rel=0.06)
        elif name != PLAIN:
            assert "diverged" in verdict


def overall_of(results: dict) -> set:
    """What is better than the plain sum, corrected for the tests of all problems at once, family by family."""
    better = set()
    for alone in families(results):
        pairs = [(problem, name, PLAIN) for problem in alone for name in alone[problem]["methods"] if name != PLAIN]
        better |= {pair for pair, word in of_all_problems(alone, pairs).items() if word == "better"}
    return better


def behind_of(results: dict) -> dict:
    """What GradDrop behind another method does to that method, by problem and method."""
    pairs = [(p, f"{m}, then GradDrop", m) for m in ("GradNorm", "PCGrad", "MGDA") for p in results]
    words = of_all_problems(results, pairs)
    return {(problem, name.split(", ")[0]): word for (problem, name), word in words.items()}


def beside_of(results: dict, family: str) -> dict:
    """The mean difference of each method of a family to its partner, and a word; by problem and method."""
    pairs = [
        (problem, name, entry["partner"])
        for problem, found in results.items()
        for name, entry in found["methods"].items()
        if entry.get("family") == family and entry.get("partner") in found["methods"]
    ]
    words = of_all_problems(results, pairs)
    known = {(p, m): [scores(results[p], name) for name in (m, partner)] for p, m, partner in pairs}
    return {key: ((known[key][0] - known[key][1]).mean(), word) for key, word in words.items()}


def check_beside(text: str, results: dict, family: str) -> None:
    """A table of methods beside their partners says what other code finds."""
    known, expected = {}, beside_of(results, family)
    problems = [name for name in results if any(problem == name for problem, _ in expected)]
    for name, *cells in rows(text):
        method = re.sub(r"^\[(\w+)\].*", r"\1", name)
        known |= {(problem, f"{method}, {family}"): cell for problem, cell in zip(problems, cells, strict=True) if cell}
    assert known.keys() == expected.keys()
    for key, cell in known.items():
        difference, word = cell.split(" ")
        assert float(difference) == pytest.approx(expected[key][0], abs=6e-5)
        assert word == {"no difference found": "·"}.get(expected[key][1], expected[key][1])


def check_steps_tables(evidence, tables: dict, results: dict) -> None:
    own = {name.removeprefix("steps: "): text for name, text in tables.items() if name.startswith("steps: ")}
    check_tables(evidence, own, results)
    families = {entry.get("family", "") for found in results.values() for entry in found["methods"].values()} - {""}
    assert families == own.keys() & {"one length", "whitened"}
    for family in families:
        check_beside(own[family], results, family)


def check_tables(evidence, tables: dict, results: dict) -> None:
    """The tables on each problem, and those on all of them, say what other code makes of the runs."""
    titles, short = evidence.words.TITLES, {"no difference found": "·"}
    for name, found in results.items():
        check_problem(tables[name], found)
    claimed, overall = gains_of(results), overall_of(results)
    gained = {(row[0], row[1]): row for row in rows(tables["better"])}
    assert set(gained) == {(titles[problem], method) for problem, method in claimed}
    for (problem, method), beats in claimed.items():
        row = gained[titles[problem], method]
        assert (row[-1] == "better") == beats
        assert (row[4] == "better") == ((problem, method) in overall)
    grid = {re.sub(r"^\[(\w+)\].*", r"\1", row[0]): row[1:] for row in rows(tables["all"])}
    for place, found in enumerate(of_family(found, "") for found in results.values()):
        words = {name: word for name, (_, word) in against_plain(found).items()}
        words |= {name: "diverged" for name in found["methods"] if name not in words}
        assert all(grid[name][place] == short.get(word, word) for name, word in words.items() if name != PLAIN)
        assert all(not row[place] for name, row in grid.items() if name not in words)
    behind = {row[0]: row[1:] for row in rows(tables["behind"])}
    known = behind_of(results)
    for method, row in behind.items():
        words = [known.get((problem, method), "") for problem in results]
        assert row == [short.get(word, word) for word in words]


def without_sinusoids(results: dict) -> dict:
    return {name: found for name, found in results.items() if name != "sinusoids"}


def test_tables_and_pictures_of_the_quick_form_say_what_was_measured(evidence, quick, tmp_path):
    assert set(quick.results) == QUICK
    results = evidence.page.read(quick.folder / "quick")
    check_tables(evidence, evidence.page.tables(results), without_sinusoids(results))
    evidence.page.draw(results, tmp_path / "pictures")
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == QUICK
    for name, found in without_sinusoids(results).items():
        check_picture(evidence, tmp_path / f"pictures/{name}.svg", found)


def test_results_of_the_quick_form_are_not_published(evidence, quick, tmp_path):
    copy = Path(shutil.copy(PAGE, tmp_path))
    with pytest.raises(ValueError, match="The page has no place for: quick_digits, quick_helmholtz"):
        evidence.page.publish(evidence.page.read(quick.folder / "quick"), tmp_path)
    assert copy.read_bytes() == PAGE.read_bytes()
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize("seed", range(6))
def test_the_tables_of_made_up_results_say_what_other_code_finds(evidence, seed):
    names = ("helmholtz", "yeast", "census")
    results = {name: made_up(evidence, 10 * seed + i, larger_is_better=i > 0) for i, name in enumerate(names)}
    tables = evidence.page.tables(results)
    check_tables(evidence, tables, results)
    assert rows(tables["yeast"])[-1] == ["CAGrad", *[""] * 6, r"refused: ValueError: it \| would not"]


@pytest.mark.parametrize("seed", range(6))
def test_the_tables_in_equal_steps_of_made_up_results_say_what_other_code_finds(evidence, seed):
    results = {
        n: made_up(evidence, 10 * seed + i, larger_is_better=i > 0, beside=True)
        for i, n in enumerate(("yeast", "census"))
    }
    tables = evidence.page.tables({"helmholtz": made_up(evidence, seed)}, results)
    check_steps_tables(evidence, tables, results)
    assert [row[0] for row in rows(tables["runs"])] == [
        "Helmholtz",
        "Yeast (equal steps)",
        "Census-Income (equal steps)",
    ]


def test_the_committed_tables_are_what_the_committed_results_give(evidence, published, in_steps):
    page = PAGE.read_text(encoding="utf-8")
    assert evidence.blocks.blocks_of(page) == evidence.page.tables(published, in_steps)
    assert evidence.blocks.filled(page, evidence.page.tables(published, in_steps)) == page


def test_the_committed_tables_say_what_other_code_finds(evidence, published, in_steps):
    tables = evidence.blocks.blocks_of(PAGE.read_text(encoding="utf-8"))
    check_tables(evidence, tables, without_sinusoids(published))
    check_steps_tables(evidence, tables, in_steps)


def test_the_committed_results_in_equal_steps_are_so(evidence, in_steps):
    for name, found in in_steps.items():
        check_steps(evidence, name, found)


def test_the_committed_results_are_of_the_problems_as_they_are(evidence, published, in_steps):
    for name, found in (*published.items(), *in_steps.items()):
        settings = found["settings"]
        if name == "sinusoids":
            toy = evidence.sinusoids
            assert (settings["starts"], settings["steps"], settings["near"]) == (toy.STARTS, toy.STEPS, toy.NEAR)
            continue
        problem = evidence.problems[name]
        assert [settings[key] for key in ("about", "metric", "at")] == [problem.about, problem.metric, problem.at]
        assert (settings["steps"], settings["lrs"]) == (problem.steps, list(problem.lrs))
        assert (settings["tasks"], settings["trials"]) == (list(problem.tasks), evidence.methods.TRIALS)
        assert len(found["seeds"]) >= problem.seeds


def test_another_date_gives_another_table(evidence, published):
    changed = json.loads(json.dumps(published))
    next(iter(changed.values()))["date"] = "2001-01-01T00:00:00"
    before, after = evidence.page.tables(published), evidence.page.tables(changed)
    assert {name for name in before if before[name] != after[name]} == {"runs"}


def test_without_results_nothing_is_published(evidence, tmp_path):
    with pytest.raises(ValueError, match="`results` has no problem"):
        evidence.page.publish(evidence.page.read(tmp_path), tmp_path)
    assert not list(tmp_path.iterdir())


def test_data_that_is_missing_is_named_before_anything_is_run(tmp_path):
    command = [sys.executable, "benchmarks/evidence", "--problems", "yeast", "--folder", str(tmp_path / "runs")]
    environment = {**os.environ, "MTOPT_BENCHMARKS_DATA": str(tmp_path)}
    run = subprocess.run(
        [*command, "--results", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "yeast: `yeast` is not at" in run.stderr
    assert "Fetch it first: python benchmarks/data.py" in run.stderr
    assert not list(tmp_path.iterdir())


# -- sinusoids and peers -----------------------------------------------------------------------------------------------


def test_the_shares_are_on_the_page_with_wilsons_intervals(evidence, published):
    found = published["sinusoids"]
    text = evidence.blocks.blocks_of(PAGE.read_text(encoding="utf-8"))["sinusoids"]
    table = {row[0]: row[1:] for row in rows(text)}
    for place, rates in enumerate(found["rates"].values()):
        for name, rate in rates.items():
            n = found["settings"]["starts"]
            interval = stats.binomtest(rate["reached"], n).proportion_ci(method="wilson")
            share, low, high = (float(x) for x in re.findall(r"([\d.]+) %", table[name][place]))
            expected = [100 * rate["reached"] / n, 100 * interval.low, 100 * interval.high]
            assert [share, low, high] == pytest.approx(expected, abs=0.06)
        ratio = rates["GradDrop"]["reached"] / rates[PLAIN]["reached"]
        assert float(table["GradDrop / plain sum"][place]) == pytest.approx(ratio, abs=0.02)


def test_with_equal_steps_a_peer_without_draws_gives_our_score(quick, published):
    for found in (*quick.results.values(), *published.values()):
        for method, sides in found.get("peers", {}).items():
            if method in (PLAIN, "CAGrad", "MGDA", "UPGrad"):
                ours, theirs = ([run["score"] for run in sides[side]["runs"]] for side in ("mtopt", "peer"))
                assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.01), (found["name"], method)


# -- the prose, which is written by hand -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prose(evidence):
    """Without the ends of lines."""
    return " ".join(evidence.blocks.BLOCK.sub("", PAGE.read_text(encoding="utf-8")).split())


def numbers(pattern: str, text: str) -> list[float]:
    """What stands in the text in place of each {}."""
    (found,) = re.findall(pattern.replace("{}", r"([\d.,]*\d)"), text)
    return [float(number.replace(",", "")) for number in ([found] if isinstance(found, str) else found)]


def listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def counts(words: list[str]) -> list[int]:
    return [words.count(word) for word in ("better", "worse", "no difference found")]


def test_the_answer_has_the_counts_of_the_results(evidence, published, prose):
    results, titles = without_sinusoids(published), evidence.words.TITLES
    claimed = gains_of(results)
    by_problem = {name: [method for problem, method in claimed if problem == name] for name, _ in claimed}
    where = [f"{listed(methods)} on {titles[name]}" for name, methods in by_problem.items()]
    assert f"corrected for the methods tried on a problem): {', and '.join(where)}." in prose
    assert numbers("On {} of {} problems some method was then better", prose) == [len(by_problem), len(results)]

    words = {(p, m): word for p, found in results.items() for m, (_, word) in against_plain(found).items()}
    tested = [word for (_, method), word in words.items() if method not in SUMS]
    said = "there were {} pairs of .* better in {}, worse in {}, and no difference was found in {}. GradDrop itself"
    assert numbers(said, prose) == [len(tested), *counts(tested)]
    forms = {pair: word for pair, word in words.items() if pair[1].split(",")[0] == "GradDrop"}
    better, *others = counts(list(forms.values()))
    assert (better, "GradDrop itself was better nowhere" in prose) == (0, True)
    said = "In {} pairs of one of its forms and a problem, it was worse in {}, and no difference was found in {}"
    assert numbers(said, prose) == [len(forms), *others]
    all_three = {("yeast", form) for form in ("GradDrop", "GradDrop, marginalized", "GradDrop, at parameters")}
    two = {("multi_fashion_mnist", form) for form in ("GradDrop, marginalized", "GradDrop, at parameters")}
    assert {pair for pair, word in forms.items() if word == "worse"} == all_three | two
    assert "worse in all three forms on Yeast, and marginalized and at parameters on Multi-Fashion-MNIST." in prose


def test_what_the_answer_says_of_tuned_sums_is_so(published, prose):
    results = without_sinusoids(published)
    claimed, overall = gains_of(results), overall_of(results)
    beating = {pair for pair, beats in claimed.items() if beats}
    said = "So the {} gains were .* {} of the {} also beat that one, all of them on Helmholtz. The same {} hold if p"
    assert numbers(said, prose) == [len(claimed), len(beating), len(claimed), len(beating)]
    assert beating == {pair for pair in claimed if pair in overall}
    assert {problem for problem, _ in beating} == {"helmholtz"}
    assert ("ReLoBRaLo's gain on Yeast passes neither" in prose) == (set(claimed) - beating == {("yeast", "ReLoBRaLo")})
    edges = [name for name, found in results.items() if found["methods"][PLAIN]["at_edge"]]
    assert edges == ["helmholtz"]
    assert "On Helmholtz the plain sum's best learning rate was at the edge of those tried" in prose
    assert "The plain sum's is at the edge on 1 of 7 problems, Helmholtz." in prose


def test_what_is_said_of_graddrop_behind_others_is_so(published, prose):
    better, worse, none = counts(list(behind_of(without_sinusoids(published)).values()))
    said = "it was better in {} of {} pairs, worse in {}, and no difference was found in {}:"
    assert numbers(said, prose) == [better, better + worse + none, worse, none]


def words_alone(results, problems):
    """What is found of each method on these problems, without the tuned sums and what stands beside the methods."""
    alone = {name: of_family(results[name], "") for name in problems}
    words = {(p, m): word for p, found in alone.items() for m, (_, word) in against_plain(found).items()}
    return {pair: word for pair, word in words.items() if pair[1] not in SUMS}


def test_the_text_on_equal_steps_has_the_counts_of_the_results(evidence, published, in_steps, prose):
    words, in_time = words_alone(in_steps, in_steps), words_alone(published, in_steps)
    better, worse, none = counts(list(words.values()))
    said = "a method was better in {} of {} pairs, worse in {}, and no difference was found in {}\\. The same"
    assert numbers(said, prose) == [better, len(words), worse, none]
    said = "The same {} pairs in equal time had {} better, {} worse and {} without a difference"
    assert numbers(said, prose) == [len(in_time), *counts(list(in_time.values()))]
    assert numbers(
        "of {} pairs on the five problems that are not of physics, {} were worse and {} was better", prose
    ) == [*(len(words), worse, better)]
    assert {word for (_, method), word in words.items() if method.split(",")[0] == "GradDrop"} <= {
        "worse",
        "no difference found",
    }
    assert list(in_steps) == [name for name in evidence.problems if name not in ("helmholtz", "burgers")]
    steps = {
        entry["steps"]: evidence.words.TITLES[name]
        for name, found in in_steps.items()
        for entry in found["methods"].values()
    }
    assert f"from {min(steps)} on {steps[min(steps)]} to {max(steps)} on {steps[max(steps)]}" in prose


def test_what_is_said_of_the_gains_in_equal_steps_is_so(evidence, in_steps, prose):
    all_gains, overall = gains_of(in_steps), overall_of(in_steps)
    beside = [pair for pair in all_gains if pair not in words_alone(in_steps, in_steps)]
    claimed = all_gains.keys() - beside
    assert (claimed, set(all_gains.values())) == ({("transfer", "MGDA, then GradDrop")}, {False})
    assert (claimed & overall, overall & set(beside)) == (claimed, set())
    families = [in_steps[problem]["methods"][method]["family"] for problem, method in beside]
    assert (families, "The last two are of what stands beside the methods" in prose) == (
        ["one length", "whitened"],
        True,
    )
    tests = [
        sum(entry.get("family") == family for entry in in_steps[problem]["methods"].values())
        for family, (problem, _) in zip(families, beside, strict=True)
    ]
    assert numbers("each is one of {} or {} tests alone", prose) == tests
    said = "The {} gain, MGDA with GradDrop behind it on Transfer, holds if p is corrected for all problems"
    assert numbers(f"{said}, but does not beat the better of the two tuned sums", prose) == [len(claimed)]
    better, worse, none = counts(list(behind_of(in_steps).values()))
    said = "GradDrop behind another method, against that method alone: better in {} of {} pairs and worse in {}"
    assert numbers(said, prose) == [better, better + worse + none, worse]


def both_sides(sides):
    """Ours and the peer's, as they were when these trained, and now."""
    pair = [sides["mtopt"], sides["peer"]]
    return pair, [side["now"] for side in pair]


def test_what_is_said_of_the_costs_of_both_versions_is_so(published, in_steps, prose):
    pairs = words_alone(in_steps, in_steps)
    then, now = ([r[problem]["methods"][method]["ratio"] for problem, method in pairs] for r in (published, in_steps))
    said = r"was {} with 0\.1\.0 \(wall-clock time\), and is {} with 0\.2\.0 \(time of the processor\)"
    assert numbers(said, prose) == pytest.approx([np.median(then), np.median(now)], abs=0.006)
    assert np.median(then) < np.median(now)
    versions = [{found["versions"]["mtopt"] for found in results.values()} for results in (published, in_steps)]
    assert versions == [{"0.1.0"}, {"0.2.0"}]
    assert all(published[name]["machine"]["cpu"] != found["machine"]["cpu"] for name, found in in_steps.items())
    plain = [found["peers"][PLAIN] for found in published.values() if PLAIN in found.get("peers", {})]
    old, new = ([a["ratio"] / b["ratio"] for a, b in sides] for sides in zip(*map(both_sides, plain), strict=True))
    said = "it takes {} to {} times as long as a loop written by hand, and took {} to {} times\\."
    assert numbers(said, prose) == pytest.approx([min(new), max(new), min(old), max(old)], abs=0.006)


def test_what_is_said_of_the_numbers_in_equal_steps_is_so(evidence, in_steps, prose):
    noise = max(abs(found["noise"] - 1) for found in in_steps.values())
    assert numbers("`plain sum, again` differs from 1 by up to {} %", prose) == [round(100 * noise)]
    census = of_family(in_steps["census"], "")
    means = {name: scores(census, name).mean() for name in census["methods"]}
    furthest = max(abs(mean - means[PLAIN]) for mean in means.values())
    assert numbers("On Census-Income no method's mean is further than {} from", prose) == [round(furthest, 4)]


def test_what_is_said_of_learning_rates_and_intervals_beside_the_methods_is_so(in_steps, prose):
    lrs = [
        (entry["setting"]["lr"], found["methods"][entry["partner"]]["setting"]["lr"])
        for found in in_steps.values()
        for entry in found["methods"].values()
        if entry.get("family") == "one length"
    ]
    said = "in {} of the {} pairs the tuning chose the plain sum's learning rate anyway"
    assert numbers(said, prose) == [sum(a == b for a, b in lrs), len(lrs)]
    methods = in_steps["transfer"]["methods"]
    differences = [
        scores(in_steps["transfer"], name) - scores(in_steps["transfer"], entry["partner"])
        for name, entry in methods.items()
        if entry.get("family") == "whitened" and "partner" in entry
    ]
    half = max(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) for values in differences)
    assert numbers("On Transfer, over {} seeds, their 95 % intervals are up to ± {} wide", prose) == [
        *(len(differences[0]), round(half, 3))
    ]


DIFFER = {
    "one length": {
        ("yeast", "Random GradDrop, one length", "better"),
        *((problem, "MGDA, one length", "worse") for problem in ("yeast", "transfer")),
        ("yeast", "MGDA, then GradDrop, one length", "worse"),
    },
    "whitened": {("yeast", f"{method}, whitened", "better") for method in ("PCGrad", "UPGrad")},
}  # as the page tells it


@pytest.mark.parametrize(("family", "said"), [("one length", "At one length"), ("whitened", "Whitened")])
def test_the_text_on_what_stands_beside_the_methods_has_its_counts(evidence, in_steps, family, said):
    page = PAGE.read_text(encoding="utf-8")
    text = " ".join(page.split(f"\n### {said}\n", 1)[1].split("<!-- table", 1)[0].split())
    known = beside_of(in_steps, family)
    words = counts([word for _, word in known.values()])
    said = "it was better in {} of {} pairs, worse in {}, and no difference was found in {}\\."
    assert numbers(said, text) == [words[0], len(known), *words[1:]]
    differ = {(*pair, word) for pair, (_, word) in known.items() if word in ("better", "worse")}
    assert differ == DIFFER[family]
    rates = {method: entry["setting"]["lr"] for method, entry in in_steps["yeast"]["methods"].items()}
    assert rates["Random GradDrop"] < rates["Random GradDrop, one length"]
    gains = [known[pair][0] for pair in known if (*pair, "better") in differ and family == "whitened"]
    assert all(difference < 0.002 for difference in gains)
    assert {(*pair, "better") for pair in gains_of(in_steps)}.isdisjoint(differ)
    ran = list(dict.fromkeys(evidence.words.TITLES[problem] for problem, _ in known))
    assert f"on {listed(ran)}" in text


def test_the_text_on_each_problem_has_its_settings_and_what_its_picture_shows(evidence, published):
    page = PAGE.read_text(encoding="utf-8")
    for name, found in without_sinusoids(published).items():
        section = page.split(f"\n## {evidence.words.TITLES[name]}\n", 1)[1].split("\n## ", 1)[0]
        text, settings = " ".join(section.split()), found["settings"]
        words = counts([word for _, word in against_plain(found).values()])
        assert numbers("The {} losses", text) == [len(settings["tasks"])]
        assert f" meet at {settings['at']}." in text
        said = re.search(r"The score is the (.+) over (\d+) seeds: (\w+) is better\.", text)
        better = "larger" if settings["larger_is_better"] else "smaller"
        assert said.groups() == (settings["metric"], str(len(found["seeds"])), better)
        said = r"!\[The differences of (\d+) methods .* (\w+) (?:is|are) better.* (\w+) (?:is|are) worse.* for (\d+)\."
        seen = [{"None": 0, "none": 0}.get(word, word) for word in re.search(said, text).groups()]
        assert [int(word) for word in seen] == [sum(words), *words]
        (worst, low, *_), *_, (best, high, *_) = evidence.pictures.differences(found)
        assert f"The worst is {worst} ({low:+.4f}), the best {best} ({high:+.4f}).](evidence/{name}.svg)" in text


def test_the_text_on_sinusoids_has_the_shares(evidence, published, prose):
    found = published["sinusoids"]
    times = [rates["GradDrop"]["reached"] / rates[PLAIN]["reached"] for rates in found["rates"].values()]
    said = r"{} times as often as the plain sum \(golden ratio\), {} times \(1/4 to 4\) and {} times \(1 to 3\)"
    assert numbers(said, prose) == pytest.approx(times, abs=0.05)
    for family, rates in found["rates"].items():
        shares = (f"{name} {rate['reached'] / found['settings']['starts']:.1%}" for name, rate in rates.items())
        assert f"Frequencies {family}: {', '.join(shares).replace('%', ' %')}." in prose
        assert rates["Random GradDrop"]["reached"] > rates["GradDrop"]["reached"]
    settings = found["settings"]
    said = "takes {} steps from each of {} starts, which are drawn within {} of .* how many end within {} of it"
    assert numbers(said, prose) == [settings[key] for key in ("steps", "starts", "range", "near")]


def cells_named(text: str, methods: list[str], titles: list[str]) -> set[tuple[str, str]]:
    """As "with A and B on X; and with C on all three problems" names them."""
    found = set()
    for clause in text.split(";"):
        what, where = clause.split(" on ")
        named = [title for title in titles if title in where or "all three problems" in where]
        found |= {(title, method) for title in named for method in methods if method in what}
    return found


def test_the_text_on_peers_names_every_cell_where_one_is_ahead(evidence, published, prose):
    titles = evidence.words.TITLES
    cells = {(name, m): sides for name, found in published.items() for m, sides in found.get("peers", {}).items()}
    pairs = [list(dict.fromkeys(part)) for part in zip(*cells, strict=True)]
    names = {"methods": pairs[1], "titles": [titles[name] for name in pairs[0]]}

    def by_seed(side):
        return np.array([run["score"] for run in sorted(side["runs"], key=lambda run: run["seed"])])

    def compared(side):
        both = {key: [by_seed(sides["mtopt"]), by_seed(sides[side])] for key, sides in cells.items()}
        return {key: word for key, (_, word) in words_of(both, lambda key: sign_in(published[key[0]])).items()}

    in_time, at_once = compared("peer, equal time"), compared("peer")
    now = {key: [sides[side].get("now", sides[side]) for side in ("mtopt", "peer")] for key, sides in cells.items()}
    ahead = {
        "The peer's step was faster in": {k for k, (ours, theirs) in now.items() if ours["ratio"] > theirs["ratio"]},
        "The peer's peak was lower in": {k for k, (ours, theirs) in now.items() if ours["peak"] > theirs["peak"]},
    }
    for start, keys in ahead.items():
        ((n, total, where),) = re.findall(rf"{start} (\d+) of (\d+) cells: (.*?)\.", prose)
        assert (int(n), int(total)) == (len(keys), len(cells))
        assert cells_named(where, **names) == {(titles[name], method) for name, method in keys}
    for who, word in (("mtopt", "better"), ("The peer", "worse")):
        (where,) = re.findall(rf"\. {who} was better (with .*?)\.", prose)
        keys = {(titles[name], method) for (name, method), found in in_time.items() if found == word}
        assert cells_named(where, **names) == keys
    differing = [key for key, word in at_once.items() if word != "no difference found"]
    said = "With equal steps the scores .* in {} of {} cells. With equal time mtopt was better in {} of {} cells"
    better, worse, none = counts(list(in_time.values()))
    assert numbers(f"{said}, worse in {{}}, and no difference was found in {{}}", prose) == [
        *(len(differing), len(cells)),
        *(better, len(cells), worse, none),
    ]


def test_the_text_on_how_it_was_made_has_the_settings(evidence, published, prose):
    results, methods = without_sinusoids(published), evidence.methods
    trials = {found["settings"]["trials"] for found in results.values()}
    assert trials == set(numbers("Each method had {} trials", prose))
    said = "draws weights between 1/{} and {}, and with `weight decay` it draws AdamW's between {} and {}\\."
    assert numbers(said, prose) == [methods.WEIGHTS, methods.WEIGHTS, *methods.DECAYS]
    plain = [found["peers"][PLAIN] for found in results.values() if PLAIN in found["peers"]]
    by_hand = [sides["mtopt"]["ratio"] / sides["peer"]["ratio"] for sides in plain]
    said = r"Its step took {} times \(Multi-Fashion\), {} times \(Yeast\) and {} times \(Census-Income\) as long"
    assert numbers(said, prose) == pytest.approx(by_hand, abs=0.006)


# -- pictures ----------------------------------------------------------------------------------------------------------


def check_picture(evidence, path: Path, found: dict) -> None:
    """The marks are where the numbers are, on one scale, from the worst to the best."""
    sign = 1 if found["settings"]["larger_is_better"] else -1
    plain = scores(found, PLAIN)
    low, high = evidence.pictures.shown(evidence.pictures.differences(found))
    known = {name: (own - plain).mean() for name in found["methods"] if (own := scores(found, name)) is not None}
    inside = [name for name, mean in known.items() if name != PLAIN and low <= mean <= high]
    marks = marks_of(path)
    assert {f"mean {name}" for name in inside} <= set(marks)
    x, y = np.array([marks[f"mean {name}"] for name in inside]).T
    means = np.array([known[name] for name in inside])
    scale, start = np.polyfit(means, x, 1)
    assert sign * scale > 0  # to the right is better
    assert x == pytest.approx(scale * means + start, abs=0.1)
    assert (np.diff(sign * means[np.argsort(-y)]) >= -1e-6).all()


def marks_of(path: Path) -> dict[str, tuple[float, float]]:
    """The places of the markers in a picture."""
    svg = "{http://www.w3.org/2000/svg}"
    groups = (group for group in ElementTree.parse(path).iter(f"{svg}g") if group.get("id", "").startswith("mean "))
    uses = {group.get("id"): next(group.iter(f"{svg}use"), None) for group in groups}
    return {name: (float(use.get("x")), float(use.get("y"))) for name, use in uses.items() if use is not None}


def test_the_committed_pictures_go_through_the_numbers(evidence, published):
    drawn = {path.stem for path in (DOCS / "evidence").glob("*.svg")}
    assert drawn == set(published)
    for name, found in published.items():
        if name != "sinusoids":
            check_picture(evidence, DOCS / f"evidence/{name}.svg", found)


def test_one_method_far_off_does_not_hide_the_others(evidence):
    intervals = [(str(i), 0.01 * i, 0.01, "worse") for i in range(8)]
    low, high = evidence.pictures.shown(intervals)
    assert low < 0 < 0.08 < high < 0.1
    assert evidence.pictures.shown([*intervals, ("far", -9.0, 1.0, "worse")])[0] > -1
