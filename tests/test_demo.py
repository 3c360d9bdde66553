"""The demo: what its command line promises, and that its statistics claim no more than they may."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys

import pytest
import torch

from mtopt.demo import command, cost, data, intervals, table, training
from mtopt.demo.intervals import Interval, mean_interval, median_interval
from mtopt.demo.picture import save_picture
from mtopt.demo.training import METHODS, PLAIN, Run, start

TIME = "time per step"


def run_demo(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "mtopt", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, "--seeds", "2", "--epochs", "1")


def made_up_run(accuracy):
    """A run of two epochs with one accuracy at the end of both tasks."""
    accuracies = torch.tensor([[0.3, 0.4], [accuracy, accuracy]])
    return Run(accuracies, torch.full((3, 2), 0.5), torch.full((2, training.N_BINS), 0.025))


def made_up_results(plain, other):
    """The plain sum's accuracies over the seeds, and those of all others."""
    return {m: [made_up_run(a) for a in (plain if m == PLAIN else other)] for m in METHODS}


@pytest.fixture
def instant(monkeypatch):
    """A demo without training: the runs are made up."""
    monkeypatch.setattr(command, "measure_costs", lambda seed: {m: cost.Cost(Interval(1.0, 0.1), 1.0) for m in METHODS})
    monkeypatch.setattr(command, "train", lambda *_: made_up_run(0.9))


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_demo_prints_every_method_and_writes_a_picture(demo):
    folder, done = demo
    assert done.returncode == 0, done.stderr
    assert all(method in done.stdout for method in METHODS if method != PLAIN)
    assert "plain sum" in done.stdout
    assert done.stdout.splitlines()[-1] == "Picture: mtopt-demo.png"
    picture = (folder / "mtopt-demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_the_demo_fits_in_80_columns_and_keeps_progress_out_of_the_results(demo):
    _, done = demo
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "epochs" in done.stderr
    assert "epochs" not in done.stdout


def test_same_seed_gives_the_same_numbers(demo, tmp_path):
    again = run_demo(tmp_path, "--seeds", "2", "--epochs", "1", OMP_NUM_THREADS="2")
    lines = [[line for line in done.stdout.splitlines() if TIME not in line] for done in (demo[1], again)]
    assert lines[0] == lines[1]
    assert len(lines[0]) > 10


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
    monkeypatch.setattr(command, "_run", lambda options: pytest.fail("it ran"))
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_checking_the_output_neither_leaves_nor_empties_a_file(tmp_path):
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    old.write_text("kept")
    for path in (old, new):
        command._parse(["--output", str(path)])
    assert old.read_text() == "kept"
    assert not new.exists()


@pytest.mark.parametrize("extra", command.EXTRAS)
def test_a_missing_extra_says_what_to_install(extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, extra, None)
    assert command.main([]) == 1
    assert capsys.readouterr().err.startswith(
        'The demo needs scikit-learn, matplotlib and rich. Install them with: pip install "mtopt[demo]"\n'
    )


def test_no_extra_is_imported_before_it_is_needed():
    extras = [name.partition(".")[0] for name in (*command.EXTRAS, "scipy")]
    code = f"import sys, mtopt, mtopt.demo.command; print([m for m in {extras} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("finished", "shown"), [(0, False), (1, True), (2, True)])
def test_an_interruption_shows_the_finished_seeds_and_ends_with_130(
    finished, shown, instant, monkeypatch, capsys, tmp_path
):
    left = iter([made_up_run(0.9)] * (len(METHODS) * (finished + 1) - 1))

    def train(*_):
        for run in left:
            return run
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "train", train)
    picture = tmp_path / "picture.png"
    assert command.main(["--output", str(picture)]) == 130
    out, err = capsys.readouterr()
    assert f"Interrupted: all methods had finished {finished} of 6 seeds." in err
    assert (TIME in out) is shown
    assert not picture.exists()


def test_a_run_leaves_random_state_and_threads_as_they_were(instant, tmp_path, capsys):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    assert command.main(["--output", str(tmp_path / "picture.svg")]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


# -- what is compared --------------------------------------------------------------------------------------------------


def test_all_methods_start_with_the_same_weights():
    first, *others = [start(method, 3)[0].state_dict() for method in METHODS]
    for weights in others:
        assert all(torch.equal(weights[name], first[name]) for name in first)


def test_no_test_digit_is_in_a_training_picture(monkeypatch):
    monkeypatch.setattr(data, "_digits", lambda: (torch.zeros(1797, 8, 8), torch.arange(1797)))
    made = data.make_data(0, 2)
    trained = {int(n) for pictures in (*made.epochs, made.probe) for label in pictures.labels.values() for n in label}
    tested = {int(n) for label in made.test.labels.values() for n in label}
    assert trained.isdisjoint(tested)
    assert len(trained) + len(tested) == 1797


def test_a_picture_shows_the_labelled_digit_on_each_side(monkeypatch):
    brightness = torch.arange(1797) / 1796
    monkeypatch.setattr(data, "_digits", lambda: (brightness[:, None, None].expand(-1, 8, 8), torch.arange(1797)))
    pictures = data.make_data(0, 1).test
    left, right = (brightness[pictures.labels[task]] for task in data.TASKS)
    assert torch.equal(pictures.images[:, 0, 0, 0], left)
    assert torch.equal(pictures.images[:, 0, -1, -1], right)
    assert torch.equal(pictures.images[:, 0, 5, 5], torch.maximum(left, right))


def test_the_probe_counts_the_sign_conflicts_of_plain_autograd():
    made = data.make_data(1, 1)
    net, _ = start(PLAIN, 1)
    at_sites, purity = training.probe(net, made.probe)
    losses = training.losses_of(net(made.probe.images), made.probe).values()
    rows = [torch.cat([g.flatten() for g in grads(loss, net.trunk)]) for loss in losses]
    conflict, any_gradient = rows[0] * rows[1] < 0, (rows[0] != 0) | (rows[1] != 0)
    assert at_sites[1].item() == pytest.approx((conflict.sum() / any_gradient.sum()).item(), abs=1e-3)
    assert purity.sum().item() == pytest.approx(at_sites[0].item(), abs=1e-6)


def grads(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


def test_conflict_is_opposite_signs_among_coordinates_with_a_gradient():
    rows = torch.tensor([[1.0, 2.0, 0.0, 0.0], [-3.0, 1.0, 0.0, 4.0]])
    assert training.conflict_share(training.purity_where_any(rows)).item() == pytest.approx(1 / 3)


def test_peak_memory_counts_what_is_alive_at_once(monkeypatch):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")

    def keeps():
        first = torch.ones(1000)
        return first, torch.ones(2000)

    def frees():
        torch.ones(1000)
        torch.ones(2000)

    assert cost.peak_on_cpu(keeps) == 12_000
    assert cost.peak_on_cpu(frees) == 8_000


# -- what is claimed ---------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_students():
    interval = mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert interval.center == 3
    assert interval.half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-5)  # t of 4 degrees, 97.5 %


def test_more_comparisons_widen_the_interval():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    widened = mean_interval(values, comparisons=3)
    assert widened.half == pytest.approx(3.960763 * math.sqrt(2.5 / 5), rel=1e-5)  # t of 4 degrees, 1 - 0.025 / 3


def test_one_seed_has_no_interval_and_no_verdict():
    results = made_up_results([0.9], [0.5])
    assert not mean_interval(torch.tensor([1.0])).known
    assert mean_interval(torch.tensor([1.0])).includes_zero
    assert table.comparison_lines(results) == [
        "One seed: a difference between methods cannot be told from chance. Use more --seeds."
    ]


def test_the_interval_of_a_median_holds_the_middle_of_the_values():
    interval = median_interval(torch.arange(101.0))
    assert interval.center == 50
    assert 9 <= interval.half <= 11  # 0.98 * sqrt(101) values either way


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([0.90, 0.93, 0.91], "no difference found"),
        ([0.900, 0.920, 0.910], "no difference found"),
        ([0.951, 0.970, 0.960], "better by 4.7"),
        ([0.851, 0.870, 0.860], "worse by 4.7"),
    ],
)
def test_a_difference_is_claimed_only_if_its_interval_excludes_0(other, said):
    lines = table.comparison_lines(made_up_results([0.900, 0.920, 0.910], other))
    verdicts = [line for line in lines if line.startswith("  GradDrop")]
    assert len(verdicts) == len(METHODS) - 1
    assert all(said in line for line in verdicts)
    assert any("is a tie" in line for line in lines) == (said == "no difference found")


def test_several_comparisons_are_corrected_for_and_said_so():
    results = made_up_results([0.900, 0.920, 0.910], [0.905, 0.921, 0.918])
    shown = table.paired_differences(results)
    alone = mean_interval(torch.tensor([0.5, 0.1, 0.8]))
    assert all(difference.half > 1.5 * alone.half for difference in shown.values())
    assert any(re.search("all 3 comparisons together, by Bonferroni", line) for line in table.comparison_lines(results))


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_can_be_drawn_from_any_number_of_seeds(n_seeds, suffix, tmp_path):
    path = tmp_path / f"picture{suffix}"
    save_picture(path, made_up_results([0.9] * n_seeds, [1.0] * n_seeds))
    assert path.stat().st_size > 10_000


def test_the_mean_band_has_no_width_for_one_seed():
    mean, half = intervals.mean_band(torch.tensor([[1.0, 2.0]]))
    assert mean.tolist() == [1, 2]
    assert half.tolist() == [0, 0]
