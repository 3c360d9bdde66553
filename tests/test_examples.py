"""The examples: each runs as its docstring says, and each trainer does for several losses what it does for one."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import scripts
import torch
from scripts import EXAMPLES, ROOT, assert_same_parameters, command_line
from torch import nn
from torch.utils.data import DataLoader

import mtopt

PACKAGES = {
    "ddp": "torch",
    "fsdp2": "torch",
    "lightning_module": "lightning",
    "accelerate_loop": "accelerate",
    "hugging_face_trainer": "transformers",
}

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.filterwarnings("ignore"),  # what the trainers deprecate and advise is theirs
]
nothing_left_behind = pytest.fixture(autouse=True)(scripts.nothing_left_behind)


def printed(name: str) -> str:
    return scripts.printed(name, PACKAGES[name])


def example(name: str) -> SimpleNamespace:
    return scripts.example(name, PACKAGES[name])


@pytest.fixture
def no_transforms(monkeypatch):
    """Every example's optimizer takes the plain sum, its losses one by one."""
    wrapper = mtopt.MultiLossOptimizer
    monkeypatch.setattr(mtopt, "MultiLossOptimizer", lambda inner: wrapper(inner, []))


# -- the scripts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGES)
def test_an_example_runs_as_it_says_and_its_losses_fall(name):
    scripts.check_that_losses_fall(name, PACKAGES[name])


def test_the_recipes_name_every_script_and_how_to_run_it():
    recipes = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f"```bash\n{command_line(script.stem)}\n```" in recipes


@pytest.mark.parametrize("name", ["ddp", "lightning_module", "accelerate_loop"])
def test_two_ranks_end_with_the_same_parameters(name):
    assert "2 ranks, same parameters: True" in printed(name).splitlines()


def test_an_fsdp2_rank_holds_its_part_of_the_parameters_only():
    here, all_of_them = map(int, re.search(r"holds (\d+) of (\d+) numbers", printed("fsdp2")).groups())
    assert 0.4 * all_of_them < here < 0.6 * all_of_them


def test_a_hugging_face_trainer_resumes_bit_by_bit():
    assert "resumed in the middle, same parameters: True" in printed("hugging_face_trainer").splitlines()


# -- Lightning ---------------------------------------------------------------------------------------------------------


def fit(net, data, *, checkpoint=None, **settings):
    lightning = pytest.importorskip("lightning")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    keep = {"enable_checkpointing": bool(settings.get("callbacks"))}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, **quiet, **keep, **settings)
    trainer.fit(net, DataLoader(data, batch_size=64), ckpt_path=checkpoint)
    return trainer


def test_lightning_autocasts_inside_the_step_and_counts_the_steps():
    ex = example("lightning_module")
    net, dtypes = ex.Net(epochs=1), set()
    net.trunk.register_forward_hook(lambda module, args, features: dtypes.add(features.dtype))
    trainer = fit(net, ex.make_data(), max_epochs=1, precision="bf16-mixed")
    assert dtypes == {torch.bfloat16}
    assert trainer.global_step == 512 / 64
    assert "rows combined where the losses meet" in trainer.optimizers[0].explain()


def test_lightning_with_no_transforms_is_lightning_on_the_sum(no_transforms):
    ex = example("lightning_module")

    class OnTheSum(ex.Net):
        def configure_optimizers(self):
            (optimizer,), _ = super().configure_optimizers()
            return [optimizer.inner], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer.inner, self.epochs)]

        def backward(self, loss, losses):
            loss.backward()

    data, nets = ex.make_data(), []
    for Net in (ex.Net, OnTheSum):  # noqa: N806
        torch.manual_seed(0)
        nets.append(Net(epochs=2))
        fit(nets[-1], data, max_epochs=2, precision="bf16-mixed")
    assert_same_parameters(*nets)


def test_a_lightning_run_resumes_bit_by_bit(tmp_path):
    ex = example("lightning_module")
    from lightning.pytorch.callbacks import ModelCheckpoint

    data = ex.make_data()
    whole, resumed = ex.Net(epochs=3), ex.Net(epochs=3)
    keeper = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(whole, data, max_epochs=3, callbacks=[keeper])
    fit(resumed, data, max_epochs=3, checkpoint=tmp_path / "epoch=0.ckpt")
    assert_same_parameters(whole, resumed)


@pytest.mark.parametrize(("scale", "steps"), [(2.0**10, "taken"), (float("inf"), "skipped")])
def test_lightning_takes_the_loss_scale_out_again_and_skips_a_step_that_overflows(scale, steps):
    ex = example("lightning_module")
    from lightning.pytorch.plugins import MixedPrecision

    class Sgd(ex.Net):  # Adam would hide a scale
        def configure_optimizers(self):
            return mtopt.MultiLossOptimizer(torch.optim.SGD(self.parameters(), lr=0.1), mtopt.GradDrop(seed=0))

        def on_train_epoch_end(self):
            pass

    data, nets = ex.make_data(), []
    for init_scale in (1.0, scale):
        torch.manual_seed(0)
        nets.append(Sgd(epochs=1))
        scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
        start = nn.utils.parameters_to_vector(nets[-1].parameters()).detach()
        fit(nets[-1], data, max_epochs=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    unscaled, end = (nn.utils.parameters_to_vector(net.parameters()) for net in nets)
    torch.testing.assert_close(end, unscaled if steps == "taken" else start, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(unscaled, start, atol=1e-2)


# -- Accelerate --------------------------------------------------------------------------------------------------------


class Run:
    """A run of Accelerate with two micro-batches per step."""

    def __init__(self, *, scale=None, seed=0, **settings):
        self.example = example("accelerate_loop")
        accelerate = pytest.importorskip("accelerate")
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, **settings)
        if scale is not None:  # Accelerate itself makes a scaler for GPUs only
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        torch.manual_seed(0)
        loader = DataLoader(self.example.make_data(), batch_size=64, shuffle=True)
        torch.manual_seed(seed)
        model = self.example.Net()
        optimizer = mtopt.MultiLossOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        prepared = self.accelerator.prepare(model, optimizer, scheduler, loader)
        self.model, self.optimizer, self.scheduler, self.loader = prepared

    def epoch(self, *, on_the_sum=False, by_total=False, clip=None):
        for batch in self.loader:
            with self.accelerator.accumulate(self.model):
                losses = self.model(*batch)
                if on_the_sum:
                    self.accelerator.backward(sum(losses))
                elif by_total:
                    self.accelerator.backward(mtopt.total(self.optimizer, losses))
                else:
                    self.example.backward(self.accelerator, self.optimizer, losses)
                if clip is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()


def test_accelerate_with_no_transforms_is_accelerate_on_the_sum(no_transforms):
    models = []
    for on_the_sum in (False, True):
        run = Run(mixed_precision="bf16")
        run.epoch(on_the_sum=on_the_sum, clip=0.5)
        models.append(run.model)
    assert_same_parameters(*models)


@pytest.mark.parametrize(("scale", "steps"), [(2.0**10, "taken"), (float("inf"), "skipped")])
def test_accelerate_takes_the_loss_scale_out_again_and_skips_a_step_that_overflows(scale, steps):
    plain = Run()
    start = [parameter.clone() for parameter in plain.model.parameters()]
    plain.epoch()
    scaled = Run(scale=scale)
    scaled.epoch()
    expected = list(plain.model.parameters()) if steps == "taken" else start
    for parameter, value in zip(scaled.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value, rtol=0, atol=0)
    assert scaled.optimizer.step_was_skipped == (steps == "skipped")


@pytest.mark.parametrize("scale", [None, 2.0**10])
def test_accelerate_may_be_given_a_total(scale):
    models = []
    for by_total in (False, True):
        run = Run(scale=scale)
        run.epoch(by_total=by_total, clip=0.5)
        models.append(run.model)
    assert_same_parameters(*models)


def test_an_accelerate_run_resumes_bit_by_bit(tmp_path):
    whole = Run()
    whole.epoch()
    whole.accelerator.save_state(tmp_path)
    whole.epoch()
    resumed = Run(seed=1)
    resumed.accelerator.load_state(tmp_path)
    resumed.epoch()
    assert_same_parameters(whole.model, resumed.model)


# -- Transformers ------------------------------------------------------------------------------------------------------


def test_a_hugging_face_trainer_with_no_transforms_is_trainer_on_the_sum(no_transforms, monkeypatch, tmp_path):
    ex = example("hugging_face_trainer")

    class OnTheSum(ex.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return sum(model(**inputs)["losses"])

    data = ex.make_data()
    several = ex.train(str(tmp_path), data)
    monkeypatch.setitem(ex.train.__globals__, "MultiLossTrainer", OnTheSum)
    one = ex.train(str(tmp_path), data)
    assert_same_parameters(several.model, one.model)
    logged = [[entry.get("loss") for entry in trainer.state.log_history] for trainer in (several, one)]
    assert logged[0] == pytest.approx(logged[1])
