"""What mkdocstrings shows of a public name: when to use it, from docs/api/index.md, and nothing internal."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import griffe

INDEX = Path(__file__).parent / "api/index.md"
ROW = re.compile(r"^\| \[`(\w+)`\]\[mtopt\.\1\] \| (.+) \|$", re.MULTILINE)


def uses(index: str) -> dict[str, str]:
    """When to use each name, by the tables of the index."""
    return dict(ROW.findall(index))


class Shown(griffe.Extension):
    """Changes docstrings before they are parsed, and signatures before they are formatted."""

    def on_object(self, *, obj: griffe.Object, **more: Any) -> None:
        """The parser knows `Examples:` only, and would make a quotation of the singular."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_package(self, *, pkg: griffe.Module, **more: Any) -> None:
        """Say when to use a name, and spell out what its signatures say in the package's own words."""
        when = uses(INDEX.read_text(encoding="utf-8"))
        for public, member in pkg.members.items():
            if public not in when:
                continue
            shown = member.final_target if isinstance(member, griffe.Alias) else member
            if shown.docstring:
                summary, _, rest = shown.docstring.value.partition("\n\n")
                shown.docstring.value = f"{summary}\n\n**Use it when** {when[public]}.\n\n{rest}"
            for function in [shown, *shown.members.values()]:
                if isinstance(function, griffe.Function):
                    _show(function)


def _show(function: griffe.Function) -> None:
    """Without `*more`, which only makes a better error message."""
    if "more" in function.parameters:
        del function.parameters["more"]
    for parameter in function.parameters:
        parameter.annotation = _spelled_out(parameter.annotation, function.modules_collection)


def _spelled_out(part: Any, modules: griffe.ModulesCollection) -> Any:
    """An annotation with the unions that the package gives a name to, in place of these names."""
    if isinstance(part, griffe.ExprName):
        if not part.canonical_path.startswith("mtopt."):
            return part
        named = modules[part.canonical_path]
        return _spelled_out(named.value, modules) if named.is_attribute else part
    for field in fields(part) if isinstance(part, griffe.Expr) else ():
        value = getattr(part, field.name)
        if isinstance(value, griffe.Expr):
            setattr(part, field.name, _spelled_out(value, modules))
        elif isinstance(value, list | tuple):
            setattr(part, field.name, [_spelled_out(each, modules) for each in value])
    return part
