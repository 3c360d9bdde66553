"""The costs of a step: that the quick form measures everything, and that the published page says what was measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/cost.json"
PAGE = ROOT / "docs/costs.md"
PLAIN, TRUNK, PARAMETERS, MTL = "plain sum", "trunk's backward alone", 'at="parameters"', "TorchJD mtl_backward"
PARTS = ("time", "memory", "combination", "methods", "transforms", "traffic")
pytestmark = pytest.mark.timeout(900)  # the quick form takes less than a minute where nothing else runs


@pytest.fixture(scope="module")
def cost():
    """The parts of the benchmark that measure nothing; those that do would import modules named like the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import cost_page
        import cost_peers

        yield SimpleNamespace(page=cost_page, peers=cost_peers)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What the quick form measured, as JSON, and the page of it."""
    folder = tmp_path_factory.mktemp("cost")
    output = ["--output", str(folder / "quick.json")]
    patient = {
        **os.environ,
        "OMP_WAIT_POLICY": "passive",
    }  # where other programs run, threads must not wait by spinning
    for form in (["--quick"], ["--publish", "--docs", str(folder)]):
        command = [sys.executable, "benchmarks/cost.py", *form, *output]
        run = subprocess.run(command, cwd=ROOT, env=patient, capture_output=True, text=True, check=False, timeout=850)
        assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((folder / "quick.json").read_text(encoding="utf-8"))
    return SimpleNamespace(results=results, page=(folder / "costs.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["quick", "published"])
def either(request):
    """Results, and the page of them."""
    if request.param == "quick":
        return request.getfixturevalue("quick")
    return SimpleNamespace(results=request.getfixturevalue("published"), page=PAGE.read_text(encoding="utf-8"))


# -- what is measured --------------------------------------------------------------------------------------------------


def test_the_quick_form_measures_every_part(quick):
    assert quick.results["complete"]
    assert {"date", "command", "settings", "machine", "versions"} <= set(quick.results)
    assert all(quick.results[part] for part in PARTS)
    assert {(e["model"], e["losses"]) for e in quick.results["time"]} == {("mlp", 2), ("mlp", 8), ("toy", 2)}
    assert "quick.json" not in json.dumps(quick.results["settings"])  # nor any path of this machine


def test_quartiles_and_ratios_are_those_of_the_samples(either):
    for part in ("time", "methods"):
        for (model, losses), cells in by_cell(either.results[part]).items():
            for name, entry in cells.items():
                assert entry["ms"] == pytest.approx(np.quantile(entry["samples_ms"], [0.25, 0.5, 0.75]), abs=1e-3)
                ratio = np.median(ratios(entry, cells[PLAIN]))
                assert entry["ratio"][1] == pytest.approx(ratio, rel=2e-3), (model, losses, name)


def test_memory_above_the_plain_sum_is_what_is_above_it(either):
    for cells in by_cell(either.results["memory"]).values():
        for entry in cells.values():
            assert entry["above_plain"] == entry["tensors"] - cells[PLAIN]["tensors"]


def test_a_promise_is_kept_up_to_its_limit(either):
    assert either.results["checks"]
    for check in either.results["checks"]:
        assert check["passed"] == (check["measured"] <= check["limit"])


def by_cell(entries):
    found = {}
    for entry in entries:
        found.setdefault((entry["model"], entry["losses"]), {})[entry["method"]] = entry
    return found


def ratios(entry, other):
    """Of a step over another's in the same round."""
    steps = dict(zip(other["rounds"], other["samples_ms"], strict=True))
    pairs = zip(entry["rounds"], entry["samples_ms"], strict=True)
    return [ms / steps[i] for i, ms in pairs if i in steps]


# -- what is published -------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_results_give(cost, published):
    assert PAGE.read_text(encoding="utf-8") == cost.page.page(published)


def test_another_number_gives_another_page(cost, quick):
    changed = json.loads(json.dumps(quick.results))
    changed["time"][2]["ratio"][1] += 1
    assert cost.page.page(quick.results) == quick.page != cost.page.page(changed)


@pytest.mark.parametrize("part", PARTS)
def test_results_that_lack_a_part_are_not_published(cost, quick, tmp_path, part):
    with pytest.raises(ValueError, match=f"`results` lack {part}. Measure all parts"):
        cost.page.publish({**quick.results, part: []}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_of_a_run_that_was_stopped_are_not_published(cost, quick, tmp_path):
    with pytest.raises(ValueError, match="are of a run that was stopped"):
        cost.page.publish({**quick.results, "complete": False}, tmp_path)


def test_the_tables_have_the_medians(cost, either):
    for (model, losses), cells in by_cell(either.results["time"]).items():
        head, *table = table_of(either.page, cost.page.MODELS[model][0])
        columns = [head.index(f"T = {losses}{base}") for base in ("", ", / TorchJD's best")]
        peer = min((e for name, e in cells.items() if name.startswith("TorchJD")), key=lambda e: e["ms"][1])
        assert [row[0] for row in table] == [name for name in cells if name != TRUNK]
        for row in table:
            entry = cells[row[0]]
            to_plain = entry["ms"][1] if row[0] == PLAIN else entry["ratio"][1]
            expected = [to_plain, np.median(ratios(entry, peer))]
            assert [number(row[column]) for column in columns] == pytest.approx(expected, rel=0.01, abs=0.006)


def test_no_cell_in_which_a_peer_is_ahead_goes_unmentioned(cost, either):
    title = {model: names[0] for model, names in cost.page.MODELS.items()}
    ahead = set()
    for (model, losses), cells in by_cell(either.results["time"]).items():
        peer = min((e for name, e in cells.items() if name.startswith("TorchJD")), key=lambda e: e["ms"][1])
        for name, entry in cells.items():
            mine = not name.startswith(("TorchJD", "plain", "trunk"))
            if mine and np.median(ratios(entry, peer)) > 1:
                ahead.add(f"step: {title[model]}, T = {losses}, {name}")
    for (model, losses), cells in by_cell(either.results["methods"]).items():
        for name, entry in cells.items():
            peer = cells.get(f"{name.split(' ')[0]} {MTL}")
            if name.endswith(f" {PARAMETERS}") and peer and np.median(ratios(entry, peer)) > 1:
                ahead.add(f"step: {title[model]}, T = {losses}, {name}")
    named = {row[0] for row in table_of(either.page, "Where TorchJD is ahead")[1:]}
    assert ahead == {name for name in named if name.startswith("step: ")}
    assert ("TorchJD was ahead in none." in either.page) == (not named)


def test_leaner_peers_are_named_too(cost, quick):
    results = json.loads(json.dumps(quick.results))
    for entry in results["memory"]:
        if entry["method"].startswith("TorchJD"):
            entry["tensors"] = 1
    named = {row[0] for row in table_of(cost.page.page(results), "Where TorchJD is ahead")[1:]}
    of_mlp = {f"peak memory: MLP, T = {n}, {PARAMETERS}{way}" for n in (2, 8) for way in ("", ", vmap of 4", ", loop")}
    assert of_mlp <= named


def test_every_promise_that_was_missed_is_listed(either):
    checks = either.results["checks"]
    missed = [(c["promise"], c["where"], f"{c['measured']:.3f}") for c in checks if c["measured"] > c["limit"]]
    text = either.page.split("\n## Promises\n")[1].split("\nAll, with")[0]
    listed = [tuple(row[:3]) for row in rows(text)[1:]] if missed else []
    assert listed == missed
    assert f"{len(checks) - len(missed)} of {len(checks)} were kept" in text


def table_of(page: str, title: str) -> list[list[str]]:
    """The rows of a section's table, its head first."""
    return rows(page.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0])


def rows(text: str) -> list[list[str]]:
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    found = re.findall(r"^\| (?!---)(.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in found]


def number(cell: str) -> float:
    return float(cell.removesuffix(" ms").replace(",", ""))


# -- several ranks -----------------------------------------------------------------------------------------------------


def test_two_ranks_send_what_is_counted_by_hand(tmp_path):
    path = tmp_path / "ranks.json"
    command = [sys.executable, "benchmarks/ranks.py", "--model", "toy", "--losses", "3", "--repeats", "1"]
    run = subprocess.run([*command, "--output", str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    losses, width, facts = 3, 8, 16
    decision, gramian = 4 * ((losses + 1) * width + losses), 8 * losses * (losses + 1)
    trunk_and_head = 4 * (width * (width + 1) + width + 1)
    calls = {name: result["calls"] for name, result in found.items() if name != "settings"}
    assert calls[PLAIN] == calls["plain sum, again"] == calls["MultiLossLayer"] == []
    assert calls["MultiLossLayer, marginalized"] == [decision]
    assert calls["MultiLossLayer, Gramian"] == [gramian]
    assert calls['at="activations"'] == [facts]
    assert calls["at=module, marginalized"] == [facts, decision]
    assert calls[PARAMETERS] == [facts, *[trunk_and_head] * losses, 8]  # a checksum last
