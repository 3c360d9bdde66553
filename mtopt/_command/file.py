"""The user's file: run, with its folder to import from, and what it defines for `compare`. No training."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from .._comparison.randomness import RandomStream
from .failures import UsageError

NEEDED = {
    "make_model": "a function that returns a new model",
    "make_losses": "a function of a model and a batch that returns the losses",
    "batches": "a list of batches or a DataLoader; or a function of the seed that returns those of one epoch",
}
OPTIONAL = ("methods", "seeds", "make_optimizer", "make_metrics", "at", "epochs", "seconds")


@contextmanager
def loaded(path: Path) -> Iterator[dict[str, Any]]:
    """The arguments of `compare` that a file defines by their names.

    Until it is left, modules beside the file can be imported; then `sys.path` is as it was, and these modules are gone.

    Raises:
        UsageError: If it is no Python file, or lacks one of what is needed.
    """
    folder = path.resolve().parent
    known, places = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        defined = _run(path)
        _check(defined, path)
        yield {name: defined[name] for name in (*NEEDED, *OPTIONAL) if name in defined}
    finally:
        sys.path[:] = places
        # Not those of libraries, which cannot be imported twice.
        roots = {name.partition(".")[0] for name in sys.modules.keys() - known} - known
        theirs = {name for name in roots if _is_beside(sys.modules.get(name), folder)}
        for name in [name for name in sys.modules if name.partition(".")[0] in theirs]:
            del sys.modules[name]


def _run(path: Path) -> dict[str, Any]:
    """What the file defines. It is a module while it runs: dataclasses, pickle and worker processes look for it."""
    name = path.stem
    while name in sys.modules:  # a file called torch.py must not hide torch
        name = f"_{name}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        code = compile(path.read_bytes(), path.resolve(), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        if getattr(error, "filename", None):
            raise
        raise UsageError(f"{path} is not a Python file: {error}.") from error  # it has zero bytes
    sys.modules[name] = module
    with RandomStream(0):  # data that it draws are the same when a study goes on
        exec(code, vars(module))
    return vars(module)


def _check(defined: Mapping[str, Any], path: Path) -> None:
    others = [name for name in defined if name not in (*NEEDED, *OPTIONAL) and not name.startswith("_")]
    missing = [name for name in NEEDED if name not in defined]
    if missing:
        lines = [f"`{name}`: {NEEDED[name]}.{_is_it(_near(name, others))}" for name in missing]
        raise UsageError("\n  ".join([f"{path} must define", *lines]))
    for other in [name for name in others if name.startswith("make_")]:
        name = _near(other, OPTIONAL)
        if name is not None and name not in defined:
            print(f"Note: {path} has no `{name}`.{_is_it(other)}", file=sys.stderr)


def _near(name: str, names: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.7)), None)


def _is_it(other: str | None) -> str:
    return "" if other is None else f" It has `{other}`: if that is it, call it so."


def _is_beside(module: ModuleType | None, folder: Path) -> bool:
    """Whether a module is a file in the folder, or a package there."""
    if module is None:
        return False
    file = getattr(module, "__file__", None)
    places = [Path(file).resolve()] if file else [Path(place).resolve() for place in getattr(module, "__path__", [])]
    return any(place.parent in (folder, folder / module.__name__) for place in places)
