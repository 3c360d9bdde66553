"""The command for a GPU: where there is none it says so in one line, and on the CPU all of it but the device is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(600)  # half a minute where nothing else runs
CELLS = ["plain sum", "plain sum, again", "transforms=[]", "MultiLossLayer", 'at="activations"', 'at="parameters"']
REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_b[1]"/>
<testcase classname="tests.test_a" name="test_c"><failure message="assert 1 == 2&#10;more">all</failure></testcase>
<testcase classname="tests.test_a" name="test_d"><error message="no such fixture">all</error></testcase>
<testcase classname="tests.test_a" name="test_e"><skipped message="needs CUDA">all</skipped></testcase>
</testsuite></testsuites>"""


def command(*arguments, **environment):
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", **environment}
    line = [sys.executable, "benchmarks/gpu.py", *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=550)


def test_without_a_device_it_says_so_in_one_line():
    run = command(CUDA_VISIBLE_DEVICES="")
    assert run.returncode == 2
    assert run.stdout.startswith("torch finds no CUDA device here")
    assert (run.stdout.count("\n"), run.stderr) == (1, "")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What the quick form finds on the CPU, as JSON, with the tests of one file."""
    path = tmp_path_factory.mktemp("gpu") / "quick.json"
    arguments = ("--device", "cpu", "--quick", "--tests", "tests/test_cuda.py", "--output", str(path))
    run = command(*arguments, CUDA_VISIBLE_DEVICES="")
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_quick_form_measures_every_cell_and_says_on_what(quick):
    assert quick["device"] == {"name": "cpu", "count": 0}
    assert quick["versions"]["torch"] == torch.__version__
    assert quick["date"]
    for place in (("mlp", 2), ("mlp", 8), ("toy", 2)):
        rows = [row for row in quick["cost"] if (row["model"], row["losses"]) == place]
        assert [row["method"] for row in rows][: len(CELLS)] == CELLS
        assert any("TorchJD" in row["method"] for row in rows)
        for row in rows:
            assert min(row["samples_ms"]) > 0
            assert row["peak_bytes"] is row["waits"] is None  # they are those of a device
        assert rows[0]["ratio"] == [1, 1, 1]


def test_the_quick_form_tells_what_became_of_the_tests(quick):
    tests = quick["tests"]
    assert (tests["exit_code"], tests["passed"], tests["failed"]) == (0, 0, 0)
    assert tests["skipped"] == len(tests["skips"]) > 0
    assert set(tests["skips"].values()) == {"needs CUDA"}


def printed(code, **settings):
    """The last line that code prints beside the command, read as JSON: modules there are named like the tests'."""
    line = [sys.executable, "-c", f"import json, sys, gpu\n{code}"]
    run = subprocess.run(line, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True, **settings)
    return json.loads(run.stdout.splitlines()[-1])


def test_a_cell_that_fails_is_named_with_why_and_the_others_are_measured():
    found = printed(
        """
from types import SimpleNamespace
def broken(problem):
    raise MemoryError("too much")
gpu.CELLS = {gpu.PLAIN: gpu.CELLS[gpu.PLAIN], "broken": broken}
args = SimpleNamespace(models=["toy"], steps=1, repeats=2, budget=1.0, seed=0)
rows = []
gpu.run_cost(args, gpu.torch.device("cpu"), rows)
print(json.dumps(rows))
"""
    )
    assert [row["method"] for row in found] == ["broken", "plain sum"]
    assert found[0] == {"model": "toy", "losses": 2, "method": "broken", "error": "MemoryError: too much"}
    assert len(found[1]["samples_ms"]) == 2


def test_a_test_that_failed_is_named_with_why():
    parse = "from xml.etree import ElementTree\nreport = ElementTree.fromstring(sys.stdin.read())"
    assert printed(f"{parse}\nprint(json.dumps(gpu.outcomes(report, 1)))", input=REPORT) == {
        "exit_code": 1,
        **{"passed": 1, "failed": 2, "skipped": 1},
        "failures": {"tests.test_a::test_c": "assert 1 == 2", "tests.test_a::test_d": "no such fixture"},
        "skips": {"tests.test_a::test_e": "needs CUDA"},
    }
