"""Mutation testing: small faults in the core, put in one at a time, and whether a test notices. Pytest runs none of it.

    python tests/mutation.py --count 320 --output mutants.jsonl
    python tests/mutation.py --modules _graph/sites --tree build/sites -- tests/test_final_sites.py tests/test_models.py

Each mutant is run against the tests that execute its line, the fastest first, in a fork of one process that has
imported everything but mtopt, and in a private copy of the repository.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from mutants import Mutant, drawn

ROOT = Path(__file__).parents[1]
CORE = "_draws _dtypes _scratch _signs _transform _graph/* _methods/* _combine/* _backward/averages"
PRELOAD = "torch._dynamo torch.distributed.fsdp hypothesis.extra numpy scipy.optimize"
QUIET = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
FORK = multiprocessing.get_context("fork")


class Chosen:
    """A pytest plugin: runs some tests, the fastest first, and notes how long each takes and which one fails."""

    def __init__(self, seconds: dict[str, float] | None) -> None:
        self.chosen = seconds
        self.seconds: dict[str, float] = {}
        self.failed = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        if self.chosen is not None:
            from hypothesis import Phase, settings  # shrinks nothing: that a test fails is enough

            settings.register_profile("first failure", settings(), phases=[Phase.explicit, Phase.generate])
            settings.load_profile("first failure")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if (chosen := self.chosen) is not None:
            items[:] = sorted((i for i in items if i.nodeid in chosen), key=lambda i: chosen[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed = report.nodeid
            self.seconds[report.nodeid] = math.inf  # says nothing of mutants

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = report.nodeid


def in_fork(tree: Path, arguments: list[str], seconds: dict[str, float] | None, limit: float) -> dict[str, Any]:
    """What pytest says of a tree, as `{"verdict", "by", "seconds"}`."""
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_run_pytest, args=(writer, tree, arguments, seconds))
    process.start()
    assert process.pid is not None
    writer.close()
    answer: dict[str, Any] = {"verdict": "killed", "by": "ended without a word"}
    if not reader.poll(limit):
        answer["by"] = f"takes more than {limit:.0f} s"
    else:
        with suppress(EOFError):
            answer = reader.recv()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with all that it started
    process.join()
    return answer


def _run_pytest(writer: Connection, tree: Path, arguments: list[str], seconds: dict[str, float] | None) -> None:
    os.setsid()
    os.chdir(tree)
    sys.path[0] = os.environ["PYTHONPATH"] = str(tree)
    log = os.open(tree / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if seconds is not None:
        sys.dont_write_bytecode = True  # of a mutant, which nobody may find later
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    plugin = Chosen(seconds)
    code = pytest.main([*QUIET, *arguments], plugins=[plugin])
    verdict = {0: "survived", 5: "invalid"}.get(int(code), "killed")  # 5: there was nothing to run
    writer.send({"verdict": verdict, "by": plugin.failed, "seconds": plugin.seconds})


class Suite:
    """Which tests run which lines, and how long they take: from one run of them in a private copy of the repository."""

    def __init__(self, tree: Path, arguments: list[str]) -> None:
        from coverage import CoverageData  # here: pytest looks for doctests in this file, also in a light install

        self.tree = tree
        if not tree.exists():
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "build"))
        shutil.copytree(ROOT / "mtopt", tree / "mtopt", dirs_exist_ok=True)  # a run that was stopped leaves a mutant
        timings = tree / "seconds.json"
        if not timings.exists():
            answer = in_fork(tree, ["--cov=mtopt", "--cov-context=test", "--cov-report=", *arguments], None, 7200)
            timings.write_text(json.dumps(answer["seconds"]), encoding="utf-8")
        self.seconds: dict[str, float] = json.loads(timings.read_text(encoding="utf-8"))
        self.data = CoverageData(str(tree / ".coverage"))
        self.data.read()

    def of(self, mutant: Mutant, most: float) -> dict[str, float]:
        """The tests for a mutant, with their seconds; no more than `most` seconds of them."""
        lines = self.data.contexts_by_lineno(str(self.tree / "mtopt" / mutant.module))
        at = max((line for line in lines if line <= mutant.line), default=0)  # where its statement starts
        contexts = {context for context in lines.get(at, []) if context}
        if not contexts:  # it runs at import, or in processes of the tests', where nobody sees which lines
            contexts = {context for found in lines.values() for context in found if context} or {*self.seconds}
        chosen: dict[str, float] = {}
        for name in sorted(
            {context.partition("|")[0] for context in contexts} & {*self.seconds}, key=self.seconds.__getitem__
        ):
            if (most := most - self.seconds[name]) > 0:
                chosen[name] = self.seconds[name]
        return chosen

    def verdict_on(self, mutant: Mutant, most: float) -> dict[str, Any]:
        """Whether a test fails, and which one; or that none runs it."""
        chosen = self.of(mutant, most)
        if not chosen:
            return {"verdict": "survived", "by": "no test runs it", "tests": 0}
        file = self.tree / "mtopt" / mutant.module
        before = file.read_bytes()
        new = mutant.new if mutant.bare else f"({mutant.new})"
        file.write_bytes(before[: mutant.start] + new.encode() + before[mutant.end :])
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
            compiled.unlink()  # it may have the same second in it
        try:
            files = sorted({name.split("::")[0] for name in chosen})
            answer = in_fork(self.tree, ["-x", *files], chosen, 60 + 3 * sum(chosen.values()))
        finally:
            file.write_bytes(before)
        return {"verdict": answer["verdict"], "by": answer["by"], "tests": len(chosen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=320, help="how many mutants, over all modules")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--modules", nargs="*", default=CORE.split(), help="patterns below mtopt/, without .py")
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"), help="one line of JSON for each")
    parser.add_argument("--tree", type=Path, default=Path("build/mutants"), help="the private copy, one for each TESTS")
    parser.add_argument("--seconds", type=float, default=100.0, help="of tests for one mutant, at most")
    parser.add_argument("tests", nargs="*", default=["-m", "core"], help="arguments of pytest, after `--`")
    options = parser.parse_args()
    files = [file for pattern in options.modules for file in sorted((ROOT / "mtopt").glob(f"{pattern}.py"))]
    mutants = drawn([str(file.relative_to(ROOT / "mtopt")) for file in files], options.count, options.seed)
    for name in PRELOAD.split():
        importlib.import_module(name)
    gc.freeze()
    suite = Suite(options.tree.resolve(), options.tests)
    found: Counter[str] = Counter()
    with options.output.open("w", encoding="utf-8") as output:
        for mutant in mutants:
            verdict = suite.verdict_on(mutant, options.seconds)
            found[verdict["verdict"]] += 1
            print(json.dumps({**asdict(mutant), **verdict}, ensure_ascii=False), file=output, flush=True)
    print(*(f"{verdict}: {number}" for verdict, number in found.items()), sep="\n")


if __name__ == "__main__":
    main()
