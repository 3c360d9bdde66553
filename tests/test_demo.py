"""The demo: what its command line promises, and that what it compares is what it says."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mtopt
from mtopt._command import demo as command
from mtopt._command import demo_digits, demo_physics
from mtopt._command.main import main
from mtopt._comparison.statistics import Cost, Quantity, Result, Summary
from mtopt._comparison.study import checked_study
from mtopt._comparison.trial import first_batch
from mtopt._demo import data, digits, training, wave
from mtopt._demo.digits import METHODS, Net, losses_of
from mtopt._demo.fields import Fields

DOCS = Path(__file__).parents[1] / "docs"
SHORT = ["--seeds", "3", "--epochs", "1", "--steps", "4"]


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
    return folder, run_demo(folder, *SHORT)


@pytest.fixture
def small(monkeypatch):
    """A demo of few digits."""
    monkeypatch.setattr(data, "N_TRAIN_DIGITS", 256)
    monkeypatch.setattr(data, "TEST_ROUNDS", 1)


def without_times(text):
    """The lines of the tables go without their last cells, which are times."""
    return [line.rsplit(maxsplit=1)[0] if line.startswith(ROWS) else line for line in text.splitlines() if line.strip()]


ROWS = ("equal weights", "swept sum", "recipe", "plain sum", *METHODS)  # in their order, the recipe in both tables

# -- the command line --------------------------------------------------------------------------------------------------


def test_the_demo_prints_two_tables_two_verdicts_and_writes_two_pictures(demo):
    folder, done = demo
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("Verdict: ")] == [line for line in lines if "Verdict" in line]
    assert done.stdout.count("Verdict: ") == 2
    assert [line.split("  ")[0].split(",")[0] for line in lines if line.startswith(ROWS)] == list(ROWS)
    for name in ("mtopt-demo-physics.png", "mtopt-demo-digits.png"):
        assert f"Picture: {name}" in lines
        picture = (folder / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 20_000
    assert len(list(folder.iterdir())) == 2


def test_the_demo_fits_in_80_columns_and_keeps_progress_out_of_the_results(demo):
    _, done = demo
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "15/15 runs" in done.stderr
    assert "12/12 runs" in done.stderr
    assert "/15" not in done.stdout


def test_same_seed_gives_the_same_numbers(demo, tmp_path):
    again = run_demo(tmp_path, *SHORT, OMP_NUM_THREADS="2")
    assert without_times(demo[1].stdout) == without_times(again.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds: must be a whole number from 1"),
        (["--epochs", "many"], "--epochs: must be a whole number from 1"),
        (["--steps", "1.5"], "--steps: must be a whole number from 1"),
        (["--seed", "-1"], "--seed: must be a whole number from 0"),
        (["--output", "picture.txt"], "--output: must end in one of .png"),
        (["--output", "no/such/folder/picture.png"], "--output: cannot write"),
        (["--sedes", "3"], "unrecognized arguments: --sedes"),
    ],
)
def test_wrong_options_end_with_2_before_any_training(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(command, "run", lambda options: pytest.fail("it ran"))
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("problem", "near"), [("digit", " Did you mean 'digits'?"), ("study.py", "")])
def test_a_problem_that_there_is_not_ends_with_2(problem, near, capsys):
    assert main(["demo", problem]) == 2
    assert f"must be physics or digits, but it is {problem!r}.{near}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("problem", "option"), [("physics", "--epochs"), ("digits", "--steps")])
def test_an_option_of_the_other_problem_ends_with_2(problem, option, capsys):
    assert main(["demo", problem, option, "3"]) == 2
    assert f"`{option}` is for {'digits' if problem == 'physics' else 'physics'}" in capsys.readouterr().err


def test_checking_the_output_neither_leaves_nor_empties_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run", lambda options: True)
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    old.write_text("kept")
    for path in (old, new):
        assert main(["--output", str(path)]) == 0
    assert old.read_text() == "kept"
    assert not new.exists()


@pytest.mark.parametrize(
    ("arguments", "pictures"),
    [
        ([], ["physics: mtopt-demo-physics.png", "digits: mtopt-demo-digits.png"]),
        (["--output", "x.svg"], ["physics: x-physics.svg", "digits: x-digits.svg"]),
        (["demo", "digits"], ["digits: mtopt-demo-digits.png"]),
        (["demo", "physics", "--output", "x.svg"], ["physics: x.svg"]),
    ],
)
def test_one_problem_has_the_picture_that_is_named_and_two_have_one_each(arguments, pictures, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ran = []
    for name, part in command.PARTS.items():
        told = replace(part, run=lambda seeds, length, path, name=name: ran.append(f"{name}: {path}") or True)
        monkeypatch.setitem(command.PARTS, name, told)
    assert main(arguments) == 0
    assert ran == pictures


def test_the_page_tells_how_many_seeds_and_which_options_there_are():
    page = (DOCS / "command-line.md").read_text(encoding="utf-8").partition("## The demo")[2]
    assert " and ".join(f"{part.seeds} for {name}" for name, part in command.PARTS.items()) in page
    assert all(f"`demo {name}`" in page and f"`--{part.unit} N`" in page for name, part in command.PARTS.items())


@pytest.mark.parametrize("problem", ["physics", "digits"])
def test_a_missing_extra_says_what_to_install(problem, monkeypatch, capsys):
    for extra in command.PARTS[problem].extras:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, extra, None)
            assert main(["demo", problem]) == 1
        name = extra.partition(".")[0]
        assert capsys.readouterr().err == f'The demo needs {name}. Install it with: pip install "mtopt[demo]"\n'


@pytest.mark.parametrize(("finished", "shown"), [(0, False), (5, True)])
def test_interrupted_digits_show_the_finished_runs_and_end_with_130(
    finished, shown, small, monkeypatch, capsys, tmp_path
):
    started = []

    def interrupted(net, batch):
        started.append(net)
        if len({id(net) for net in started}) > 1 + finished:  # one more for the conflict before training
            raise KeyboardInterrupt
        return losses_of(net, batch)

    monkeypatch.setattr(digits, "losses_of", interrupted)
    picture = tmp_path / "picture.png"
    assert main(["demo", "digits", "--epochs", "1", "--output", str(picture)]) == 130
    out, err = capsys.readouterr()
    assert f"only {finished} of 24 runs are finished" in err
    assert ("peak memory" in err) is shown
    assert out == ""
    assert not picture.exists()


def test_interrupted_physics_says_so_and_ends_with_130(monkeypatch, capsys, tmp_path):
    def interrupted(fields, points):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "losses", interrupted)
    picture = tmp_path / "picture.png"
    assert main(["demo", "physics", "--output", str(picture)]) == 130
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "Interrupted."
    assert out == ""
    assert not picture.exists()


@pytest.mark.parametrize("problem", ["physics", "digits"])
def test_a_picture_that_cannot_be_written_costs_no_results(problem, small, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()

    def removed(net, batch, losses={"physics": wave.losses, "digits": losses_of}[problem]):
        folder.rmdir() if folder.exists() else None
        return losses(net, batch)

    monkeypatch.setattr(training, "losses", removed)
    monkeypatch.setattr(digits, "losses_of", removed)
    length = {"physics": "--steps", "digits": "--epochs"}[problem]
    assert main(["demo", problem, "--seeds", "1", length, "1", "--output", str(folder / "picture.png")]) == 1
    out, err = capsys.readouterr()
    assert "Verdict: " in out
    assert str(folder) in err
    assert "Traceback" not in err


def test_a_run_leaves_random_state_and_threads_as_they_were(small, tmp_path, capsys):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    few = ["--seeds", "1", "--epochs", "1", "--steps", "2"]
    assert main([*few, "--output", str(tmp_path / "picture.svg")]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


# -- physics -----------------------------------------------------------------------------------------------------------


def test_the_derivatives_of_the_networks_are_those_of_autograd():
    fields, points = Fields([0, 1]), torch.rand(2, 5, 2, requires_grad=True)
    value, first, second = fields.jet(points)
    torch.testing.assert_close(fields.jet(points, order=1), [value, first])
    (slopes,) = torch.autograd.grad(fields(points).sum(), points, create_graph=True)
    torch.testing.assert_close(value, fields(points))
    torch.testing.assert_close(first, slopes.mT)
    for axis in range(2):
        (bend,) = torch.autograd.grad(slopes[..., axis].sum(), points, retain_graph=True)
        torch.testing.assert_close(second[:, axis], bend[..., axis], atol=1e-5, rtol=1e-4)


def test_the_exact_solution_solves_the_equation_and_meets_start_and_ends():
    points = torch.rand(1, 50, 2, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(wave.exact(points).sum(), points, create_graph=True)
    bends = [torch.autograd.grad(slopes[..., i].sum(), points, retain_graph=True)[0][..., i] for i in range(2)]
    torch.testing.assert_close(bends[1], wave.SPEED**2 * bends[0])
    drawn = next(wave.stream([0]))
    assert wave.exact(drawn.ends).abs().max() < 1e-5
    start = drawn.start.requires_grad_()
    (slopes,) = torch.autograd.grad(wave.exact(start).sum(), start)
    assert slopes[..., 1].abs().max() < 1e-5
    assert (drawn.start[..., 1] == 0).all()


class Exact(torch.nn.Module):
    """The exact solution in place of networks."""

    def forward(self, points):
        return wave.exact(points)

    def jet(self, points, order=2):
        points = points.clone().requires_grad_()
        value = wave.exact(points)
        (slopes,) = torch.autograd.grad(value.sum(), points, create_graph=True)
        bends = [torch.autograd.grad(slopes[..., i].sum(), points, retain_graph=True)[0][..., i] for i in range(2)]
        return [value, slopes.mT, torch.stack(bends, 1)][: order + 1]


def test_the_exact_solution_has_no_loss_and_a_network_has_four():
    points = wave.Points(*(part.double() for part in next(wave.stream([0]))))
    assert all(loss.item() < 1e-10 for loss in wave.losses(Exact(), points).values())
    found = wave.losses(Fields([0]), next(wave.stream([0])))
    assert list(found) == ["equation", "shape", "velocity", "ends"]
    assert all(loss.item() > 1e-4 for loss in found.values())


def test_points_are_new_in_each_step_and_the_same_for_equal_seeds():
    one, other = (next(stream) for stream in [wave.stream([0, 1, 0])] * 2)
    assert torch.equal(one.inside[0], one.inside[2])
    assert not torch.equal(one.inside[0], one.inside[1])
    assert not torch.equal(one.inside[0], other.inside[0])
    assert torch.equal(next(wave.stream([1])).inside[0], one.inside[1])


def test_sums_trained_at_once_are_sums_trained_alone():
    seeds, weights, steps = [0, 1], [1, 100], 5
    ways = training.train_sums(seeds, weights, steps, lambda share: None)
    for way, weight in zip(ways, weights, strict=True):
        for column, seed in enumerate(seeds):
            fields, points = Fields([seed]), wave.stream([seed])
            adam = torch.optim.Adam(fields.parameters(), lr=training.LEARNING_RATE, betas=training.BETAS)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
            for _ in range(steps):
                adam.zero_grad()
                equation, *others = wave.losses(fields, next(points)).values()
                (equation + weight * sum(others)).backward()
                adam.step()
                schedule.step()
            assert float(training._errors(fields)) == pytest.approx(float(way.errors[-1, column]), rel=1e-3)


def test_the_recipe_is_that_of_the_docs():
    text = " ".join((DOCS / "optimizer.md").read_text(encoding="utf-8").split())
    assert f"betas = {training.BETAS}" in text
    assert all(f"mtopt.{transform!r}".replace("'", '"') in text for transform in training.recipe())


def test_the_recipe_takes_the_steps_of_an_ordinary_loop():
    way = training.train_recipe([2, 3], 4, lambda share: None)
    fields, points = Fields([3]), wave.stream([3])
    adam = torch.optim.Adam(fields.parameters(), lr=training.LEARNING_RATE, betas=training.BETAS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 4)
    recipe = [mtopt.GradientNorms(average=0.99, of="norms"), mtopt.Whitening(beta=0.9)]
    optimizer = mtopt.MultiLossOptimizer(adam, recipe, at="parameters")
    for _ in range(4):
        optimizer.zero_grad()
        optimizer.step([loss[0] for loss in wave.losses(fields, next(points)).values()])
        schedule.step()
    assert float(training._errors(fields)) == pytest.approx(float(way.errors[-1, 1]), rel=1e-3)


def test_an_error_of_a_field_is_its_relative_distance():
    fields = Fields([0])
    with torch.no_grad():
        for parameter in fields.parameters():
            parameter.zero_()
    assert float(training._errors(fields)) == pytest.approx(1)


def found(recipe, **sums):
    """What was trained, from the last errors of each way."""
    ways = [training.Way(torch.tensor([errors]), torch.zeros(2, 2)) for errors in (recipe, *sums.values())]
    return demo_physics.Found(ways[1:], ways[0], 2.0)


@pytest.mark.parametrize(
    ("recipe", "equal", "swept"),
    [
        (
            [0.1, 0.11, 0.12],
            "better than equal weights (0.22 × the error",
            "no difference found to the best of 2 weights",
        ),
        ([0.5, 0.52, 0.51], "no difference found to equal weights (1 ×", "worse than the best of 2 weights"),
        ([0.05, 0.051, 0.052], "better than equal weights", "better than the best of 2 weights"),
        ([0.9, 0.8, 0.85], "worse than equal weights (1.7 ×", "worse than the best of 2 weights"),
        ([0.1, 0.2], "too few seeds for a test against equal weights", "too few seeds"),
        ([0.1], "too few seeds for a test against equal weights (0.2 × the error)", "too few seeds"),
    ],
)
def test_the_verdict_on_physics_says_what_the_errors_say(recipe, equal, swept):
    n = len(recipe)
    said = demo_physics.verdict(found(recipe, equal=[0.5, 0.52, 0.5][:n], best=[0.11, 0.1, 0.12][:n]))
    first, second = said.removeprefix("the recipe, in one run: ").removesuffix(".").split("), ")
    assert f"{first})".startswith(equal)
    assert second.startswith(swept)


def test_the_swept_sum_is_the_one_with_the_least_error_and_costs_all_runs():
    rows = list(demo_physics._rows(found([0.1, 0.1], one=[0.5, 0.5], ten=[0.2, 0.05], hundred=[0.3, 0.3])))
    assert [row[:2] for row in rows] == [("equal weights", "1"), ("swept sum, weight 10", "3"), ("recipe", "1")]
    assert [row[-1] for row in rows] == ["1", "3", "2"]
    assert rows[1][2:4] == ("0.1", "0.05 to 0.2")


# -- digits ------------------------------------------------------------------------------------------------------------


def summary(**verdicts):
    """Of methods that have a verdict in each of two quantities."""
    quantities = [
        Quantity(
            kind,
            "left",
            True,
            {"plain sum": Result(None), **{m: Result(None, verdict=v[i]) for m, v in verdicts.items()}},
        )
        for i, kind in enumerate(("loss", "metric"))
    ]
    return Summary(quantities, {m: Cost(6, 0, 1e-3, None, None) for m in ("plain sum", *verdicts)}, 4, [])


NONE, WORSE, BETTER, FEW = "no difference found", "worse", "better", "too few seeds"


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (
            {"a": (NONE, NONE), "b": (NONE, NONE)},
            "no difference to the plain sum found in all 4 comparisons (4 tests).",
        ),
        (
            {"a": (WORSE, WORSE), "b": (BETTER, NONE)},
            "b is better than the plain sum in loss left; a is worse than the plain sum in loss left, left; "
            "no difference to the plain sum found in the rest (1 test).",
        ),
        ({"a": (FEW, FEW)}, "too few seeds for a test, which needs 3."),
    ],
)
def test_the_verdict_on_digits_says_what_the_tests_say(verdicts, said):
    assert demo_digits.verdict(summary(**verdicts)) == said


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
    made = digits.problem(0, 1)
    pictures = data.Data(0).test
    one_hot = {task: torch.eye(10)[pictures.labels[task]] for task in data.TASKS}
    one_hot["right"][: len(pictures.images) // 2] = -one_hot["right"][: len(pictures.images) // 2]
    accuracies = made["make_metrics"](lambda images: one_hot)
    assert [float(accuracy) for accuracy in accuracies.values()] == pytest.approx([100, 50])


def test_the_learning_rate_falls_to_0_at_the_end():
    inner = digits.problem(0, 2)["make_optimizer"]([torch.nn.Parameter(torch.ones(1))])
    n_steps = 2 * len(digits.problem(0, 2)["batches"](0))
    rates = []
    for _ in range(n_steps):
        rates.append(inner.param_groups[0]["lr"])
        inner.step()
    assert rates[0] == digits.LEARNING_RATE
    assert all(before > after for before, after in itertools.pairwise(rates))
    assert inner.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_the_conflict_that_it_tells_is_that_of_plain_autograd():
    study = checked_study(**digits.problem(0, 1), seeds=[0])
    torch.manual_seed(0)
    net = Net()
    seen = []
    net.trunk.register_forward_hook(lambda module, inputs, output: seen.append(output))
    losses = losses_of(net, first_batch(study, 0))
    rows = [torch.autograd.grad(loss, seen[-1], retain_graph=True)[0] for loss in losses.values()]
    share = (rows[0] * rows[1] < 0).sum() / ((rows[0] != 0) | (rows[1] != 0)).sum()
    assert f"at {100 * share:.0f} % of the numbers" in demo_digits.conflict_at_start(study)
