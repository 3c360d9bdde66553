"""The demo: what its command line promises, and that what it compares is what it says."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

from mtopt._command import demo as command
from mtopt._command.main import main
from mtopt._comparison.study import checked_study
from mtopt._comparison.trial import first_batch
from mtopt._demo import data, problem
from mtopt._demo.problem import METHODS, Net, losses_of

TIME = "time per step"


def run_demo(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mtopt", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "80", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, "--seeds", "3", "--epochs", "1")


@pytest.fixture
def small(monkeypatch):
    """A demo of few digits."""
    monkeypatch.setattr(data, "N_TRAIN_DIGITS", 256)
    monkeypatch.setattr(data, "TEST_ROUNDS", 1)


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_demo_prints_every_method_and_writes_a_picture(demo):
    folder, done = demo
    assert done.returncode == 0, done.stderr
    assert all(done.stdout.count(f"  {method} ") >= 4 for method in ("plain sum", *METHODS))
    assert all(f"\n{method}: " in done.stdout for method in METHODS)
    assert "accuracy left" in done.stdout
    assert done.stdout.splitlines()[-1] == "Picture: mtopt-demo.png"
    picture = (folder / "mtopt-demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_the_demo_says_plainly_where_it_found_no_difference(demo):
    _, done = demo
    assert "no difference found" in done.stdout
    assert "No difference found does not mean equal" in done.stdout


def test_the_demo_fits_in_80_columns_and_keeps_progress_out_of_the_results(demo):
    _, done = demo
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "12/12 runs" in done.stderr
    assert "runs" not in done.stdout


def test_same_seed_gives_the_same_numbers(demo, tmp_path):
    again = run_demo(tmp_path, "--seeds", "3", "--epochs", "1", OMP_NUM_THREADS="2")
    first, second = (done.stdout.partition(TIME)[0] for done in (demo[1], again))
    assert first == second
    assert "accuracy right" in first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds: must be a whole number from 1"),
        (["--epochs", "many"], "--epochs: must be a whole number from 1"),
        (["--seed", "-1"], "--seed: must be a whole number from 0"),
        (["--output", "picture.txt"], "--output: must end in one of .png"),
        (["--output", "no/such/folder/picture.png"], "--output: cannot write"),
    ],
)
def test_wrong_options_end_with_2_before_any_training(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(command, "run", lambda options: pytest.fail("it ran"))
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_checking_the_output_neither_leaves_nor_empties_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run", lambda options: True)
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    old.write_text("kept")
    for path in (old, new):
        assert main(["--output", str(path)]) == 0
    assert old.read_text() == "kept"
    assert not new.exists()


@pytest.mark.parametrize("extra", command.EXTRAS)
def test_a_missing_extra_says_what_to_install(extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, extra, None)
    assert main([]) == 1
    name = extra.partition(".")[0]
    assert capsys.readouterr().err == f'The demo needs {name}. Install it with: pip install "mtopt[demo]"\n'


@pytest.mark.parametrize(("finished", "shown"), [(0, False), (5, True)])
def test_an_interruption_shows_the_finished_runs_and_ends_with_130(
    finished, shown, small, monkeypatch, capsys, tmp_path
):
    started = []

    def interrupted(net, batch):
        started.append(net)
        if len({id(net) for net in started}) > 1 + finished:  # one more for the conflict before training
            raise KeyboardInterrupt
        return losses_of(net, batch)

    monkeypatch.setattr(problem, "losses_of", interrupted)
    picture = tmp_path / "picture.png"
    assert main(["--epochs", "1", "--output", str(picture)]) == 130
    out, err = capsys.readouterr()
    assert f"only {finished} of 24 runs are finished" in err
    assert ("peak memory" in err) is shown
    assert out == ""
    assert not picture.exists()


def test_a_picture_that_cannot_be_written_costs_no_results(small, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()

    def removed(net, batch):
        folder.rmdir() if folder.exists() else None
        return losses_of(net, batch)

    monkeypatch.setattr(problem, "losses_of", removed)
    assert main(["--seeds", "1", "--epochs", "1", "--output", str(folder / "picture.png")]) == 1
    out, err = capsys.readouterr()
    assert "peak memory" in out
    assert str(folder) in err
    assert "Traceback" not in err


def test_a_run_leaves_random_state_and_threads_as_they_were(small, tmp_path, capsys):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    assert main(["--seeds", "1", "--epochs", "1", "--output", str(tmp_path / "picture.svg")]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


# -- what is compared --------------------------------------------------------------------------------------------------


def test_no_test_digit_is_in_a_training_picture(monkeypatch):
    monkeypatch.setattr(data, "_digits", lambda: (torch.zeros(1797, 8, 8), torch.arange(1797)))
    made = data.Data(0)
    trained = {int(n) for _ in range(2) for label in made.epoch().labels.values() for n in label}
    tested = {int(n) for label in made.test.labels.values() for n in label}
    assert trained.isdisjoint(tested)
    assert len(trained) + len(tested) == 1797


def test_partners_and_order_change_from_epoch_to_epoch():
    made = data.Data(0)
    one, other = made.epoch(), made.epoch()
    for task in data.TASKS:
        assert not torch.equal(one.labels[task], other.labels[task])
        assert torch.equal(one.labels[task].bincount(), other.labels[task].bincount())


def test_a_picture_shows_the_labelled_digit_on_each_side(monkeypatch):
    brightness = torch.arange(1797) / 1796
    monkeypatch.setattr(data, "_digits", lambda: (brightness[:, None, None].expand(-1, 8, 8), torch.arange(1797)))
    pictures = data.Data(0).test
    left, right = (brightness[pictures.labels[task]] for task in data.TASKS)
    assert torch.equal(pictures.images[:, 0, 0, 0], left)
    assert torch.equal(pictures.images[:, 0, -1, -1], right)
    assert torch.equal(pictures.images[:, 0, 5, 5], torch.maximum(left, right))


def test_the_accuracy_is_the_share_of_right_answers_among_the_test_pictures():
    made = problem.problem(0, 1)
    pictures = data.Data(0).test
    one_hot = {task: torch.eye(10)[pictures.labels[task]] for task in data.TASKS}
    one_hot["right"][: len(pictures.images) // 2] = -one_hot["right"][: len(pictures.images) // 2]
    accuracies = made["make_metrics"](lambda images: one_hot)
    assert [float(accuracy) for accuracy in accuracies.values()] == pytest.approx([100, 50])


def test_the_learning_rate_falls_to_0_at_the_end():
    inner = problem.problem(0, 2)["make_optimizer"]([torch.nn.Parameter(torch.ones(1))])
    n_steps = 2 * len(problem.problem(0, 2)["batches"](0))
    rates = []
    for _ in range(n_steps):
        rates.append(inner.param_groups[0]["lr"])
        inner.step()
    assert rates[0] == problem.LEARNING_RATE
    assert all(before > after for before, after in itertools.pairwise(rates))
    assert inner.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_the_conflict_that_it_tells_is_that_of_plain_autograd():
    study = checked_study(**problem.problem(0, 1), seeds=[0])
    torch.manual_seed(0)
    net = Net()
    seen = []
    net.trunk.register_forward_hook(lambda module, inputs, output: seen.append(output))
    losses = losses_of(net, first_batch(study, 0))
    rows = [torch.autograd.grad(loss, seen[-1], retain_graph=True)[0] for loss in losses.values()]
    share = (rows[0] * rows[1] < 0).sum() / ((rows[0] != 0) | (rows[1] != 0)).sum()
    assert f"at {100 * share:.0f} % of the numbers" in command._conflict_at_start(study)
