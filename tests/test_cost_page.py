"""The costs of a step: the quick form measures everything, the page says what was measured; blocks of a page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/cost.json"
PAGE = ROOT / "docs/costs.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PLAIN, TRUNK, PARAMETERS, MTL = "plain sum", "trunk's backward alone", 'at="parameters"', "TorchJD mtl_backward"
PARTS = ("time", "memory", "combination", "methods", "transforms", "traffic")
pytestmark = pytest.mark.timeout(900)  # the quick form takes less than a minute where nothing else runs


@pytest.fixture(scope="module")
def cost():
    """The parts of the benchmark that measure nothing; those that do would import modules named like the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import blocks_of_a_page
        import cost_page
        import cost_peers

        yield SimpleNamespace(blocks=blocks_of_a_page, page=cost_page, peers=cost_peers)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What the quick form measured, as JSON."""
    path = tmp_path_factory.mktemp("cost") / "quick.json"
    patient = {
        **os.environ,
        "OMP_WAIT_POLICY": "passive",
    }  # where other programs run, threads must not wait by spinning
    command = [sys.executable, "benchmarks/cost.py", "--quick", "--output", str(path)]
    run = subprocess.run(command, cwd=ROOT, env=patient, capture_output=True, text=True, check=False, timeout=850)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["quick", "published"])
def either(request, cost):
    """Results, and the tables of them: those on the page, where they are published."""
    results = request.getfixturevalue(request.param)
    if request.param == "quick":
        targets = {"targets": cost.page.targets_table(results["checks"])}
        return SimpleNamespace(results=results, tables=cost.page.tables(results) | targets)
    pages = (cost.blocks.blocks_of(page.read_text(encoding="utf-8")) for page in (PAGE, CONTRIBUTING))
    return SimpleNamespace(results=results, tables=dict(item for blocks in pages for item in blocks.items()))


# -- what is measured --------------------------------------------------------------------------------------------------


def test_the_quick_form_measures_every_part(quick):
    assert quick["complete"]
    assert {"date", "command", "settings", "machine", "versions"} <= set(quick)
    assert all(quick[part] for part in PARTS)
    assert {(e["model"], e["losses"]) for e in quick["time"]} == {("mlp", 2), ("mlp", 8), ("toy", 2)}
    assert "quick.json" not in json.dumps(quick["settings"])  # nor any path of this machine


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


def test_a_target_is_reached_up_to_its_limit(either):
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


# -- blocks of a page --------------------------------------------------------------------------------------------------


def block(name: str, *lines: str) -> str:
    return "\n".join([f"<!-- table: {name} -->", *lines, "<!-- end -->"])


TWO = f"# Title\n\nBefore.\n\n{block('a b')}\n\nBetween: a `<!-- table: c -->`.\n\n{block('c', '', '| 1 |', '')}\n"


def test_blocks_are_replaced_and_all_else_stays(cost):
    found = cost.blocks.filled(TWO, {"c": r"| \1 |", "a b": "| 2 |\n| 3 |"})
    assert cost.blocks.blocks_of(found) == {"a b": "| 2 |\n| 3 |", "c": r"| \1 |"}
    assert cost.blocks.filled(found, {"a b": "| 4 |", "c": ""}) == cost.blocks.filled(TWO, {"a b": "| 4 |", "c": ""})
    assert outside(cost, found) == outside(cost, TWO)
    assert cost.blocks.filled(found, cost.blocks.blocks_of(found)) == found


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"a b": "", "c": "", "d": ""}, "The page has no place for: d"),
        ({"c": ""}, "The results do not give these blocks of the page: a b"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_and_leave_the_file(cost, tmp_path, blocks, message):
    path = tmp_path / "page.md"
    path.write_text(TWO)
    with pytest.raises(ValueError, match=message):
        cost.blocks.fill(path, blocks)
    assert path.read_text() == TWO


@pytest.mark.parametrize(
    "page",
    [
        "<!-- table: a -->\n",
        "<!-- end -->\n",
        f"{block('a')}\n<!-- end -->\n",
        f"<!-- table: a -->\n{block('b')}\n",
        "<!-- table: a -->\ntext <!-- end -->\n",
    ],
)
def test_a_mark_without_its_other_is_refused(cost, page):
    with pytest.raises(ValueError, match="must have one `<!-- end -->` behind it"):
        cost.blocks.blocks_of(page)


def test_two_blocks_of_one_name_are_refused(cost):
    with pytest.raises(ValueError, match="the page has two called 'a'"):
        cost.blocks.blocks_of(f"{block('a')}\n{block('a')}\n")


def outside(cost, page: str) -> str:
    """What is written by hand, without the ends of lines."""
    return " ".join(cost.blocks.BLOCK.sub("", page).split())


# -- what is published -------------------------------------------------------------------------------------------------


def test_the_tables_of_the_page_are_what_the_results_give(cost, published):
    page = PAGE.read_text(encoding="utf-8")
    assert cost.blocks.blocks_of(page) == cost.page.tables(published)
    assert cost.blocks.filled(page, cost.page.tables(published)) == page
    targets = cost.blocks.blocks_of(CONTRIBUTING.read_text(encoding="utf-8"))
    assert targets == {"targets": cost.page.targets_table(published["checks"])}


def test_another_number_gives_another_table(cost, quick):
    changed = json.loads(json.dumps(quick))
    changed["time"][2]["ratio"][1] += 1
    before, after = cost.page.tables(quick), cost.page.tables(changed)
    assert {name for name in before if before[name] != after[name]} == {"time mlp"}


@pytest.mark.parametrize("part", PARTS)
def test_results_that_lack_a_part_are_not_published(cost, quick, tmp_path, part):
    with pytest.raises(ValueError, match=f"`results` lack {part}. Measure all parts"):
        cost.page.publish({**quick, part: []}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_of_a_run_that_was_stopped_are_not_published(cost, quick, tmp_path):
    with pytest.raises(ValueError, match="are of a run that was stopped"):
        cost.page.publish({**quick, "complete": False}, tmp_path)


def test_results_of_the_quick_form_are_not_published(cost, quick, tmp_path):
    copy = shutil.copy(PAGE, tmp_path)
    with pytest.raises(ValueError, match="do not give these blocks of the page: time resnet, time transformer"):
        cost.page.publish(quick, tmp_path)
    assert Path(copy).read_bytes() == PAGE.read_bytes()


def test_the_tables_have_the_medians(cost, either):
    for (model, losses), cells in by_cell(either.results["time"]).items():
        head, *table = rows(either.tables[f"time {model}"])
        columns = [head.index(f"T = {losses}{base}") for base in ("", ", / TorchJD's best")]
        peer = fastest_peer(cells)
        assert [row[0] for row in table] == [name for name in cells if name != TRUNK]
        for row in table:
            entry = cells[row[0]]
            to_plain = entry["ms"][1] if row[0] == PLAIN else entry["ratio"][1]
            expected = [to_plain, np.median(ratios(entry, peer))]
            assert [number(row[column]) for column in columns] == pytest.approx(expected, rel=0.01, abs=0.006)


def test_no_cell_in_which_a_peer_is_ahead_goes_unmentioned(cost, either):
    title, ahead = cost.page.TITLES, set()
    for (model, losses), cells in by_cell(either.results["time"]).items():
        peer = fastest_peer(cells)
        for name, entry in cells.items():
            mine = not name.startswith(("TorchJD", "plain", "trunk"))
            if mine and np.median(ratios(entry, peer)) > 1:
                ahead.add(f"step: {title[model]}, T = {losses}, {name}")
    for (model, losses), cells in by_cell(either.results["methods"]).items():
        for name, entry in cells.items():
            peer = cells.get(f"{name.split(' ')[0]} {MTL}")
            if name.endswith(f" {PARAMETERS}") and peer and np.median(ratios(entry, peer)) > 1:
                ahead.add(f"step: {title[model]}, T = {losses}, {name}")
    named = {row[0] for row in rows(either.tables["ahead"])[1:]}
    assert ahead == {name for name in named if name.startswith("step: ")}


def test_leaner_peers_are_named_too(cost, quick):
    results = json.loads(json.dumps(quick))
    for entry in results["memory"]:
        if entry["method"].startswith("TorchJD"):
            entry["tensors"] = 1
    named = {row[0] for row in rows(cost.page.tables(results)["ahead"])[1:]}
    of_mlp = {f"peak memory: MLP, T = {n}, {PARAMETERS}{way}" for n in (2, 8) for way in ("", ", vmap of 4", ", loop")}
    assert of_mlp <= named


def test_every_target_that_was_missed_is_listed(either):
    checks = either.results["checks"]
    missed = [(c["target"], c["where"], f"{c['measured']:.3f}") for c in checks if c["measured"] > c["limit"]]
    assert [tuple(row[:3]) for row in rows(either.tables["missed"])[1:]] == missed
    kept = np.array([row[1].split(" of ") for row in rows(either.tables["targets"])[1:]], dtype=int)
    assert kept.sum(0).tolist() == [len(checks) - len(missed), len(checks)]


def test_the_prose_has_the_numbers_of_the_results(cost, published):
    prose = outside(cost, PAGE.read_text(encoding="utf-8"))
    cells = [methods for (model, _), methods in by_cell(published["time"]).items() if model != "toy"]
    forms = ("MultiLossLayer", 'at="activations"', "at=module")
    at_activations = [methods[form]["ratio"][1] for methods in cells for form in forms]
    at_parameters = [methods[PARAMETERS]["ratio"][1] for methods in cells]
    peers = [fastest_peer(methods)["ratio"][1] for methods in cells]
    said = (
        "At activations .* took {} to {} times.* At parameters it took {} to {} times.*TorchJD's .* took {} to {} times"
    )
    ends = [end for ratios in (at_activations, at_parameters, peers) for end in (min(ratios), max(ratios))]
    assert numbers(said, prose) == pytest.approx(ends, rel=0.005)

    checks, found = published["checks"], cost.peers.comparisons(published)
    missed = sum(check["measured"] > check["limit"] for check in checks)
    kept = [len(checks), len(checks) - missed, missed]
    assert numbers("mtopt has {} targets for its costs: {} were reached, and {} were missed", prose) == kept
    assert numbers("{} of {} were reached. These {} were missed", prose) == [kept[1], kept[0], kept[2]]
    kinds = [sum(c.what == what for c in found) for what in ("step", "combination", "peak memory")]
    assert numbers("There are {} comparisons: - {} of a step.* - {} of the bare.* - {} of the peak", prose) == [
        len(found),
        *kinds,
    ]
    assert numbers("TorchJD was ahead in {} of them", prose) == [sum(c.ratio > 1 for c in found)]
    for model, title in cost.page.TITLES.items():
        for entry in published["memory"]:
            if entry["model"] == model:
                shared = numbers(rf"\*\*{title}\*\*: the shared parameters take {{}} MB", prose)
                assert shared == pytest.approx([entry["shared"] / 1e6], abs=0.05)


def numbers(pattern: str, text: str) -> list[float]:
    """What stands in the text in place of each {}."""
    (found,) = re.findall(pattern.replace("{}", r"([\d.]+)"), text)
    return [float(number) for number in ([found] if isinstance(found, str) else found)]


def fastest_peer(cells):
    return min((e for name, e in cells.items() if name.startswith("TorchJD")), key=lambda e: e["ms"][1])


def rows(text: str) -> list[list[str]]:
    """Of a table, its head first."""
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
