"""Mutation testing: small faults in the core, put in one at a time, and whether a test notices. Pytest runs none of it.

    python tests/mutation.py --count 320 --output mutants.jsonl

Each mutant is run against the tests that execute its line, the fastest first, in a fork of one process that has
imported everything but mtopt, and in a private copy of the repository. A run that was stopped goes on where it was.
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
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CORE = "signs sums graph rows arrivals batching combine blocks products draws averages solvers pipeline methods/*"
AROUND = (
    "docs docs_frontier docs_graddrop site compare command demo evidence scaling cost_page benchmark_data pictures "
    "project examples survey"
)
RANKS = ("tests/test_ranks.py", "tests/test_faults.py", "tests/test_fsdp.py")
"""They run in processes of their own, where nobody sees which lines: for what is seen by none, or names ranks."""

PRELOAD = "torch._dynamo torch.distributed.fsdp hypothesis.extra numpy scipy.optimize coverage lightning accelerate"
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


def _edits(node: ast.AST, within: ast.AST | None = None) -> Iterator[tuple[Any, Any]]:
    """Nodes below a node, and what to put in their places: never in annotations, texts, asserts, or what is raised."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert, ast.JoinedStr)):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.FunctionDef) and node.name == "__repr__":
        return
    if isinstance(node, ast.Expr) and (
        isinstance(node.value, ast.Constant) or ast.unparse(node.value).startswith("warnings.warn(")
    ):
        return
    for new in _variants(node, removable=isinstance(within, (ast.FunctionDef, ast.ClassDef, ast.stmt))):
        yield node, new
    tests = [node.test] if isinstance(node, (ast.If, ast.While, ast.IfExp)) else getattr(node, "ifs", [])
    for test in tests:
        if not isinstance(test, (ast.Compare, ast.UnaryOp)):
            yield test, ast.UnaryOp(ast.Not(), test)
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list", "exc", "cause"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and getattr(child, "arg", None) != "strict":
                    yield from _edits(child, node)


def _variants(node: Any, *, removable: bool) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    op = getattr(node, "op", None)
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(op) in OPPOSITE:
        yield _changed(node, op=OPPOSITE[type(op)]())
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    if isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            rest = node.values[:i] + node.values[i + 1 :]
            yield rest[0] if len(rest) == 1 else _changed(node, values=rest)
    if isinstance(node, ast.Compare):
        for i, sign in enumerate(node.ops):
            for table in (OPPOSITE, BOUNDARY):
                if type(sign) in table:
                    yield _changed(node, ops=[*node.ops[:i], table[type(sign)](), *node.ops[i + 1 :]])
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int):
            yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
        elif isinstance(node.value, float):
            yield ast.Constant(2 * node.value or 1.0)
    if isinstance(node, ast.Call):
        yield from _calls(node)
    if isinstance(node, ast.Slice):
        for bound in ("lower", "upper"):
            if (at := getattr(node, bound)) is not None:
                yield _changed(node, **{bound: None})
                yield _changed(node, **{bound: ast.BinOp(at, ast.Add(), ast.Constant(1))})
        if node.lower is None:
            yield _changed(node, lower=ast.Constant(1))
        if node.upper is None:
            yield _changed(node, upper=ast.Constant(-1))
    if isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    statements = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise, ast.Break, ast.Continue, ast.Delete)
    if removable and (
        isinstance(node, statements) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    ):
        yield ast.Pass()


def _calls(node: ast.Call) -> Iterator[ast.AST]:
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
    for name, value in fields.items():
        setattr(node, name, value)
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


def _run_pytest(writer: Any, tree: Path, arguments: list[str], seconds: dict[str, float] | None) -> None:
    os.setsid()
    os.chdir(tree)
    sys.path[0] = str(tree)
    os.environ["PYTHONPATH"] = str(tree)
    log = os.open(tree / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.dont_write_bytecode = seconds is not None  # of a mutant, which nobody may find later
    if seconds is not None:
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        try:
            importlib.import_module("mtopt")
        except Exception as error:
            writer.send({"verdict": "invalid", "by": repr(error)})
            return
    plugin = Chosen(seconds)
    code = pytest.main([*QUIET, *arguments], plugins=[plugin])
    verdict = {0: "survived", 5: "invalid"}.get(int(code), "killed")  # 5: there was nothing to run
    writer.send({"verdict": verdict, "by": plugin.failed, "seconds": plugin.seconds})


class Tests:
    """Which tests run which lines, and how long they take: from one run of the suite in the private tree."""

    def __init__(self, tree: Path, *, ranks: bool) -> None:
        self.ranks = ranks
        timings = tree / "seconds.json"
        if not timings.exists():
            ignored = [f"--ignore=tests/test_{name}.py" for name in AROUND.split()]
            coverage = ["--cov=mtopt", "--cov-context=test", "--cov-report="]
            answer = in_fork(tree, [*coverage, *ignored], None, 7200)
            timings.write_text(json.dumps(answer["seconds"]), encoding="utf-8")
        self.seconds: dict[str, float] = json.loads(timings.read_text(encoding="utf-8"))
        self.lines: dict[str, dict[int, set[str]]] = {}
        data = importlib.import_module("coverage").CoverageData(str(tree / ".coverage"))
        data.read()
        for file in data.measured_files():
            contexts = data.contexts_by_lineno(file)
            module = str(Path(file).relative_to(tree / "mtopt"))
            self.lines[module] = {line: {c.rpartition("|")[0] for c in found if c} for line, found in contexts.items()}

    def of(self, mutant: Mutant, most: float) -> dict[str, float]:
        """The tests for a mutant, with their seconds; no more than `most` seconds of them."""
        lines = self.lines.get(mutant.module, {})
        tree = ast.parse((ROOT / "mtopt" / mutant.module).read_bytes())
        placed: list[Any] = [node for node in ast.walk(tree) if hasattr(node, "lineno")]
        around = [node for node in placed if node.lineno <= mutant.line <= node.end_lineno]
        statement = [n for n in around if isinstance(n, ast.stmt)][-1]
        body = getattr(statement, "body", None)
        last: int = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
        names: set[str] = set().union(
            *(lines.get(line, set()) for line in range(statement.lineno, max(last, mutant.line) + 1))
        )
        functions = [n for n in around if isinstance(n, ast.FunctionDef)]
        if not functions or statement in functions:  # runs at import
            names = set().union(*lines.values())
        chosen: dict[str, float] = {}
        for name in sorted(names & self.seconds.keys(), key=self.seconds.__getitem__):
            if (most := most - self.seconds[name]) > 0:
                chosen[name] = self.seconds[name]
        if not chosen or (self.ranks and functions and "rank" in ast.unparse(functions[-1])):
            for name in self.seconds:
                if name.startswith(RANKS):
                    chosen[name] = 1000.0 + RANKS.index(name.split("::")[0])  # last, and file by file: they start ranks
        return chosen


def private_tree(tree: Path) -> None:
    """A copy of the repository that nobody else reads."""
    if not tree.exists():
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "__pycache__", ".coverage"))
    shutil.copytree(ROOT / "mtopt", tree / "mtopt", dirs_exist_ok=True)  # a run that was stopped leaves a mutant


def verdict_on(mutant: Mutant, tree: Path, tests: Tests, most: float) -> dict[str, Any]:
    chosen = tests.of(mutant, most)
    if not chosen:
        return {"verdict": "survived", "by": "no test runs it", "tests": 0}
    file = tree / "mtopt" / mutant.module
    before = file.read_bytes()
    new = mutant.new if mutant.bare else f"({mutant.new})"
    file.write_bytes(before[: mutant.start] + new.encode() + before[mutant.end :])
    for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
        compiled.unlink()  # it may have the same second in it
    try:
        files = sorted({name.split("::")[0] for name in chosen})
        answer = in_fork(
            tree,
            ["-x", *files],
            chosen,
            60 + 3 * sum(s for s in chosen.values() if s < 1000) + 240 * (max(chosen.values()) >= 1000),
        )
    finally:
        file.write_bytes(before)
    return {"verdict": answer["verdict"], "by": answer["by"], "tests": len(chosen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=320, help="how many mutants, over all modules")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--modules", nargs="*", default=CORE.split(), help="patterns below mtopt/, without .py")
    parser.add_argument("--output", type=Path, default=Path("mutants.jsonl"), help="one line of JSON for each")
    parser.add_argument("--tree", type=Path, default=Path("mutation-tree"), help="where the private copy is")
    parser.add_argument("--ranks", action="store_true", help="on several ranks, too, what names ranks: a minute each")
    parser.add_argument("--seconds", type=float, default=100.0, help="of tests for one mutant, at most")
    options = parser.parse_args()
    files = [file for pattern in options.modules for file in sorted((ROOT / "mtopt").glob(f"{pattern}.py"))]
    mutants = drawn([str(file.relative_to(ROOT / "mtopt")) for file in files], options.count, options.seed)
    output, tree = options.output.resolve(), options.tree.resolve()
    private_tree(tree)
    for name in PRELOAD.split():
        importlib.import_module(name)
    gc.freeze()
    tests = Tests(tree, ranks=options.ranks)
    lines = output.read_text(encoding="utf-8").splitlines() if output.exists() else []
    done = [json.loads(line) for line in lines]
    known = {(d["module"], d["start"], d["end"], d["new"]) for d in done}
    for mutant in sorted(
        mutants, key=lambda mutant: max(tests.of(mutant, options.seconds).values(), default=0) >= 1000
    ):
        if (mutant.module, mutant.start, mutant.end, mutant.new) in known:
            continue
        start = time.monotonic()
        found = {**asdict(mutant), **verdict_on(mutant, tree, tests, options.seconds)}
        done.append({**found, "took": round(time.monotonic() - start, 1)})
        with output.open("a", encoding="utf-8") as results:
            results.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
    for verdict, number in Counter(found["verdict"] for found in done).items():
        print(f"{verdict}: {number}")


if __name__ == "__main__":
    main()
