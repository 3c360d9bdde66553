"""compare: fair runs, nothing lost by a kill, and words that claim no more than the tests allow."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mtopt
from mtopt._comparison import statistics
from mtopt._comparison.compare import Comparison, compare
from mtopt._comparison.statistics import holm, paired_p, summarize
from mtopt._comparison.study import checked_study

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = "plain sum"
MEASURED = {"seconds_per_step", "memory"}  # of a run: all else is the same if it is repeated


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2))
        self.heads = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])

    def forward(self, x):
        features = self.trunk(x)
        return [head(features)[:, 0] for head in self.heads]


def two_losses(model, batch):
    (x,) = batch
    up, down = model(x)
    return {"up": (up - x.sum(1)).square().mean(), "down": (down + x.sum(1)).square().mean()}


BATCHES = [(x,) for x in torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))]


def study(methods=("GradDrop",), *, make_model=Net, make_losses=two_losses, batches=BATCHES, seeds=2, **settings):
    return compare(make_model, make_losses, batches, methods, seeds, **{"progress": False, **settings})


def repeatable(runs):
    return [{key: value for key, value in run.items() if key not in MEASURED} for run in runs]


class Noise(mtopt.RowTransform):
    """Draws from every global generator, and counts its calls."""

    def __init__(self, calls=None):
        self.calls = calls if calls is not None else []
        self.n = 0

    def __deepcopy__(self, memo):
        copied = Noise(self.calls)
        copied.n = self.n
        return copied

    def transform(self, rows, site):
        torch.rand(3), random.random(), numpy.random.rand()
        self.calls.append(self.n)
        self.n += 1
        return rows


# -- the same start and the same batches for all -----------------------------------------------------------------------


DATA = TensorDataset(torch.arange(24.0).reshape(8, 3))


@pytest.mark.parametrize(
    "batches",
    [
        lambda: [(row,) for row in DATA.tensors[0].split(2)],
        lambda: DataLoader(DATA, batch_size=2, shuffle=True),
        lambda: DataLoader(DATA, batch_size=2, shuffle=True, generator=torch.Generator()),
        lambda: lambda seed: (DATA[torch.randint(8, (2,))] for _ in range(3)),
        lambda: lambda seed: [(torch.from_numpy(numpy.random.rand(2, 3)).float(),) for _ in range(3)],
        lambda: lambda seed: [(torch.full((2, 3), random.random()),) for _ in range(3)],
    ],
    ids=["list", "loader", "loader with a generator", "generator", "numpy", "python"],
)
def test_all_methods_start_from_the_same_weights_and_see_the_same_batches(batches):
    starts, seen = [], []

    def make_model():
        model = Net()
        starts.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        seen.append([])
        return model

    def make_losses(model, batch):
        seen[-1].append(batch[0])
        return two_losses(model, batch)

    made = batches()
    study(
        {"noise": Noise(), "drop": mtopt.GradDrop()},
        make_model=make_model,
        make_losses=make_losses,
        epochs=2,
        batches=made,
    )
    n_batches = len(seen[0])
    for first in (0, 3):  # the runs of a seed
        for run in (first + 1, first + 2):
            assert torch.equal(starts[first], starts[run])
            torch.testing.assert_close(seen[first], seen[run], rtol=0, atol=0)
    assert not torch.equal(starts[0], starts[3])
    assert [len(run) for run in seen] == [n_batches] * 6
    same_with_each_seed = all(map(torch.equal, seen[0], seen[3]))
    assert same_with_each_seed == isinstance(made, list)


def test_a_shuffling_loader_shuffles_anew_in_each_epoch_and_for_each_seed():
    seen = []

    def make_losses(model, batch):
        seen.append(batch[0][0, 0].item())
        return two_losses(model, batch)

    study({"plain": []}, make_losses=make_losses, batches=DataLoader(DATA, batch_size=1, shuffle=True), epochs=2)
    orders = [tuple(seen[i : i + 8]) for i in range(0, 64, 8)]
    assert orders[:2] == orders[2:4]
    assert len(set(orders)) == 4


def test_methods_take_turns_in_being_first(tmp_path):
    path = tmp_path / "runs.jsonl"
    study(["GradDrop", "PCGrad"], seeds=3, output=path)
    order = [json.loads(line)["method"] for line in path.read_text().splitlines()[1:]]
    assert order == [PLAIN, "GradDrop", "PCGrad", "GradDrop", "PCGrad", PLAIN, "PCGrad", PLAIN, "GradDrop"]


def test_the_plain_sum_is_what_a_plain_loop_gives():
    run = study(make_model=dry_net, seeds=[7], epochs=2).runs[0]
    torch.manual_seed(7)
    model = dry_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for batch in BATCHES * 2:
        optimizer.zero_grad()
        losses.append(two_losses(model, batch))
        sum(losses[-1].values()).backward()
        optimizer.step()
    for name in ("up", "down"):
        assert run["losses"][name] == pytest.approx(numpy.mean([loss[name].item() for loss in losses[-6:]]), rel=1e-6)
    assert run["steps"] == 12


def dry_net():
    model = Net()
    model.trunk[2] = nn.Identity()
    return model


def test_twice_the_gradient_under_sgd_is_twice_the_learning_rate():
    def sgd(lr):
        return lambda parameters: torch.optim.SGD(parameters, lr=lr)

    double = study({"double": mtopt.ConstantWeights(2.0)}, make_optimizer=sgd(0.05), epochs=3)
    faster = study({"any": []}, make_optimizer=sgd(0.1), epochs=3)
    for i in (0, 2):
        assert double.runs[i + 1]["losses"] == pytest.approx(faster.runs[i]["losses"], rel=1e-5)
        assert double.runs[i]["losses"] != pytest.approx(faster.runs[i]["losses"], rel=1e-3)


def test_transforms_start_anew_in_each_run_and_their_owners_stay_as_they_were():
    noise, drop = Noise(), mtopt.GradDrop(seed=3)
    before = drop.state_dict()
    study({"noise": noise, "the same": [noise], "made": lambda: noise, "drop": drop})
    assert noise.n == 0
    assert noise.calls == list(range(6)) * 6
    assert drop.state_dict() == before


def test_random_methods_draw_other_numbers_with_each_seed():
    def fixed_net():
        torch.manual_seed(0)
        return dry_net()

    runs = study({"1": mtopt.GradDrop(seed=1), "1 again": lambda: mtopt.GradDrop(seed=1)}, make_model=fixed_net).runs
    first, again = runs[1::3], runs[2::3]
    assert first[0]["losses"] != first[1]["losses"]
    assert [run["losses"] for run in first] == [run["losses"] for run in again]


def test_methods_are_told_of_epochs_and_of_the_losses_after_a_step():
    told = []

    class Listens(mtopt.LossWeighting):
        def weights(self, losses):
            told.append("step")
            return torch.ones(len(losses))

        def observe(self, losses):
            told.append(sorted(losses))

        def epoch_end(self):
            told.append("epoch")

    study({"listens": Listens()}, batches=BATCHES[:2], seeds=1, epochs=2)
    assert told == [*["step", ["down", "up"]] * 2, "epoch"] * 2


def test_the_global_random_state_is_left_as_it_was():
    loader = DataLoader(DATA, shuffle=True, generator=torch.Generator().manual_seed(5))
    loader.generator.seed()
    states = [
        torch.get_rng_state,
        random.getstate,
        lambda: numpy.random.get_state()[1].tolist(),
        loader.generator.get_state,
    ]
    before = [state() for state in states]
    study({"noise": Noise()}, batches=loader)
    with pytest.raises(ZeroDivisionError):
        study({"noise": Noise()}, batches=loader, make_metrics=lambda model: 1 / 0)
    after = [state() for state in states]
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(after, before, strict=True))


def test_random_numbers_of_a_method_inside_another_differ_from_seed_to_seed_too():
    method = mtopt.CRMOGM(mtopt.PCGrad(seed=1))
    checked = checked_study(Net, two_losses, BATCHES, {"inside": method})
    seeds = [checked.transforms("inside", seed)[0].method.draws.seed for seed in range(3)]
    assert len(set(seeds)) == 3
    assert method.method.draws.seed == seeds[0] == 1


# -- losses, metrics, sites, time --------------------------------------------------------------------------------------


def test_a_list_of_losses_is_named_by_places_and_an_absent_one_is_left_out_of_its_mean():
    def make_losses(model, batch):
        up, down = two_losses(model, batch).values()
        return [up, down if batch[0][0, 0] > 0 else None, None]

    first = study(make_losses=make_losses, seeds=1).runs[0]
    assert list(first["losses"]) == ["0", "1", "2"]
    assert first["losses"]["1"] > 0
    assert first["losses"]["2"] is None
    assert "loss 2" in str(study(make_losses=make_losses, seeds=1))


def test_a_dict_may_come_in_any_order():
    def make_losses(model, batch):
        losses = two_losses(model, batch)
        return dict(sorted(losses.items(), reverse=bool(batch[0][0, 0] > 0)))

    orders = {batch[0][0, 0].item() > 0 for batch in BATCHES}
    assert orders == {True, False}
    runs = study({"all": mtopt.DWA(), "by place": mtopt.ConstantWeights([1.0, 1.0])}, make_losses=make_losses).runs
    assert {tuple(run["losses"]) for run in runs} in [{("up", "down")}, {("down", "up")}]


def test_metrics_are_taken_from_the_trained_model_in_eval():
    def make_metrics(model):
        return {"eval": not model.training, "score": torch.tensor(0.25), "undefined": math.nan}

    result = study(make_metrics=make_metrics, seeds=1)
    assert result.runs[1]["metrics"] == {"eval": 1.0, "score": 0.25, "undefined": None}
    assert "metric score (more is better)" in str(result)


@pytest.mark.parametrize("at", ["activations", "parameters", "trunk", "trunk.0", lambda model: [model.trunk]])
def test_gradients_are_combined_where_it_is_asked_for(at):
    sites = []

    class Looks(mtopt.RowTransform):
        def transform(self, rows, site):
            sites.append(tuple(rows.shape[1:]))
            return rows

    study({"looks": Looks()}, at=at, seeds=1, batches=BATCHES[:1])
    assert set(sites) == ({(8, 3), (8,)} if at == "parameters" else {(4, 8)})


def test_each_method_may_have_a_place_of_its_own_and_the_others_have_the_default():
    seen = {}

    class Looks(mtopt.RowTransform):
        def __init__(self, name):
            self.name = name

        def transform(self, rows, site):
            seen.setdefault(self.name, set()).add(tuple(rows.shape[1:]))
            return rows

    at = {"parameters": "parameters", "module": lambda model: model.trunk}
    marginalized = mtopt.GradDrop(marginalize=0)  # refused where there is no module
    methods = {
        "default": Looks("default"),
        "parameters": Looks("parameters"),
        "module": [marginalized, Looks("module")],
    }
    result = study(methods, at=at, seeds=1, batches=BATCHES[:1])
    assert seen == {"default": {(4, 8)}, "parameters": {(8, 3), (8,)}, "module": {(4, 8)}}
    assert result.study["at"]["parameters"] == "parameters"
    assert result.study["at"]["module"].startswith("function ")


def test_with_seconds_a_run_goes_through_the_batches_until_its_time_is_up():
    result = study(seconds=0.05, batches=BATCHES[:2])
    assert all(run["steps"] >= 3 for run in result.runs)
    assert result.study["seconds"] == 0.05
    assert "epochs" not in result.study
    assert str(result).startswith("2 methods, 2 seeds, 0.05 s each")


def test_with_seconds_losses_are_means_of_the_last_tenth_of_the_steps():
    values = itertools.count(1)

    def make_losses(model, batch):
        return [model.weight.sum() * 0 + next(values)]

    run = study({"x": []}, make_model=lambda: nn.Linear(1, 1), make_losses=make_losses, seconds=0.05, seeds=1).runs[0]
    kept = range(run["steps"] * 9 // 10 + 1, run["steps"] + 1)
    assert run["losses"]["0"] == pytest.approx(sum(kept) / len(kept))


@pytest.mark.filterwarnings("ignore:One loss is alone")
def test_what_a_step_allocates_is_measured_and_not_within_a_profiler():
    inside = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    plain = study(make_model=lambda: nn.Linear(3, 1000), make_losses=lambda m, b: [m(b[0]).sum()], seeds=1).runs[0]
    assert 2 * 4 * 4000 < plain["memory"] < 5 * 4 * 4000  # gradient, its update, and what Adam needs in between
    with inside:
        assert study(seeds=1).runs[0]["memory"] is None


def test_the_time_of_a_step_is_the_processor_s_and_not_what_others_take_meanwhile():
    def make_losses(model, batch):
        time.sleep(0.03)
        return two_losses(model, batch)

    result = study(make_losses=make_losses, seeds=1)
    assert all(0 < run["seconds_per_step"] < 0.02 for run in result.runs)
    assert {run["clock"] for run in result.runs} == {"CPU time"}


@pytest.mark.parametrize(("threads", "told"), [(1, "1 thread"), (2, "2 threads")])
def test_the_number_of_threads_is_told_beside_the_times_and_kept_in_the_study(threads, told):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        result = study(seeds=1)
    finally:
        torch.set_num_threads(before)
    assert result.study["threads"] == threads
    assert f"time per step, ms (CPU time, {told})" in str(result)


def test_too_few_steps_have_no_time():
    result = study(batches=BATCHES[:1])
    assert [run["seconds_per_step"] for run in result.runs] == [None] * 4
    assert "time per step" not in str(result)


# -- diverged runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_its_run_and_no_other(bad):
    class Poisons(mtopt.LossWeighting):
        def weights(self, losses):
            return torch.full((len(losses),), bad)

    result = study({"poison": Poisons(), "drop": mtopt.GradDrop()})
    assert result.complete
    for run in result.runs:
        assert (run["diverged"] is not None) == (run["method"] == "poison")
    assert result.runs[1]["diverged"] == "loss up was nan in step 2"
    assert result.runs[1]["losses"] == {"up": None, "down": None}
    assert re.search(r"poison +2 of 2", str(result))
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_text_says_where_the_first_run_diverged():
    def make_losses(model, batch):
        return [sum(two_losses(model, batch).values()) * math.nan]

    assert "The first that diverged: plain sum, seed 0: loss 0 was nan in step 1." in str(
        study(make_losses=make_losses)
    )


def test_a_diverged_run_is_written_and_not_repeated(tmp_path):
    def make_losses(model, batch):
        return {name: loss * math.nan for name, loss in two_losses(model, batch).items()}

    first = study(make_losses=make_losses, output=tmp_path / "runs.jsonl")
    again = study(make_losses=lambda *_: pytest.fail("trained again"), output=tmp_path / "runs.jsonl")
    assert again.runs == first.runs
    assert "GradDrop: diverged in 2 of 2 runs; too few seeds." in str(again)


def test_weights_that_are_not_finite_after_the_last_step_count_as_diverged():
    large = [(100 * BATCHES[0][0],)]
    run = study(make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=3e38), batches=large).runs[0]
    assert run["diverged"] == "parameters were not finite after the last step, 1"


# -- killed and interrupted --------------------------------------------------------------------------------------------


SCRIPT = """
    import os, signal, sys, torch
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[1])
    from test_compare import Net, study
    path, n_lines = sys.argv[2], int(sys.argv[3])

    def metrics(model):
        if n_lines and os.path.exists(path) and len(open(path).readlines()) == n_lines:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"norm": model.trunk[0].weight.norm()}

    study(["GradDrop", "PCGrad"], make_metrics=metrics, epochs=2, output=path)
"""


def run_script(path, n_lines):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), os.path.dirname(__file__), str(path), str(n_lines)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)


def test_after_a_kill_finished_runs_are_not_repeated_and_the_result_is_the_same(tmp_path):
    path = tmp_path / "runs.jsonl"
    assert run_script(path, 3).returncode == -signal.SIGKILL
    two_runs = path.read_bytes()
    assert two_runs.count(b"\n") == 3
    path.write_bytes(two_runs + b'{"method": "PCGr')  # a line torn by a kill in the middle of writing
    models = []

    def metrics(model):
        models.append(model)
        return {"norm": model.trunk[0].weight.norm()}

    settings = {"methods": ["GradDrop", "PCGrad"], "make_metrics": metrics, "epochs": 2}
    resumed = study(**settings, output=path)
    assert resumed.complete
    assert len(models) == 4  # not those of the runs that were finished
    assert path.read_bytes().startswith(two_runs)
    assert path.read_bytes().count(b"\n") == 7
    undisturbed = study(**settings, output=tmp_path / "other.jsonl")
    assert repeatable(resumed.runs) == repeatable(undisturbed.runs)
    assert study(**settings, output=path).runs == resumed.runs
    assert len(models) == 4 + 6


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_shows_and_returns_what_is_finished(kept, tmp_path, capsys):
    path = tmp_path / "runs.jsonl" if kept else None
    models = []

    def make_model():
        if len(models) == 3:
            raise KeyboardInterrupt
        models.append(Net())
        return models[-1]

    result = study(make_model=make_model, output=path)
    assert not result.complete
    assert len(result.runs) == 3
    shown = capsys.readouterr().err
    assert "Interrupted. 2 methods, 2 seeds, 1 epoch each; only 3 of 4 runs are finished" in shown
    assert "loss up" in shown
    assert (f"in {path}: call compare again" if kept else "Finished runs are not kept") in shown
    if kept:
        resumed = study(output=path)
        assert resumed.complete
        assert all(run in resumed.runs for run in result.runs)


def test_ctrl_c_before_the_first_run_is_finished_gives_an_empty_comparison(capsys):
    def make_losses(model, batch):
        raise KeyboardInterrupt

    result = study(make_losses=make_losses)
    assert (result.runs, result.complete) == ([], False)
    assert str(result) == "2 methods, 2 seeds, 1 epoch each; only 0 of 4 runs are finished"
    assert str(result) in capsys.readouterr().err


def test_an_error_in_the_users_code_says_in_which_run(tmp_path):
    path = tmp_path / "runs.jsonl"

    def make_metrics(model):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as info:
        study(make_metrics=make_metrics, seeds=[4], output=path)
    assert info.value.__notes__[0].startswith("While training 'plain sum' with seed 4. No run is finished yet.")
    assert not path.exists()


# -- the file ----------------------------------------------------------------------------------------------------------


def test_runs_on_another_number_of_threads_are_refused(tmp_path, monkeypatch):
    """Their times would not be comparable, and the last bits of their numbers differ."""
    study(output=tmp_path / "runs.jsonl", batches=BATCHES[:1])
    n = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: n + 1)
    with pytest.raises(ValueError, match=f"`threads` is {n} there and {n + 1} here"):
        study(output=tmp_path / "runs.jsonl", batches=BATCHES[:1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": 1}, r"`seeds` is \[0, 1\] there and \[0\] here"),
        ({"epochs": 2}, "`epochs` is 1 there and 2 here"),
        ({"seconds": 0.1}, "`epochs` is 1 there and not given here; `seconds` is not given there and 0.1 here"),
        ({"at": "parameters"}, "`at` is activations there and parameters here"),
        ({"at": {"GradDrop": "trunk"}}, "`at` is activations there and {'GradDrop': 'trunk'} here"),
        ({"methods": {"GradDrop": mtopt.GradDrop(leak=0.5)}}, r"`methods` is .*GradDrop\(\).* and .*leak=0.5"),
    ],
)
def test_runs_of_another_study_are_refused_and_kept(changed, message, tmp_path):
    path = tmp_path / "runs.jsonl"
    study(output=path, batches=BATCHES[:1])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as info:
        study(output=path, **changed)
    assert "Give another path, or delete it to start anew." in str(info.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"notes", b"notes\nmore\n", b'{"a": 1}\n', b"\xff\xfe\n", b'["mtopt.compare"]\n'])
def test_a_file_of_something_else_is_refused_and_kept(content, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"`output`, .*notes\.txt, is not a file of finished runs"):
        study(output=path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("keep", [0, 5, -1])
def test_an_empty_file_or_a_torn_first_line_is_begun_anew(keep, tmp_path):
    path = tmp_path / "runs.jsonl"
    first = study(output=path, seeds=1)
    header = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(header[:keep])
    assert repeatable(study(output=path, seeds=1).runs) == repeatable(first.runs)
    assert path.read_bytes().startswith(header)


@pytest.mark.parametrize("place", ["no/such/folder/runs.jsonl", "", "file/runs.jsonl"])
def test_a_place_that_cannot_be_written_is_refused_before_any_training(place, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"`output` cannot be written .*: give a path in a folder that exists"):
        study(make_model=lambda: pytest.fail("it trained"), output=tmp_path / place)


@pytest.mark.parametrize("n_runs", [1, 2])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"make_model": lambda: nn.Sequential(Net())}, "`make_model` gave .* other weights to start from than 'plain"),
        ({"make_optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, "`make_optimizer` made SGD .*, but before Adam .*"),
        ({"make_optimizer": lambda p: torch.optim.Adam(p, lr=0.1)}, "lr: 0.1 .* but before .* lr: 0.001"),
        ({"make_metrics": lambda model: {}}, "`metrics` is False there and True here"),
    ],
)
def test_a_model_or_an_optimizer_that_has_changed_since_is_refused(n_runs, changed, message, tmp_path):
    path = tmp_path / "runs.jsonl"
    study(seeds=1, output=path, batches=BATCHES[:1])
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: n_runs + 1]))
    with pytest.raises(ValueError, match=message):
        study(seeds=1, output=path, **changed)


def test_losses_that_have_changed_since_are_refused(tmp_path):
    path = tmp_path / "runs.jsonl"
    study(seeds=1, output=path, batches=BATCHES[:1])
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))  # one run is left
    with pytest.raises(ValueError, match=r"returned 1 losses, \['only'\], but 2 before, \['up', 'down'\]"):
        study(seeds=1, output=path, make_losses=lambda model, batch: {"only": model(batch[0])[0].sum()})


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([], r"`make_losses` returned no losses: \[\]. Return a list or a dict"),
        ({}, "`make_losses` returned no losses"),
        (None, "`make_losses` returned no losses: None"),
        ([None, None], "`make_losses` returned no losses"),
    ],
)
def test_a_factory_that_returns_no_losses_is_refused(returned, message):
    with pytest.raises(ValueError, match=message):
        study(make_losses=lambda model, batch: returned)


def test_a_number_of_losses_that_changes_is_refused():
    numbers = iter([2, 2, 1])
    with pytest.raises(ValueError, match=r"returned 1 losses, \['0'\], but 2 before, \['0', '1'\]. .* None for a loss"):
        study(make_losses=lambda model, batch: list(two_losses(model, batch).values())[: next(numbers)])


@pytest.mark.parametrize(
    ("make_losses", "message"),
    [
        (
            lambda model, batch: model(batch[0])[0].sum(),
            r"must return a list or a dict of losses, .* tensor of shape \(\)",
        ),
        (lambda model, batch: 1.0, "must return a list or a dict of losses, but it returned float"),
        (lambda model, batch: [1.0], r"`losses\[0\]` must be a tensor, but it is float"),
        (lambda model, batch: {3: model(batch[0])[0].sum()}, "must have strings as names"),
    ],
)
def test_losses_of_a_wrong_type_are_refused(make_losses, message):
    with pytest.raises(TypeError, match=message):
        study(make_losses=make_losses)


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"`losses\[0\]` must be a scalar, but it has shape \(4, 8\)"):
        study(make_losses=lambda model, batch: [model.trunk(batch[0])])


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        (["GradDorp"], ValueError, r"'GradDorp', which is no method of mtopt. Did you mean 'GradDrop'"),
        (["graddrop", "MGDA"], ValueError, "Did you mean 'GradDrop"),
        (["Monitor"], ValueError, "'Monitor', which is no method of mtopt. It has AlignedMTL, Annealing, "),
        (["Transform"], ValueError, "'Transform', which is no method"),
        (["ConstantWeights"], ValueError, r"needs `weight`. Give it in a dict: {\"ConstantWeights\": mtopt.Constant"),
        ([], ValueError, r"`methods` is empty: name what to compare with the plain sum"),
        ([PLAIN], ValueError, "`methods` is empty"),
        ({PLAIN: mtopt.MGDA()}, ValueError, r"`methods\['plain sum'\]` is the name of the plain sum"),
        ("GradDrop", TypeError, "`methods` must be a dict of transforms by name, or a list of names"),
        (mtopt.GradDrop(), TypeError, "`methods` must be a dict of transforms by name, or a list of names"),
        ([mtopt.GradDrop()], TypeError, "Give transforms in a dict, by names of your own"),
        ({1: mtopt.GradDrop()}, TypeError, "`methods` must have strings as names, but one is 1"),
        ({"x": "GradDrop"}, TypeError, r"`methods\['x'\]` must be a transform, a list .* but it is a str"),
        (
            {"x": lambda: None},
            TypeError,
            r"`methods\['x'\]` must make a transform or a list of them, but it made a None",
        ),
        ({"x": [mtopt.GradDrop]}, TypeError, r"`transforms\[0\]` must be a LossWeighting.* Call it to make one"),
        ({"x": [mtopt.GradDrop(), mtopt.DWA()]}, ValueError, r"`transforms\[1\]` weights the losses"),
        ({"x": mtopt.GradDrop(marginalize=0)}, ValueError, "`marginalize` needs the activation"),
    ],
)
def test_methods_that_do_not_exist_or_do_not_fit_are_refused_before_any_training(methods, error, message):
    with pytest.raises(error, match=message):
        study(methods, make_model=lambda: pytest.fail("it trained"))


def test_the_plain_sum_may_be_named_and_is_first():
    assert list(study(["MGDA", PLAIN], seeds=1).study["methods"]) == [PLAIN, "MGDA"]
    assert list(study({"mine": mtopt.MGDA, PLAIN: []}, seeds=1).study["methods"]) == [PLAIN, "mine"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"make_model": Net()}, TypeError, r"`make_model` must be a function that .*lambda: Net\(\), but it is a Net"),
        ({"make_losses": None}, TypeError, "`make_losses` must be a function of a model and a batch"),
        ({"make_optimizer": 1}, TypeError, "`make_optimizer` must be a function of parameters"),
        ({"make_metrics": {}}, TypeError, "`make_metrics` must be a function of a model"),
        ({"make_model": lambda: 1}, TypeError, "`make_model` must return a torch.nn.Module, but it returned int"),
        ({"make_optimizer": lambda p: p}, TypeError, "`make_optimizer` must return a plain torch.optim.Optimizer"),
        ({"make_metrics": lambda m: 1}, TypeError, "`make_metrics` must return a dict of numbers, but it returned int"),
        ({"make_metrics": lambda m: {"x": "y"}}, TypeError, "`make_metrics` must return numbers, but 'x' is str"),
        ({"batches": iter(BATCHES)}, TypeError, "`batches` is a list_iterator, which is used up after one run"),
        (
            {"batches": 3},
            TypeError,
            "`batches` must be a list, a DataLoader or a function of the seed, but it is a int",
        ),
        ({"batches": lambda seed: seed}, TypeError, "`batches` must return batches to go through, .* returned int"),
        ({"batches": []}, ValueError, "`batches` has no batch. Give at least one for each epoch"),
        ({"batches": [], "seconds": 1}, ValueError, "`batches` has no batch"),
        ({"seeds": 0}, ValueError, "`seeds` must be 1 or more, but it is 0"),
        ({"seeds": []}, ValueError, "`seeds` is empty"),
        ({"seeds": [1, 1]}, ValueError, r"`seeds` has \[1\] more than once"),
        ({"seeds": [-1]}, ValueError, r"`seeds\[0\]` must be 0 or more"),
        ({"seeds": 2.5}, TypeError, "`seeds` must be a whole number, but it is float"),
        ({"seeds": "three"}, TypeError, "`seeds` must be a whole number, but it is str"),
        ({"epochs": 0}, ValueError, "`epochs` must be 1 or more"),
        ({"seconds": 0}, ValueError, "`seconds` must be above 0"),
        ({"seconds": 1, "epochs": 3}, ValueError, "`epochs` is 3 and `seconds` is 1. Give one of them"),
        ({"at": "trunc"}, ValueError, r"the model has no 'trunc'. Did you mean 'trunk'"),
        (
            {"at": nn.Linear(1, 1)},
            TypeError,
            r"`at` is a Linear, but each run has a model of its own. .*at=lambda model",
        ),
        ({"at": 3}, TypeError, "`at` is a int"),
        ({"at": {"graddrop": "trunk"}}, ValueError, "`at` has 'graddrop', which is none .* Did you mean 'GradDrop'"),
        ({"at": {"X": "trunk"}}, ValueError, "`at` has 'X', which is none .* They are 'plain sum', 'GradDrop'"),
        ({"at": {"GradDrop": 3}}, TypeError, r"`at\['GradDrop'\]` is a int, but each run has a model of its own"),
        ({"at": {"GradDrop": "trunc"}}, ValueError, "the model has no 'trunc'. Did you mean 'trunk'"),
        (
            {"at": lambda model: 3},
            TypeError,
            "`at` must be .* several modules, or parameters, but it is int",
        ),
    ],
)
def test_a_wrong_argument_is_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        study(**settings)


def test_metrics_that_change_are_refused():
    names = iter("ab")
    with pytest.raises(ValueError, match=r"`make_metrics` returned \['b'\], but \['a'\] before"):
        study(make_metrics=lambda model: {next(names): 1})


def test_a_model_that_was_trained_already_is_refused():
    model = Net()
    with pytest.raises(
        ValueError, match=r"`make_model` gave 'GradDrop' other weights .* Make a new model in each call"
    ):
        study(make_model=lambda: model)


# -- what is claimed ---------------------------------------------------------------------------------------------------


def made_up_run(method, seed, **losses):
    costs = {"steps": 10, "seconds_per_step": 0.001, "clock": "CPU time", "memory": 1000, "diverged": None, "start": ""}
    return {"method": method, "seed": seed, "losses": losses, "metrics": {"score": -sum(losses.values())}, **costs}


def made_up(values):
    """A comparison of runs with losses `values[method][loss][seed]`."""
    runs = [
        made_up_run(method, seed, **dict(zip(losses, row, strict=True)))
        for method, losses in values.items()
        for seed, row in enumerate(zip(*losses.values(), strict=True))
    ]
    n_seeds = max(len(column) for losses in values.values() for column in losses.values())
    about = {"methods": dict.fromkeys(values, ""), "seeds": list(range(n_seeds)), "epochs": 1, "threads": 2}
    return Comparison(about, runs, True)


NOISY = {
    PLAIN: {"a": [1.0, 2.0, 4.0, 3.0], "b": [5.0, 5.5, 5.25, 4.0]},
    "X": {"a": [1.5, 2.7, 4.6, 3.4], "b": [4.0, 5.75, 5.5, 4.5]},
    "Y": {"a": [1.1, 1.9, 4.0, 3.5], "b": [1.0, 1.5, 1.25, 0.125]},
}


def test_the_numbers_are_scipys():
    quantities = made_up(NOISY).to_dict()["quantities"]
    raw = {}
    for quantity in quantities[:2]:
        column = {method: losses[quantity["name"]] for method, losses in NOISY.items()}
        for method, result in quantity["results"].items():
            values = numpy.array(column[method])
            low, high = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
            assert result["estimate"] == pytest.approx({"mean": values.mean(), "half": (high - low) / 2, "n": 4})
            if method != PLAIN:
                test = scipy.stats.ttest_rel(values, column[PLAIN])
                raw[quantity["name"], method] = test.pvalue
                interval = test.confidence_interval(0.95)
                assert result["difference"]["mean"] == pytest.approx((interval.high + interval.low) / 2)
                assert result["difference"]["half"] == pytest.approx((interval.high - interval.low) / 2)
    scores = {m: -numpy.sum(list(losses.values()), 0) for m, losses in NOISY.items()}
    raw |= {("score", m): scipy.stats.ttest_rel(scores[m], scores[PLAIN]).pvalue for m in ("X", "Y")}
    found = {(q["name"], m): q["results"][m]["p"] for q in quantities for m in ("X", "Y")}
    smallest_first = sorted(raw, key=raw.get)
    corrected = [min(1, (6 - i) * raw[key]) for i, key in enumerate(smallest_first)]
    assert [found[key] for key in smallest_first] == pytest.approx(numpy.maximum.accumulate(corrected))


def test_less_is_better_for_losses_and_more_for_metrics():
    results = {q["name"]: q["results"] for q in made_up(NOISY).to_dict()["quantities"]}
    assert results["a"]["X"]["verdict"] == "worse"
    assert results["b"]["X"]["verdict"] == "no difference found"
    assert results["b"]["Y"]["verdict"] == "better"
    assert results["score"]["Y"]["verdict"] == "better"


def test_the_text_says_plainly_where_no_difference_was_found():
    text = str(made_up(NOISY))
    assert "X: worse in loss a; no difference found in loss b, metric score." in text
    assert "Y: better in loss b, metric score; no difference found in loss a." in text
    assert "corrected for 6 tests (Holm)" in text
    assert re.search(r"X +4\.9 ± 1\.\d +\+0\.0\d* ± 1\.\d+ +1\.000 +no difference found", text)
    assert "\x1b" not in text
    same = made_up({PLAIN: NOISY[PLAIN], "Z": NOISY[PLAIN]})
    assert "\nZ: no difference found.\n" in str(same)


def test_methods_that_are_the_same_are_not_told_apart():
    result = study({"the same": [], "leaks": mtopt.GradDrop(leak=1.0)}, seeds=4)
    assert "the same: no difference found." in str(result)
    assert "leaks: no difference found." in str(result)


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_below_three_seeds_there_is_no_verdict(n_seeds):
    short = {m: {name: values[:n_seeds] for name, values in losses.items()} for m, losses in NOISY.items()}
    text = str(made_up(short))
    assert "Y: too few seeds." in text
    assert "a test needs 3 that both finished" in text
    assert all(word not in text.replace("is better", "") for word in ("better", "worse", "no difference"))


def test_seeds_that_change_nothing_are_no_evidence():
    copies = {PLAIN: {"a": [1.0] * 4}, "X": {"a": [0.5, 0.6, 0.5, 0.6]}}
    result = made_up(copies)
    assert result.to_dict()["copies"] == [1, 2, 3]
    assert "X: too few seeds." in str(result)
    assert "Left out, too: seeds 1, 2, 3. The plain sum gave the same numbers" in str(result)


def test_only_seeds_that_both_finished_are_paired():
    result = made_up(NOISY)
    result.runs[5].update(diverged="loss a was nan in step 2", losses={"a": None, "b": None}, metrics={})
    (a, *_) = result.to_dict()["quantities"]
    assert a["results"]["X"]["difference"]["n"] == 3
    assert a["results"]["X"]["difference"]["mean"] == pytest.approx((0.5 + 0.6 + 0.4) / 3)
    assert a["results"]["Y"]["difference"]["n"] == 4
    assert "Diverged runs are left out of all means." in str(result)


def test_holm_multiplies_by_what_is_left():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


@given(ps=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_corrected_p_values_keep_their_order_and_are_between_p_and_bonferroni(ps):
    corrected = holm(ps)
    assert all(p <= c <= min(1.0, len(ps) * p) for p, c in zip(ps, corrected, strict=True))
    pairs = sorted(zip(ps, corrected, strict=True))
    assert [c for _, c in pairs] == sorted(corrected)


@given(differences=st.lists(st.integers(-50, 50).map(lambda i: i / 8), min_size=3, max_size=8))
def test_the_paired_test_is_that_of_scipy_and_knows_no_direction(differences):
    p = paired_p(differences)
    assert p == paired_p([-d for d in differences])
    if len(set(differences)) > 1:
        assert p == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, abs=1e-12)
    else:
        assert p == (differences[0] == 0)


def test_a_verdict_needs_a_p_below_5_percent():
    difference = statistics.Estimate(-1.0, 0.5, 4)
    assert statistics._verdict(difference, 0.05, False) == "no difference found"
    assert statistics._verdict(difference, 0.049, False) == "better"
    assert statistics._verdict(difference, 0.049, True) == "worse"


def test_a_study_without_the_plain_sums_runs_claims_nothing():
    runs = [made_up_run("X", seed, a=float(seed)) for seed in range(4)]
    (a, _) = summarize(runs, [PLAIN, "X"]).quantities
    assert a.results[PLAIN].estimate is None
    assert a.results["X"].verdict == "too few seeds"


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-3, 1.0, 1e5, 1e12])
def test_numbers_of_any_size_are_shown_with_two_digits_of_their_interval(scale):
    text = str(made_up({PLAIN: {"a": [scale * v for v in (1.0, 2.0, 4.0)]}, "X": {"a": [scale * 2] * 3}}))
    (shown,) = re.findall(r"^  plain sum +(\S+) ± (\S+)", text, re.MULTILINE)[:1]
    assert float(shown[0]) == pytest.approx(scale * 7 / 3, rel=0.3)
    assert max(map(len, text.splitlines())) < 120


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_text_keeps_to_a_width_and_says_every_verdict(width):
    result = made_up({m if m == PLAIN else f"a method called {m}": losses for m, losses in NOISY.items()})
    text = result.text(width)
    assert max(map(len, text.splitlines())) <= width
    sentences = str(result).rpartition("\n\n")[2]
    assert " ".join(text.split()).endswith(" ".join(sentences.split()))
    assert ("verdict" in text) == (width > 80)


def test_the_rich_table_has_the_same_cells_and_takes_no_name_for_markup():
    from rich.console import Console

    result = made_up({"[bold]X" if m == "X" else m: losses for m, losses in NOISY.items()})
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115  (the console keeps it)
    with console.file:
        console.print(result.table())
    text = console.export_text()
    assert "[bold]X" in text
    assert all(cell in text for line in str(result).splitlines()[3:14] for cell in re.split(r" {2,}", line.strip()))


# -- progress and imports ----------------------------------------------------------------------------------------------


def test_the_progress_bar_is_on_stderr(capsys):
    study(progress=True)
    shown = capsys.readouterr()
    assert "4/4 runs" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(("module", "name"), [("scipy.special", "scipy"), ("rich.progress", "rich")])
def test_a_missing_extra_says_what_to_install_before_any_training(module, name, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=re.escape(f'needs {name}. Install it with: pip install "mtopt[compare]"')):
        study(progress=True, make_model=lambda: pytest.fail("it trained"))


def test_nothing_is_imported_before_it_is_needed():
    code = "import sys, mtopt, mtopt._comparison.compare; print({'scipy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "set()\n"
