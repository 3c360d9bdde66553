"""Mutation testing: small faults in the core, put in one at a time, and whether a test notices. Pytest runs none of it.

    python tests/mutation.py --count 320 --output mutants.jsonl
    python tests/mutation.py --modules _graph/sites --tree build/sites -- tests/test_final_sites.py tests/test_models.py

Each mutant is run against the tests that execute its line, the fastest first, in a fork of one process that has
imported everything but mtopt, and in a private copy of the repository.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parents[1]
CORE = "_draws _dtypes _scratch _signs _transform _graph/* _methods/* _combine/* _backward/averages"
PRELOAD = "torch._dynamo torch.distributed.fsdp hypothesis.extra numpy scipy.optimize"
QUIET = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
FORK = multiprocessing.get_context("fork")

# -- mutants -----------------------------------------------------------------------------------------------------------

_PAIRS = [
    (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr), (ast.LShift, ast.RShift), (ast.And, ast.Or),
    (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.Lt, ast.GtE), (ast.LtE, ast.Gt),
]  # fmt: skip
OPPOSITE: dict[type, Any] = {
    **{a: b for pair in _PAIRS for a, b in (pair, pair[::-1])},
    **{ast.MatMult: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Mult, ast.FloorDiv: ast.Mult, ast.BitXor: ast.BitAnd},
}
STATEMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise, ast.Break, ast.Continue, ast.Delete)
BOUNDARY: dict[type, Any] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_NAMES = (
    "min max, any all, clamp_min clamp_max, argmin argmax, amin amax, clamp_min_ clamp_max_, sub_ add_, log exp, "
    "zeros ones, zeros_like ones_like, minimum maximum, mean sum"
)
RENAMED = {a: b for pair in _NAMES.split(", ") for a, b in (pair.split(), pair.split()[::-1])}


@dataclass(frozen=True)
class Mutant:
    """A piece of a module's source, in bytes, and what stands there instead."""

    module: str
    line: int
    start: int
    end: int
    old: str
    new: str
    bare: bool  # whether it needs no brackets


def mutants_of(module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    source = (ROOT / "mtopt" / module).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = {}
    for old, new in _edits(ast.parse(source)):
        start, end = starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset
        texts = ast.unparse(old), ast.unparse(new)
        if texts[0] != texts[1]:
            bare = isinstance(new, (ast.stmt, ast.Slice))
            found[start, end, texts[1]] = Mutant(module, old.lineno, start, end, *texts, bare)
    return [found[key] for key in sorted(found)]


def _edits(node: Any, within: ast.AST | None = None) -> Iterator[tuple[Any, Any]]:
    """Nodes below a node, and what to put in their places."""
    if _is_apart(node):
        return
    removable = isinstance(within, (ast.FunctionDef, ast.ClassDef, ast.stmt)) and (
        isinstance(node, STATEMENTS) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    )
    for new in [*_variants(node), *_calls(node), *([ast.Pass()] if removable else [])]:
        yield node, new
    for test in [node.test] if isinstance(node, (ast.If, ast.While, ast.IfExp)) else getattr(node, "ifs", []):
        if not isinstance(test, (ast.Compare, ast.UnaryOp)):
            yield test, ast.UnaryOp(ast.Not(), test)
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list", "exc", "cause"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and getattr(child, "arg", None) != "strict":
                    yield from _edits(child, node)


def _is_apart(node: Any) -> bool:
    """Whether no test need notice: imports, texts, asserts, warnings."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or ast.unparse(node).startswith("warnings.warn(")
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    texts = (ast.Import, ast.ImportFrom, ast.Assert, ast.JoinedStr)
    return isinstance(node, texts) or getattr(node, "name", "") == "__repr__"


def _variants(node: Any) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    if (op := type(getattr(node, "op", None))) in OPPOSITE:
        yield _changed(node, op=OPPOSITE[op]())
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            yield _changed(node, values=node.values[:i] + node.values[i + 1 :])
    elif isinstance(node, ast.Compare):
        for i, sign in enumerate(node.ops):
            for table in (OPPOSITE, BOUNDARY):
                if type(sign) in table:
                    yield _changed(node, ops=[*node.ops[:i], table[type(sign)](), *node.ops[i + 1 :]])
    elif isinstance(node, ast.Constant):
        number = node.value
        if isinstance(number, bool):
            yield ast.Constant(not number)
        elif isinstance(number, int):
            yield from (ast.Constant(number + 1), ast.Constant(number - 1))
        elif isinstance(number, float):
            yield ast.Constant(2 * number or 1.0)
    elif isinstance(node, ast.Slice):
        for bound, default in (("lower", 1), ("upper", -1)):
            at = getattr(node, bound)
            for value in [None, ast.BinOp(at, ast.Add(), ast.Constant(1))] if at else [ast.Constant(default)]:
                yield _changed(node, **{bound: value})
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))


def _calls(node: Any) -> Iterator[ast.AST]:
    """Another function, arguments that have changed places, one argument less."""
    if not isinstance(node, ast.Call):
        return
    name = "id" if isinstance(node.func, ast.Name) else "attr"
    called = getattr(node.func, name, "")
    if called in RENAMED:
        yield _changed(node, func=_changed(node.func, **{name: RENAMED[called]}))
    if len(node.args) > 1 and called != "isinstance" and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
        yield _changed(node, args=[node.args[1], node.args[0], *node.args[2:]])
    for keyword in node.keywords:
        if keyword.arg != "strict":  # like an assert
            yield _changed(node, keywords=[other for other in node.keywords if other is not keyword])


def _changed(node: Any, **fields: Any) -> Any:
    node = copy.copy(node)
    vars(node).update(fields)
    return node


def drawn(modules: list[str], count: int, seed: int) -> list[Mutant]:
    """Some mutants of each module, in proportion to how many it has, but 5 at least."""
    everything = {module: mutants_of(module) for module in modules}
    total = sum(map(len, everything.values()))
    chosen = []
    for module, mutants in everything.items():
        share = min(len(mutants), max(5, round(count * len(mutants) / total)))
        chosen += random.Random(f"{seed} {module}").sample(mutants, share)
        print(f"{module}: {share} of {len(mutants)}")
    random.Random(seed).shuffle(chosen)
    return chosen


# -- tests -------------------------------------------------------------------------------------------------------------


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


class Tests:
    """Which tests run which lines, and how long they take: from one run of them in a private copy of the repository."""

    def __init__(self, tree: Path, arguments: list[str]) -> None:
        self.tree, self.arguments = tree, arguments
        if not tree.exists():
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "build"))
        shutil.copytree(ROOT / "mtopt", tree / "mtopt", dirs_exist_ok=True)  # a run that was stopped leaves a mutant
        timings = tree / "seconds.json"
        if not timings.exists():
            answer = in_fork(tree, ["--cov=mtopt", "--cov-context=test", "--cov-report=", *arguments], None, 7200)
            timings.write_text(json.dumps(answer["seconds"]), encoding="utf-8")
        self.seconds: dict[str, float] = json.loads(timings.read_text(encoding="utf-8"))
        self.data = coverage.CoverageData(str(tree / ".coverage"))
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
    tests = Tests(options.tree.resolve(), options.tests)
    found: Counter[str] = Counter()
    with options.output.open("w", encoding="utf-8") as output:
        for mutant in mutants:
            verdict = tests.verdict_on(mutant, options.seconds)
            found[verdict["verdict"]] += 1
            print(json.dumps({**asdict(mutant), **verdict}, ensure_ascii=False), file=output, flush=True)
    print(*(f"{verdict}: {number}" for verdict, number in found.items()), sep="\n")


if __name__ == "__main__":
    main()
