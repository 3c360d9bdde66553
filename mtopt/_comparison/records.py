"""The file of finished runs, one JSON object a line, that a killed study goes on from. No training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .runs import RunRecord

_FORMAT = 1


class Records:
    """The finished runs of a study, in memory and, if there is a path, in a file to which each is added at once.

    Args:
        path: The file, or `None`.
        description: What must be the same for runs to belong together.

    Raises:
        OSError: If the file cannot be read or written.
        ValueError: If it is something else, or of another study.
    """

    def __init__(self, path: str | os.PathLike[str] | None, description: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.runs: list[RunRecord] = []
        self._first_line = _line({"mtopt.compare": _FORMAT, "study": description})
        self._begun = False
        if self.path is not None:
            content = _content_of_writable(self.path)
            self.runs, whole = self._read(content, self.path)
            self._begun = whole > 0
            if whole < len(content):
                os.truncate(self.path, whole)

    def add(self, run: RunRecord) -> None:
        """Add a run that is finished; it is on the disk when this returns."""
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write((b"" if self._begun else self._first_line) + _line(run))
                file.flush()
                os.fsync(file.fileno())
            self._begun = True
        self.runs.append(run)

    def _read(self, content: bytes, path: Path) -> tuple[list[RunRecord], int]:
        """The runs, and how many bytes of the file are whole lines: the last may be torn, if the process was killed."""
        lines = content.splitlines(keepends=True)
        objects = [_object(line) for line in lines]
        if objects and objects[-1] is None and (len(lines) > 1 or self._first_line.startswith(content)):
            lines, objects = lines[:-1], objects[:-1]
        if not objects:
            return [], 0
        first, *runs = objects
        if first is None or first.get("mtopt.compare") != _FORMAT or None in runs:
            raise ValueError(f"`output`, {path}, is not a file of finished runs that compare has written. {_WAY_OUT}")
        self._check_same_study(first["study"], path)
        return [run for run in runs if run is not None], sum(map(len, lines))

    def _check_same_study(self, there: dict[str, Any], path: Path) -> None:
        here = json.loads(self._first_line)["study"]
        differing = [
            f"`{key}` is {there.get(key, 'not given')} there and {here.get(key, 'not given')} here"
            for key in {**there, **here}
            if there.get(key) != here.get(key)
        ]
        if differing:
            raise ValueError(f"`output`, {path}, has the runs of another study: {'; '.join(differing)}. {_WAY_OUT}")


_WAY_OUT = "Give another path, or delete it to start anew."


def _content_of_writable(path: Path) -> bytes:
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
        content = path.read_bytes()
    except OSError as error:
        message = f"`output` cannot be written ({error.strerror}): give a path in a folder that exists and is yours"
        raise OSError(error.errno, message, str(path)) from None
    if not existed:
        path.unlink()
    return content


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any] | None:
    """`None` if the line is torn."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
