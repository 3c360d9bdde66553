"""What went wrong, in a few lines for the user, with the place in the user's own file. No exit codes."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
NOT_THEIRS = (PACKAGE, Path(sysconfig.get_path("stdlib")).resolve())
SENTENCES = (TypeError, ValueError, RuntimeError, ImportError, OSError)  # what mtopt raises with all that it has to say


class UsageError(Exception):
    """The command or the file is not as it must be, in words for the user."""


@contextmanager
def usage(file: Path) -> Iterator[None]:
    """What mtopt refuses in here is wrong use of the file or the options; what the user's own code raises is not.

    Raises:
        UsageError: With what mtopt has to say.
    """
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        refused = _is_in(frames[-1].filename, PACKAGE) and (frames[-1].line or "").startswith("raise ")
        if not refused or _of_user(frames, file):
            raise
        raise UsageError("\n".join([str(error), *getattr(error, "__notes__", [])])) from error


def explained(error: BaseException, file: Path | None) -> str:
    """The user's line that it came from, if there is one, and what it says.

    Args:
        error: Whatever was raised.
        file: The user's file; its folder tells whose code is whose.
    """
    frames = traceback.extract_tb(error.__traceback__)
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        frames.append(traceback.FrameSummary(error.filename, error.lineno, "<module>", line=error.text))
        message = f"{type(error).__name__}: {error.msg}"
    elif isinstance(error, SENTENCES) and frames and _is_in(frames[-1].filename, PACKAGE):
        message = str(error)
    theirs = [] if file is None else _of_user(frames, file)
    lines = [*_place(theirs[-1]), message] if theirs else [message]
    lines += getattr(error, "__notes__", [])
    if theirs or message != str(error):
        lines.append("(--traceback shows all that led there.)")
    return "\n".join(lines)


def _of_user(frames: Sequence[traceback.FrameSummary], file: Path) -> list[traceback.FrameSummary]:
    """Those in the user's own code, which is in the file's folder or below."""
    return [frame for frame in frames if _is_theirs(frame.filename, file.resolve().parent)]


def _place(frame: traceback.FrameSummary) -> list[str]:
    where = "" if frame.name == "<module>" else f", in {frame.name}"
    line = [f"    {frame.line.strip()}"] if frame.line else []
    return [f"{os.path.relpath(frame.filename)}, line {frame.lineno}{where}:", *line]


def _is_theirs(filename: str, folder: Path) -> bool:
    """Whether code is the user's own, and not a library's that is in a folder below."""
    inside = _is_in(filename, folder) and "site-packages" not in Path(filename).parts
    return inside and not any(_is_in(filename, other) for other in NOT_THEIRS)


def _is_in(filename: str, folder: Path) -> bool:
    return not filename.startswith("<") and Path(filename).resolve().is_relative_to(folder)
