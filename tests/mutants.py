"""Small faults in the source of mtopt: which there are in a module, and some of them at random. Runs nothing."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1] / "mtopt"

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
    source = (PACKAGE / module).read_bytes()
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
