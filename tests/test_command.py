"""The command line: what compare and conflict_report give, mistakes in a few clear lines, nothing lost by Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_docs import blocks

import mtopt
from mtopt._command import demo as demo
from mtopt._command.main import main

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"

# Tests append what they change.
BASE = """
import torch
from torch import nn
import mtopt

batches = list(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)))
steps = []

def make_model():
    return nn.ModuleDict({"trunk": nn.Linear(5, 4), "a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})

def make_losses(model, batch):
    steps.append(batch)
    z = model["trunk"](batch).tanh()
    return {"up": (model["a"](z) - 1).square().mean(), "down": (model["b"](z) + 1).square().mean()}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the working directory: the base, and what is added to it."""
    monkeypatch.chdir(tmp_path)

    def write_file(added="", name="study.py", base=BASE):
        Path(name).write_text(base + added, encoding="utf-8")
        return name

    return write_file


def failed(arguments, capsys):
    """The exit code, and what was said."""
    try:
        code = main(arguments)
    except SystemExit as error:  # argparse
        code = error.code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, error


# -- what it gives -----------------------------------------------------------------------------------------------------


def test_every_command_of_the_page_runs_on_the_file_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = blocks(PAGE.read_text(encoding="utf-8"))
    (example,) = [block.text for block in page if block.language == "python"]
    Path("study.py").write_text(example, encoding="utf-8")
    commands = [line for block in page if block.language == "bash" for line in block.text.splitlines()]
    for command in commands:
        python, *arguments = shlex.split(command)
        assert [python, *arguments[:2]] == ["python", "-m", "mtopt"]
        assert main(arguments[2:]) == 0, command
        assert capsys.readouterr().out
    assert len(commands) == 5
    assert {path.name for path in tmp_path.iterdir()} > {"conflict.png", "study.png", "study.json", "study.jsonl"}


def test_compare_gives_what_mtopts_compare_gives(write):
    file = write("\nmethods = {'drop': mtopt.GradDrop(seed=1), 'mgda': mtopt.MGDA}\nseeds = [3, 5, 6]\nepochs = 2\n")
    assert main(["compare", file, "--json", "out.json", "--at", "trunk"]) == 0
    names = ("make_model", "make_losses", "batches", "methods", "seeds", "epochs")
    defined = runpy.run_path(file)
    expected = mtopt.compare(**{name: defined[name] for name in names}, at="trunk", progress=False).to_dict()
    found = json.loads(Path("out.json").read_text())
    for key in ("quantities", "complete", "study"):
        assert found[key] == json.loads(json.dumps(expected[key])), key


def test_report_gives_what_conflict_report_gives(write, capsys):
    file = write()
    assert main(["report", file, "--json", "out.json"]) == 0
    defined = runpy.run_path(file)
    torch.manual_seed(0)
    model = defined["make_model"]()
    expected = mtopt.conflict_report(defined["make_losses"](model, defined["batches"][0]), model).to_dict()
    found = json.loads(Path("out.json").read_text())
    assert {key: found[key] for key in ("losses", "modules", "total", "meetings")} == {
        key: expected[key] for key in ("losses", "modules", "total", "meetings")
    }
    assert "trunk" in capsys.readouterr().out


def test_options_win_over_the_file(write):
    file = write("\nmethods = {'drop': mtopt.GradDrop(leak=0.5)}\nat = {'drop': 'trunk'}\nseeds = 9\nseconds = 50\n")
    options = ["--methods", "drop", "RLW", "--seeds", "1", "--epochs", "2", "--json", "out.json"]
    assert main(["compare", file, *options]) == 0
    study = json.loads(Path("out.json").read_text())["study"]
    assert list(study["methods"]) == ["plain sum", "drop", "RLW"]
    assert "leak=0.5" in study["methods"]["drop"]
    assert (study["seeds"], study["epochs"], study["at"]) == ([0], 2, {"drop": "trunk"})
    assert main(["compare", file, "--methods", "RLW", "--seeds", "1", "--epochs", "1"]) == 0  # `at` has no RLW


def test_without_methods_it_is_graddrop(write, capsys):
    assert main(["compare", write(), "--seeds", "1"]) == 0
    assert "GradDrop: too few seeds." in capsys.readouterr().out


def test_the_files_folder_is_importable_and_everything_is_left_as_it_was(write, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    write("", "code/helper_beside.py", "from helper_below import late\n")
    (tmp_path / "code" / "helper_below").mkdir()
    write("", "code/helper_below/__init__.py", "late = 1\n")
    (tmp_path / "code" / "helper_late.py").write_text("")
    file = write(
        "\nimport helper_beside\nfrom dataclasses import dataclass\n@dataclass\nclass Own:\n    n: 'int' = 1\n"
        "def make_metrics(model):\n    import helper_late\n    return {'n': Own().n + helper_beside.late}\n",
        "code/study.py",
    )
    places, modules, state = list(sys.path), set(sys.modules), torch.get_rng_state()
    assert main(["compare", file, "--seeds", "1"]) == 0
    assert sys.path == places
    assert not [name for name in set(sys.modules) - modules if "helper" in name or "study" in name]
    assert torch.equal(torch.get_rng_state(), state)


def test_data_that_the_file_draws_are_the_same_in_each_command(write):
    draws = "batches = [torch.rand(4, 5) * random.random() * float(numpy.random.rand())]"
    file = write(f"\nimport random, numpy\n{draws}\n")
    for name in ("one.json", "other.json"):
        assert main(["report", file, "--json", name]) == 0
        torch.rand(3)
    one, other = (json.loads(Path(name).read_text()) for name in ("one.json", "other.json"))
    assert one["total"] == other["total"]


def test_a_file_may_have_the_name_of_a_library(write):
    assert main(["report", write(name="torch.py")]) == 0
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize("given", [[], ["--seeds", "2", "--output", "x.png"], ["demo", "--seeds", "2"]])
def test_without_a_part_it_is_the_demo(given, monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "run", lambda options: seen.append(options) or True)
    assert main(given) == 0
    assert [options.seeds for options in seen] == [2 if given else None]


@pytest.mark.parametrize("part", [[], ["demo"], ["compare"], ["report"]])
def test_help_has_examples_that_are_commands(part, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*part, "--help"])
    text = capsys.readouterr().out
    examples = re.findall(r"^  python -m mtopt(.*)$", text.partition("examples:")[2], re.MULTILINE)
    assert examples
    assert max(map(len, text.splitlines())) <= 80
    for example in examples:
        words = example.split("   ")[0].split()
        assert not words or words[0] in ("demo", "compare", "report")


def test_the_file_in_the_help_of_compare_is_one_that_it_takes(write, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--help"])
    text = capsys.readouterr().out.partition("a FILE.py:\n")[2].partition("\nexamples:")[0]
    file = write(base="\n".join(line[2:] for line in text.splitlines()) + "\n")
    assert main(["compare", file, "--seeds", "1"]) == 0


def test_the_version_is_mtopts(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"mtopt {mtopt.__version__}\n"


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comapre", "study.py"], "there is no command 'comapre'. Did you mean 'compare'?"),
        (["xyz"], "there is no command 'xyz'. There are demo, compare, report."),
        (["study.py"], "To look at the losses of that file: python -m mtopt report study.py"),
        (["my study.py"], "python -m mtopt report 'my study.py'"),
        (["digits"], "there is no command 'digits'. Did you mean: python -m mtopt demo digits"),
        (["--sedes", "3"], "unrecognized arguments: --sedes"),
        (["compare"], "the following arguments are required: FILE.py"),
        (["compare", "studi.py"], "there is no file 'studi.py'. Did you mean 'study.py'?"),
        (["report", "notes.txt"], "'notes.txt' is not a Python file: its name must end in .py"),
        (["report", "."], "'.' is a folder. Name a Python file in it"),
        (["compare", "study.py", "--methods", "GradDorp"], "is no method of mtopt. Did you mean 'GradDrop'"),
        (["compare", "study.py", "--methods", "drip"], "Did you mean 'drop'"),
        (["compare", "study.py", "--methods", "plain sum"], "`methods` is empty"),
        (["compare", "study.py", "--seeds", "0"], "--seeds: must be a whole number from 1"),
        (["compare", "study.py", "--seconds", "nan"], "--seconds: must be a number above 0"),
        (["compare", "study.py", "--seconds", "1", "--epochs", "1"], "not allowed with argument"),
        (["compare", "study.py", "--output", "no/x.jsonl"], "--output: cannot write 'no/x.jsonl': No such file"),
        (["compare", "study.py", "--output", "study.py"], "--output: must end in .jsonl, but it is 'study.py'"),
        (["report", "study.py", "--plot", "picture.txt"], "--plot: must end in one of .png, .pdf, .svg"),
        (["report", "study.py", "--json", "study.py"], "--json: must end in .json"),
        (["compare", "study.py", "--output", "other.jsonl"], "`output`, other.jsonl, is not a file of finished runs"),
    ],
)  # fmt: skip
def test_wrong_use_ends_with_2_before_any_step(arguments, message, write, capsys):
    write("\nmethods = {'drop': mtopt.GradDrop()}\nmake_losses = lambda model, batch: 1 / 0\n")
    Path("notes.txt").touch()
    Path("other.jsonl").write_text("{}\n")
    code, error = failed(arguments, capsys)
    assert code == 2
    assert message in error


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("make_loss = batches = len\n", "`make_model`: a function that returns a new model."),
        ("make_loss = batches = len\n", "returns the losses. It has `make_loss`: if that is it, call it so."),
        ("make_batches = len\n", "It has `make_batches`"),
        (BASE + "\nbatches = iter(batches)\n", "`batches` is a list_iterator, which is used up after one run"),
        (BASE + "\nmake_model = make_model()\n", "`make_model` must be a function that returns a new model"),
        (BASE + "\nmethods = {'drop': 3}\n", "`methods['drop']` must be a transform"),
        (BASE + "\nmethods = ['drop']\n", "'drop', which is no method of mtopt"),
        (BASE + "\nseeds = 0\n", "`seeds` must be 1 or more"),
        (BASE + "\nat = {'drop': 'trunk'}\n", "`at` has 'drop', which is none of the `methods`"),
        ("x = 1\0\n", "study.py is not a Python file"),
    ],
)
def test_a_file_that_is_not_as_it_must_be_ends_with_2(source, message, write, capsys):
    code, error = failed(["compare", write(base=source)], capsys)
    assert (code, message in error) == (2, True), error


@pytest.mark.parametrize("part", ["compare", "report"])
@pytest.mark.parametrize(
    ("added", "line", "message"),
    [
        ("\nx = 1 / 0\n", "x = 1 / 0", "ZeroDivisionError: division by zero"),
        ("\nimport no_such_package\n", "import no_such_package", "ModuleNotFoundError: No module named"),
        ("\nraise SystemExit(3)\n", "raise SystemExit(3)", "SystemExit: 3"),
        ("\nmtopt.GradDrop(leak=2)\n", "mtopt.GradDrop(leak=2)", "`leak` must be between 0"),
        (
            "\ndef make_model():\n    return undefined\n",
            "return undefined",
            "NameError: name 'undefined' is not defined",
        ),
        (
            "\ndef make_losses(model, batch):\n    return [model['trunk'](batch[:, 1:]).sum()]\n",
            "return [model['trunk'](batch[:, 1:]).sum()]",
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        ),
        ("\ndef batches(seed):\n    yield from missing\n", "yield from missing", "NameError: name 'missing'"),
    ],
)
def test_an_error_in_the_file_shows_its_line_and_ends_with_1(part, added, line, message, write, capsys):
    code, error = failed([part, write(added)], capsys)
    assert code == 1
    place, shown, *rest = [text for text in error.splitlines() if not text.startswith("Trying")]
    number = (BASE + added).splitlines().index(next(text for text in added.splitlines() if line in text)) + 1
    assert place.startswith(f"study.py, line {number}")
    assert shown.strip() == line
    assert rest[0].startswith(message)


@pytest.mark.parametrize("part", ["compare", "report"])
def test_a_file_that_is_not_python_shows_its_line_and_ends_with_2(part, write, capsys):
    code, error = failed([part, write("\ndef f(:\n")], capsys)
    assert code == 2
    assert re.match(r"study.py, line \d+:\n    def f\(:\nSyntaxError: invalid syntax\n", error)


@pytest.mark.parametrize("part", ["compare", "report"])
def test_a_file_that_cannot_be_read_ends_with_2(part, write, monkeypatch, capsys):
    def forbidden(self, mode):
        raise PermissionError(13, "Permission denied")

    file = write()
    monkeypatch.setattr(Path, "open", forbidden)
    assert failed([part, file], capsys)[0] == 2


def test_an_error_in_a_module_beside_the_file_shows_that_ones_line(write, capsys):
    write("", "helper_raises.py", "def metrics(model):\n    return 1 / 0\n")
    code, error = failed(["compare", write("\nfrom helper_raises import metrics as make_metrics\n")], capsys)
    assert code == 1
    assert "helper_raises.py, line 2, in metrics:\n    return 1 / 0\nZeroDivisionError" in error


def test_traceback_shows_all_calls(write, capsys):
    assert main(["report", write("\ndef make_model():\n    return 1 / 0\n"), "--traceback"]) == 1
    assert re.search(
        r"Traceback .*command/report.py.*in make_model.*ZeroDivisionError", capsys.readouterr().err, re.DOTALL
    )


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("\nmake_losses = lambda model, batch: []\n", "`make_losses` returned no losses: []. Return a list or a dict"),
        ("\nmake_losses = lambda model, batch: None\n", "`make_losses` returned no losses: None"),
        ("\nmake_losses = lambda model, batch: batch.sum()\n", "`make_losses` must return a list or a dict of losses"),
        ("\nmake_model = lambda: 3\n", "`make_model` must return a torch.nn.Module, but it returned int"),
        ("\nbatches = []\n", "`batches` has no batch"),
    ],
)
@pytest.mark.parametrize("part", ["compare", "report"])
def test_a_function_that_returns_the_wrong_thing_ends_with_2(part, added, message, write, capsys):
    code, error = failed([part, write(added)], capsys)
    assert (code, message in error) == (2, True), error


@pytest.mark.parametrize(
    ("added", "message", "expected"),
    [
        ("\nmethods = {'x': mtopt.RLW(), 'y': mtopt.GradDrop(leak={'sideways': 1.0})}\n", "In a first step of 'y'", 2),
        ("\ndef make_metrics(model):\n    return {'x': model['missing']}\n", "KeyError: 'missing'", 1),
        ("\nat = 'trunc'\n", "Did you mean 'trunk'", 2),
        ("\nmake_optimizer = lambda parameters: 3\n", "`make_optimizer` must return a plain torch.optim.Optimizer", 2),
        ("\nmake_model = lambda: nn.ModuleDict({n: nn.Linear(5, 1) for n in ('trunk', 'a', 'b')})\n"
         "make_losses = lambda model, batch: {n: model[n](batch).mean() for n in 'ab'}\n", "share nothing", 2),
    ],
)  # fmt: skip
def test_what_would_fail_in_the_end_fails_before_the_training(added, message, expected, write, capsys):
    code, error = failed(["compare", write(added), "--output", "runs.jsonl"], capsys)
    assert code == expected
    assert message in error
    assert "Nothing is trained yet." in error
    assert not Path("runs.jsonl").exists()


@pytest.mark.parametrize("option", [["--at", "trunc"], ["--at", "parameters.weight"]])
def test_a_site_that_the_model_has_not_ends_with_2(option, write, capsys):
    code, error = failed(["compare", write(), *option], capsys)
    assert (code, "the model has no" in error) == (2, True), error


def test_losses_that_change_their_number_in_the_training_are_refused_and_finished_runs_kept(write, capsys):
    file = write(
        "\nall_losses = make_losses\ndef make_losses(model, batch):\n    losses = all_losses(model, batch)\n"
        "    return losses if len(steps) < 8 else {'up': losses['up']}\n"
    )
    code, error = failed(["compare", file, "--output", "runs.jsonl"], capsys)
    assert code == 1
    assert "`make_losses` returned 1 losses, ['up'], but 2 before" in error
    assert "Finished runs are in runs.jsonl" in error
    assert len(Path("runs.jsonl").read_text().splitlines()) == 2


def test_a_loss_that_is_nan_is_a_diverged_run_and_the_others_go_on(write, capsys):
    file = write("\nmethods = {'huge': mtopt.ConstantWeights(3e38), 'drop': mtopt.GradDrop()}\n")
    assert main(["compare", file, "--seeds", "3", "--plot", "x.png", "--methods", "huge", "drop"]) == 0
    text = capsys.readouterr().out
    assert "huge: diverged in 3 of 3 runs" in text
    assert "drop: no difference found" in text
    assert "The first that diverged: huge, seed 0: " in text
    assert Path("x.png").stat().st_size > 10_000


def test_a_study_of_which_nothing_is_left_shows_why_and_has_no_picture(write, capsys):
    file = write("\nfirst = make_losses\nmake_losses = lambda m, b: [sum(first(m, b).values()) * float('nan')]\n")
    assert main(["compare", file, "--seeds", "1", "--plot", "x.png"]) == 1
    shown = capsys.readouterr()
    assert "loss 0 was nan in step 1" in shown.out
    assert "There is nothing to draw" in shown.err


def test_a_name_that_is_nearly_an_optional_one_is_noted(write, capsys):
    assert main(["report", write("\nmake_metric = len\nmake_data = len\n")]) == 0
    assert (
        capsys.readouterr().err
        == "Note: study.py has no `make_metrics`. It has `make_metric`: if that is it, call it so.\n"
    )


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("scipy.special", ["compare"], "compare"),
        ("rich.progress", ["compare"], "compare"),
        ("matplotlib.figure", ["compare", "--plot", "x.png"], "plot"),
        ("matplotlib.figure", ["report", "--plot", "x.png"], "plot"),
    ],
)
def test_a_missing_extra_says_how_to_install_it_before_the_file_is_run(
    module, arguments, extra, write, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    code, error = failed([*arguments, write("\n1 / 0\n")], capsys)
    assert code == 1
    assert f'needs {module.partition(".")[0]}. Install it with: pip install "mtopt[{extra}]"' in error


def test_no_extra_is_imported_before_it_is_needed():
    code = "import sys, mtopt._command.main; print({'scipy', 'rich', 'matplotlib', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "set()\n"


# -- interrupted, killed, cut off --------------------------------------------------------------------------------------


SIGNALS_ITSELF = """
import os, signal
from pathlib import Path

def make_metrics(model):
    if signal_at and Path("runs.jsonl").exists() and len(Path("runs.jsonl").read_text().splitlines()) == signal_at:
        os.kill(os.getpid(), NAME)
    return {"norm": model["trunk"].weight.norm()}
"""


def run_alone(arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mtopt", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


@pytest.mark.parametrize("name", ["signal.SIGINT", "signal.SIGKILL"])
def test_after_ctrl_c_or_a_kill_the_same_command_goes_on(name, write, capsys):
    ends = SIGNALS_ITSELF.replace("NAME", name)
    command = ["compare", write(ends + "\nsignal_at = 3\n"), "--seeds", "2", "--output", "runs.jsonl"]
    done = run_alone([*command, "--json", "partly.json"])
    kept = Path("runs.jsonl").read_bytes()
    assert kept.count(b"\n") == 3  # the study, and two of four runs
    if name == "signal.SIGINT":
        assert done.returncode == 130
        assert "Traceback" not in done.stderr
        assert "only 2 of 4 runs are finished" in done.stderr
        assert json.loads(Path("partly.json").read_text())["complete"] is False
    else:
        assert done.returncode == -signal.SIGKILL
    write(ends + "\nsignal_at = 0\n")
    assert main(command) == 0
    assert Path("runs.jsonl").read_bytes().startswith(kept)
    assert Path("runs.jsonl").read_bytes().count(b"\n") == 5
    assert "2 methods, 2 seeds, 1 epoch each" in capsys.readouterr().out


@pytest.mark.parametrize(
    "added",
    ["\nraise KeyboardInterrupt\n", "\ndef make_losses(model, batch):\n    raise KeyboardInterrupt\n"],
)
@pytest.mark.parametrize("part", ["compare", "report"])
def test_ctrl_c_before_the_training_ends_with_130(part, added, write, capsys):
    code, error = failed([part, write(added)], capsys)
    assert code == 130
    assert error.splitlines()[-1] == "Interrupted."


def test_a_reader_that_goes_away_is_no_traceback(write):
    command = [sys.executable, "-m", "mtopt", "report", write()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_terminal_without_all_letters_gets_the_results(write):
    done = run_alone(["compare", write(), "--seeds", "2"], PYTHONIOENCODING="ascii", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert re.search(r"plain sum +\d\.\d+ \? ", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout + done.stderr
