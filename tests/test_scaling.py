"""The scaling benchmark: its fits, its byte counts, and that the published page says what was measured."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/scaling.json"
PAGE = ROOT / "docs/scaling.md"
SWEEPS = ("losses", "parameters", "batch")


@pytest.fixture
def scaling(monkeypatch):
    """The parts of the benchmark that measure nothing; those that do would import modules named like the tests'."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import blocks_of_a_page
    from scaling import calculation, page, pictures, theory, traffic

    return SimpleNamespace(
        blocks=blocks_of_a_page,
        calculation=calculation,
        page=page,
        pictures=pictures,
        theory=theory,
        traffic=traffic,
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What the quick form measured, as JSON."""
    path = tmp_path_factory.mktemp("scaling") / "quick.json"
    command = [sys.executable, "benchmarks/scaling", "--quick", "--output", str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published():
    return json.loads(RESULTS.read_text(encoding="utf-8"))


# -- slopes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [-0.5, 0.5, 1.0, 2.0])
def test_a_power_law_has_its_power_as_slope(scaling, power):
    x = np.array([2.0, 4.0, 8.0, 32.0])
    found = scaling.theory.fit(x, 7e-3 * x**power)
    assert (found.power, found.error) == (pytest.approx(power, abs=1e-9), pytest.approx(0, abs=1e-6))


def test_a_noisy_power_law_lies_within_a_few_errors_of_its_power(scaling):
    x = np.geomspace(1, 1e4, 200)
    found = scaling.theory.fit(x, x**1.5 * np.exp(0.1 * np.random.default_rng(0).standard_normal(200)))
    assert found.error == pytest.approx(0.1 / np.linalg.norm(np.log(x) - np.log(x).mean()), rel=0.2)
    assert abs(found.power - 1.5) < 4 * found.error


def test_two_points_have_no_slope(scaling):
    assert scaling.theory.fit([1.0, 2.0], [1.0, 2.0]) is None


def test_theory_has_the_powers_of_its_formulas(scaling):
    theory = scaling.theory
    powers = {sweep: theory.expected(theory.UPGRAD_ACTIVATIONS, sweep, sizes) for sweep, sizes in theory.SWEEPS.items()}
    assert powers["losses"] == pytest.approx([0, 1, 1, 2, 4], abs=1e-9)
    assert powers["parameters"] == pytest.approx([0, 0, 0, 0.5, 0.5], abs=2e-3)  # the width is nearly their square root
    assert powers["batch"] == pytest.approx([0, 0, 0, 1, 1], abs=1e-9)


# -- the quick form ----------------------------------------------------------------------------------------------------


def test_the_quick_form_measures_every_method_at_every_size(scaling, quick):
    assert set(quick) == {*SWEEPS, "ranks"}
    for name in SWEEPS:
        assert len(quick[name]["points"]) == 3
        for point in quick[name]["points"]:
            assert set(point["methods"]) == set(scaling.page.ORDER)
            assert all(len(found["samples_ms"]) >= 2 for found in point["methods"].values())
    for section in quick.values():
        assert {"date", "command", "settings", "machine", "versions", "points"} <= set(section)


def test_the_quartiles_are_those_of_the_samples(quick):
    for point in quick["losses"]["points"]:
        for found in point["methods"].values():
            assert found["ms"] == pytest.approx(np.quantile(found["samples_ms"], [0.25, 0.5, 0.75]), abs=1e-3)


def test_two_ranks_exchange_the_bytes_that_are_counted_by_hand(quick):
    point = quick["ranks"]["points"][1]
    assert point["ranks"] == 2
    t, w = point["size"]["losses"], point["size"]["width"]
    trunk, heads = 4 * 4 * (w * w + w), 4 * t * 4 * (w + 1)
    found = {(row["method"], row["wrapper"]): row["bytes"] for row in point["methods"]}
    decision, gramian = 4 * ((t + 1) * w + t), 8 * t * (t + 1)
    for wrapper, plain in (("DDP", trunk + heads), ("FSDP2", 3 * trunk + 2 * heads)):
        assert found["plain sum", wrapper] == plain
        assert found["GradDrop at activations", wrapper] == plain + 16
        assert found["GradDrop at the trunk, marginalized", wrapper] == plain + 16 + decision
        assert found["UPGrad at activations", wrapper] == plain + 16 + gramian
    sharded = (1 + 2 * t) * trunk + (1 + t) * heads
    assert found["GradDrop at parameters", "DDP"] == found["UPGrad at parameters", "DDP"] == t * trunk + heads + 16 + 8
    assert found["GradDrop at parameters", "FSDP2"] == sharded + 16
    assert found["UPGrad at parameters", "FSDP2"] == sharded + 16 + gramian


def test_the_formula_gives_the_bytes_of_any_number_of_ranks(scaling, quick, published):
    for point in [*quick["ranks"]["points"], *published["ranks"]["points"]]:
        size = scaling.theory.Size(**point["size"])
        for row in point["methods"]:
            method = row["method"].removesuffix(", again")
            assert row["bytes"] == scaling.traffic.payload(method, row["wrapper"], size, ranks=point["ranks"]), row


# -- the calculation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("losses", [1, 2, 5, 16])
def test_at_parameters_arithmetic_and_network_grow_alike(scaling, losses):
    a = scaling.calculation.Assumptions(losses=losses)
    plain = scaling.calculation.plain(a)
    for make in (scaling.calculation.drop_parameters, scaling.calculation.upgrad_parameters):
        cost = make(a)
        assert cost.operations / plain.operations == pytest.approx((1 + 2 * losses) / 3, rel=1e-3)
        assert cost.sent / plain.sent == pytest.approx((1 + 2 * losses) / 3)


def test_the_plain_sum_takes_six_operations_per_parameter_and_token(scaling):
    a = scaling.calculation.Assumptions(parameters=7e9, sequences=2, length=1000)
    assert scaling.calculation.plain(a).operations == 6 * 7e9 * 2000
    assert scaling.calculation.plain(a).exposed(a) > scaling.calculation.plain(a).hidden(a)


# -- what is published -------------------------------------------------------------------------------------------------


def test_the_tables_of_the_page_are_what_the_results_give(scaling, published):
    page = PAGE.read_text(encoding="utf-8")
    assert scaling.blocks.blocks_of(page) == scaling.page.tables(published)
    assert scaling.blocks.filled(page, scaling.page.tables(published)) == page


def test_another_number_gives_another_table(scaling, published):
    changed = json.loads(json.dumps(published))
    changed["batch"]["points"][0]["methods"]["GradDrop at activations"]["ratio"][1] += 1
    before, after = scaling.page.tables(published), scaling.page.tables(changed)
    assert {name for name in before if before[name] != after[name]} == {"batch"}


def test_results_that_lack_a_part_are_not_published(scaling, published, tmp_path):
    with pytest.raises(ValueError, match="`results` lack ranks"):
        scaling.page.publish({name: published[name] for name in SWEEPS}, tmp_path)
    assert not list(tmp_path.iterdir())


def prose(scaling, page: str) -> str:
    """What is written by hand, without the ends of lines."""
    return " ".join(scaling.blocks.BLOCK.sub("", page).split())


def numbers(pattern: str, text: str) -> list[float]:
    """What stands in the text in place of each {}."""
    (found,) = re.findall(pattern.replace("{}", r"([\d.,]*\d)"), text)
    return [float(number.replace(",", "")) for number in ([found] if isinstance(found, str) else found)]


def test_the_prose_has_the_numbers_of_the_results(scaling, published):
    text, theory = prose(scaling, PAGE.read_text(encoding="utf-8")), scaling.theory
    most, at_most = published["losses"]["points"][-1]["size"]["losses"], published["losses"]["points"][-1]["methods"]
    ratio = [at_most[method]["ratio"][1] for method in (theory.DROP_ACTIVATIONS, theory.DROP_PARAMETERS)]
    said = "With {} losses GradDrop took {} times as long as the plain sum at activations, and {} times as long"
    assert numbers(said, text) == pytest.approx([most, *ratio], rel=0.005)

    base = theory.BASE
    said = r"a trunk of {} square linear layers with ReLU, {} wide.* \$T = {}\$ losses, \$P\$ = {} .* \$B = {}\$ exam"
    expected = [theory.DEPTH, base.width, base.losses, base.parameters, base.batch]
    assert numbers(said, text) == expected
    assert numbers("measured at the last {} sizes", text) == [scaling.page.LAST]


@pytest.mark.parametrize("name", SWEEPS)
def test_the_text_in_place_of_a_picture_has_the_ends_of_its_lines(scaling, published, name):
    theory = scaling.theory
    methods = theory.DROP_ACTIVATIONS, theory.DROP_PARAMETERS, theory.TORCHJD, theory.SEPARATE
    first, last = (published[name]["points"][i] for i in (0, -1))
    ends = [end["methods"][method]["ratio"][1] for method in methods for end in (first, last)]
    said = r"axes, from {} to {} \w+\. .*" + ".* ".join(f"{method} from {{}} to {{}}" for method in methods)
    (picture,) = re.findall(rf"!\[(.*)\]\(scaling/{name}\.svg\)", PAGE.read_text(encoding="utf-8"))
    xs = scaling.page.xs_of(name, published[name])
    assert numbers(said, picture) == pytest.approx([xs[0], xs[-1], *ends], rel=0.005)


def test_the_text_on_ranks_has_the_numbers_of_the_results(scaling, published):
    text, last = prose(scaling, PAGE.read_text(encoding="utf-8")), published["ranks"]["points"][-1]
    ratio = {(row["method"], row["wrapper"]): row["ratio"][1] for row in last["methods"]}
    methods = scaling.traffic.MARGINALIZED, scaling.theory.DROP_PARAMETERS
    expected = [last["ranks"], *(ratio[method, wrapper] for wrapper in ("DDP", "FSDP2") for method in methods)]
    said = f"On {{}} ranks under DDP, {methods[0]}, takes {{}} times as long, and {methods[1]} {{}} times; under FSDP2 "
    assert numbers(f"{said}they take {{}} and {{}} times as long", text) == pytest.approx(expected, rel=0.005)
    said = "on one machine of {} cores.* each of {} ranks hands to.* come {} bytes, with which.* a checksum of {} bytes"
    known = [published["ranks"]["machine"]["cores"], last["ranks"], scaling.traffic.FACTS, scaling.traffic.CHECKSUM]
    assert numbers(said, text) == known


def test_the_text_on_a_billion_parameters_has_the_assumptions(scaling):
    text, a, known = prose(scaling, PAGE.read_text(encoding="utf-8")), scaling.calculation.Assumptions(), {}
    known[r"a trunk of \$N\$ = {} parameters.* width \$d\$ = {}\."] = [a.parameters, a.width]
    known[r"There are \$T = {}\$ losses and \$R = {}\$ GPUs"] = [a.losses, a.gpus]
    known[r"of its own: {} sequences of {} tokens, so \$D\$ = {} tokens"] = [a.sequences, a.length, a.tokens]
    known["{} TFLOP/s, moves {} TB/s in"] = [a.flops / 1e12, a.memory / 1e12]
    known["sends {} GB/s to .* call takes {} µs"] = [a.network / 1e9, 1e6 * a.latency]
    cost = scaling.calculation
    bytes_ = [cost.MARGINAL_ROW, cost.MARGINAL_ONCE, cost.GRAMIAN_ROW, cost.GRAMIAN_ONCE]
    known["the result: {} and {} for GradDrop, {} and {} for UPGrad"] = bytes_
    joint, by_token = (scaling.traffic.decision(a.losses, n) for n in (a.width, a.length * a.width))
    said = "each of the {} features, and {} kB in an all-reduce.* each feature, and {} MB"
    known[said] = [a.width, joint / 1e3, by_token / 1e6]
    for pattern, expected in known.items():
        assert numbers(pattern, text) == pytest.approx(expected, rel=0.005), pattern


@pytest.mark.parametrize("name", [*SWEEPS, "ranks"])
def test_the_lines_of_a_picture_go_through_the_numbers(scaling, published, name):
    pictures = scaling.pictures
    if name == "ranks":
        panels = [pictures.rank_lines(published["ranks"], wrapper) for wrapper in ("DDP", "FSDP2")]
    else:
        xs = scaling.page.xs_of(name, published[name])
        panels = [make(published[name], xs) for make in (pictures.ratio_lines, pictures.added_lines)]
    drawn = drawn_lines(ROOT / f"docs/scaling/{name}.svg")
    for place, lines in enumerate(panels):
        expected = {method: np.log10([x, y]).T for method, x, y in lines if x}
        found = {method: points for (panel, method), points in drawn.items() if panel == place}
        assert {m: len(points) for m, points in found.items()} == {m: len(points) for m, points in expected.items()}
        for axis in (0, 1):  # one scale for all lines of a panel
            numbers = np.concatenate([expected[method][:, axis] for method in found])
            places = np.concatenate([found[method][:, axis] for method in found])
            scale, start = np.polyfit(numbers, places, 1)
            assert places == pytest.approx(scale * numbers + start, abs=0.01)


def drawn_lines(path: Path) -> dict[tuple[int, str], np.ndarray]:
    """The corners of each line in a picture, by panel and method."""
    found = {}
    for group in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}g"):
        if re.match(r"\d \w", group.get("id", "")):
            corners = re.findall(r"[ML] ([\d.]+) ([\d.]+)", group[0].get("d"))
            place, method = group.get("id").split(" ", 1)
            found[int(place), method] = np.array(corners, dtype=float)
    return found


def test_a_page_and_its_pictures_can_be_made_of_the_quick_form(scaling, quick, tmp_path):
    page = Path(shutil.copy(PAGE, tmp_path))
    scaling.page.publish(quick, tmp_path)
    found = page.read_text(encoding="utf-8")
    assert scaling.blocks.blocks_of(found) == scaling.page.tables(quick)
    assert prose(scaling, found) == prose(scaling, PAGE.read_text(encoding="utf-8"))
    assert {path.stem for path in (tmp_path / "scaling").iterdir()} == {*SWEEPS, "ranks"}
    lines = drawn_lines(tmp_path / "scaling/losses.svg")
    assert all((np.diff(points[:, 0]) > 0).all() for points in lines.values())
    assert all(a != b for a, b in pairwise(sorted(lines)))
