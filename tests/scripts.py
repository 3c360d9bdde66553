"""The scripts in docs/examples: run as their docstrings say, or read for use in this process."""

from __future__ import annotations

import ast
import os
import re
import runpy
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs/examples"
PORT_OF_ITS_OWN = ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
PROGRAMS = {"python": [], "torchrun": ["-m", "torch.distributed.run", *PORT_OF_ITS_OWN]}


def command_line(name: str) -> str:
    """How to run an example, by its docstring."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8")))
    (line,) = re.findall(r"^    (.+)$", docstring, re.MULTILINE)
    return line


@cache
def printed(name: str, package: str) -> str:
    """What an example prints when it runs as its docstring says."""
    pytest.importorskip(package)
    program, *arguments = command_line(name).split()
    command = [sys.executable, *PROGRAMS[program], *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=130)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its ranks, too
            raise
    assert process.returncode == 0, err
    return out


def check_that_losses_fall(name: str, package: str) -> None:
    changes = re.findall(r"^.+: (\S+) -> (\S+)$", printed(name, package), re.MULTILINE)
    assert changes
    assert all(0 < float(last) < 0.5 * float(first) for first, last in changes)


def example(name: str, package: str) -> SimpleNamespace:
    """An example's names, for use in this process."""
    pytest.importorskip(package)
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py")))


def nothing_left_behind(tmp_path, monkeypatch):
    """Trainers write into the folder, seed everything, set variables, and Accelerate keeps its state in its classes."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with mock.patch.dict(os.environ), torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    if "accelerate" in sys.modules:
        state = sys.modules["accelerate.state"]
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


def assert_same_parameters(one: nn.Module, other: nn.Module) -> None:
    for mine, yours in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, yours, rtol=0, atol=0)
