"""Programs that people run, with the real packages: the scripts in docs/examples that need the extra `programs`.

Where a package is missing, its tests are skipped. Each script runs as it says; the plain sum through it is the program
without us, to the last bit; one step is that of rows taken by plain autograd and combined by hand.
"""

from __future__ import annotations

import pytest
import scripts
import torch
from scripts import assert_same_parameters
from torch import nn
from torch.utils.data import DataLoader

import mtopt

PACKAGES = {
    "deepxde_poisson": "deepxde",
    "detection_losses": "transformers",
    "libmtl_trainer": "torch",
    "lightning_automatic": "lightning",
    "loaders_in_turn": "torch",
    "lora_distillation": "peft",
    "muon_with_adamw": "torch",
    "pina_poisson": "pina",
    "sam_and_schedule_free": "pytorch_optimizer",
    "stable_baselines3_ppo": "stable_baselines3",
    "torch_rechub_mmoe": "torch_rechub",
}

pytestmark = [pytest.mark.timeout(250), pytest.mark.filterwarnings("ignore")]
nothing_left_behind = pytest.fixture(autouse=True)(scripts.nothing_left_behind)


def example(name):
    return scripts.example(name, PACKAGES[name])


def plain(inner):
    return mtopt.MultiLossOptimizer(inner, [])


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def check_step(model, losses, again, make=mtopt.ConFIG):
    """The gradients of one backward against rows by autograd, combined by the weights of their Gramian.

    `again` are the same losses, of another graph.
    """
    parameters = trained(model)
    mtopt.MultiLossOptimizer(torch.optim.SGD(parameters, lr=1.0), make(), at="all parameters").backward(losses)
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in again]
    full = [[torch.zeros_like(p) if r is None else r for r, p in zip(row, parameters, strict=True)] for row in rows]
    flat = torch.stack([nn.utils.parameters_to_vector(row) for row in full]).double()
    weights = make().weights(flat @ flat.T, mtopt.Losses(tuple(range(len(rows))), len(rows))).tolist()
    for i, parameter in enumerate(parameters):
        expected = sum(w * row[i] for w, row in zip(weights, full, strict=True))
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-9)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_program_runs_as_it_says_and_its_losses_fall(name):
    scripts.check_that_losses_fall(name, PACKAGES[name])


# -- DeepXDE -----------------------------------------------------------------------------------------------------------


def deepxde_model(name="adam"):
    ex = example("deepxde_poisson")
    model = ex.make_model()
    model.compile(name, lr=1e-2, decay=("step", 2, 0.5))
    return ex, model


def test_deepxde_with_the_plain_sum_is_deepxde():
    _, model = deepxde_model()
    model.train(iterations=5, verbose=0)
    ex, other = deepxde_model()
    ex.use(other, plain(other.opt))
    other.train(iterations=5, verbose=0)
    assert_same_parameters(model.net, other.net)


def test_a_step_of_deepxde_is_that_of_rows_by_autograd():
    _, model = deepxde_model()
    data = model.data.train_next_batch()
    losses, again = (model.outputs_losses_train(*data)[1] for _ in range(2))
    check_step(model.net, losses, again)


def test_a_deepxde_run_resumes_bit_by_bit(tmp_path):
    def made():
        ex, model = deepxde_model()
        methods = [mtopt.GradientNorms(), mtopt.PCGrad(seed=0), mtopt.Whitening()]
        ex.use(model, mtopt.MultiLossOptimizer(model.opt, methods, at="parameters"))
        model.lr_scheduler = None
        return model

    whole = made()
    whole.train(iterations=4, verbose=0)
    path = whole.save(str(tmp_path / "model"))
    resumed = made()
    resumed.restore(path)
    for model in (whole, resumed):
        model.train(iterations=4, verbose=0)
    assert_same_parameters(whole.net, resumed.net)


# -- PINA --------------------------------------------------------------------------------------------------------------


def test_pina_with_the_plain_sum_is_pina():
    ex = example("pina_poisson")

    class Plain(mtopt.MultiLossOptimizer):
        def __init__(self, parameters, lr):
            super().__init__(torch.optim.Adam(parameters, lr=lr), [])

    solvers = ex.make_solver(Plain, ex.HandOver()), ex.make_solver(torch.optim.Adam, None)
    for solver in solvers:
        quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
        torch.manual_seed(1)
        ex.Trainer(solver, max_epochs=4, **quiet).train()
    assert_same_parameters(*(solver.model for solver in solvers))


def test_pina_hands_over_five_losses():
    ex = example("pina_poisson")
    solver = ex.make_solver(ex.Adam, ex.HandOver())
    quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    ex.Trainer(solver, max_epochs=1, **quiet).train()
    said = solver.optimizer.instance.explain()
    assert "losses: 0, 1, 2, 3, 4" in said
    assert "parameters: 6 shared" in said


# -- Lightning, automatic ----------------------------------------------------------------------------------------------


def fit(net, data, checkpoint=None, **settings):
    ex = example("lightning_automatic")
    trainer = ex.make_trainer(max_epochs=3, **settings)
    trainer.fit(net, DataLoader(data, batch_size=64), ckpt_path=checkpoint)
    return net


@pytest.mark.parametrize(
    "settings", [{}, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}], ids=["plain", "accumulated"]
)
def test_lightning_with_the_plain_sum_is_lightning(settings):
    ex = example("lightning_automatic")

    class Ours(ex.Net):
        def configure_optimizers(self):
            return plain(torch.optim.AdamW(self.parameters(), lr=5e-3))

    class Theirs(ex.Net):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=5e-3)

        def training_step(self, batch, batch_idx):
            return sum(self(*batch).values())

    nets = []
    for Net in (Ours, Theirs):  # noqa: N806
        torch.manual_seed(0)
        nets.append(fit(Net(), ex.make_data(), **settings))
    assert_same_parameters(*nets)


def test_lightning_accumulates_the_decisions_of_its_batches():
    """With SGD: a third of the sum of three decisions, clipped, by hand."""
    ex = example("lightning_automatic")

    class Sgd(ex.Net):
        def configure_optimizers(self):
            return mtopt.MultiLossOptimizer(torch.optim.SGD(self.parameters(), lr=0.1), mtopt.UPGrad())

    torch.manual_seed(0)
    net = Sgd()
    torch.manual_seed(0)
    other = Sgd()
    data = ex.make_data()
    ex.make_trainer(max_steps=1, accumulate_grad_batches=3, gradient_clip_val=0.1).fit(
        net, DataLoader(data, batch_size=64)
    )
    optimizer = other.configure_optimizers()
    for batch, _ in zip(DataLoader(data, batch_size=64), range(3), strict=False):
        optimizer.backward(other(*batch))
    for parameter in other.parameters():
        parameter.grad /= 3
    nn.utils.clip_grad_norm_(other.parameters(), 0.1)
    optimizer.step()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_lightning_run_resumes_bit_by_bit(tmp_path):
    ex = example("lightning_automatic")
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Stateful(ex.Net):
        def configure_optimizers(self):
            methods = [mtopt.GradientNorms(), mtopt.GradDrop(seed=1)]
            return mtopt.MultiLossOptimizer(torch.optim.AdamW(self.parameters(), lr=5e-3), methods)

    keeper = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole = fit(Stateful(), ex.make_data(), callbacks=[keeper], enable_checkpointing=True)
    resumed = fit(Stateful(), ex.make_data(), tmp_path / "epoch=0.ckpt")
    assert_same_parameters(whole, resumed)


# -- reinforcement learning, recommenders, detectors, adapters, LibMTL -------------------------------------------------


def test_ppo_with_the_plain_sum_is_ppo():
    ex = example("stable_baselines3_ppo")
    from stable_baselines3 import PPO

    agents = []
    for ppo in (ex.MultiLossPPO, PPO):
        agents.append(ex.make_agent([], ppo=ppo))  # which seeds everything
        agents[-1].learn(512)
    for p, q in zip(agents[0].policy.parameters(), agents[1].policy.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)  # the sum's weights multiply in another order


def test_a_saved_agent_is_loaded_with_the_state_of_its_optimizer_and_transforms(tmp_path):
    ex = example("stable_baselines3_ppo")
    agent = ex.make_agent([mtopt.GradientNorms(), mtopt.PCGrad(seed=0)])
    agent.learn(512)
    agent.save(tmp_path / "agent")
    loaded = ex.MultiLossPPO.load(tmp_path / "agent", device="cpu")
    mine, theirs = agent.policy.optimizer, loaded.policy.optimizer
    assert isinstance(theirs, mtopt.MultiLossOptimizer)
    assert_same_parameters(agent.policy, loaded.policy)
    states = [optimizer.state_dict() for optimizer in (mine, theirs)]
    assert str(states[0]["mtopt"]) == str(states[1]["mtopt"])
    for number, kept in states[0]["state"].items():
        assert all(torch.equal(value, states[1]["state"][number][name]) for name, value in kept.items())


@pytest.mark.parametrize("sparse", [False, True])
def test_a_recommender_with_the_plain_sum_is_the_recommender(sparse):
    ex = example("torch_rechub_mmoe")
    settings = {"optimizer_fn": torch.optim.Adagrad, "optimizer_params": {"lr": 0.05}}
    models = []
    for ours in (True, False):
        model = ex.make_model(sparse=sparse)
        kind = ["classification"] * 2
        if ours:
            trainer = ex.MultiLossTrainer(model, kind, [], "activations", **settings)
        else:
            trainer = ex.MTLTrainer(model, kind, **settings)
        trainer.train_one_epoch(DataLoader(ex.Clicks(256), batch_size=64))
        models.append(model)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q)


def test_a_step_of_a_detector_is_that_of_rows_by_autograd():
    ex = example("detection_losses")
    torch.manual_seed(0)
    detector = ex.make_detector().eval()
    pictures, labels = ex.make_batch(4)
    both = [ex.weighted(detector, detector(pixel_values=pictures, labels=labels)) for _ in range(2)]
    check_step(detector, both[0], both[1].values())
    total = detector(pixel_values=pictures, labels=labels).loss
    torch.testing.assert_close(sum(both[0].values()), total)


def test_a_step_of_adapters_is_that_of_rows_by_autograd():
    ex = example("lora_distillation")
    torch.manual_seed(0)
    student, teacher = ex.make_student().eval(), ex.make_bert().eval()
    nn.init.normal_(next(p for name, p in student.named_parameters() if "lora_B" in name))
    tokens = torch.randint(8, (16, 12))
    losses, again = (ex.losses_of(student, teacher, tokens) for _ in range(2))
    check_step(student, losses, again.values())
    assert all(p.grad is None for p in student.parameters() if not p.requires_grad)


def test_a_trainer_like_libmtl_s_with_the_plain_sum_is_that_trainer():
    ex = example("libmtl_trainer")
    models = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = ex.Model({"kind": 3, "depth": 1})
        trainer = ex.Trainer(model, torch.optim.Adam(model.parameters(), lr=3e-3))
        if ours:
            ex.use(trainer, plain(trainer.optimizer))
        for _ in range(5):
            x = torch.randn(16, 8)
            trainer.train_step(x, x[:, :3].argmax(1), x[:, 1:2])
        models.append(model)
    assert_same_parameters(*models)


def test_sam_takes_one_decision_for_both_gradients_of_a_step():
    ex = example("sam_and_schedule_free")
    package = pytest.importorskip("pytorch_optimizer")
    net = ex.Net()
    inner = package.SAM(net.parameters(), base_optimizer=torch.optim.SGD, rho=0.05, lr=0.1)
    optimizer = plain(inner)
    other = ex.Net()
    theirs = package.SAM(other.parameters(), base_optimizer=torch.optim.SGD, rho=0.05, lr=0.1)
    for step in range(3):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))

        def ours(x=x):
            loss = mtopt.total(optimizer, net(x))
            loss.backward()
            return loss

        def their_closure(x=x):
            loss = sum(other(x).values())
            loss.backward()
            return loss

        for closure, each in ((ours, optimizer), (their_closure, theirs)):
            each.zero_grad()
            closure()
            each.step(closure)
        assert_same_parameters(net, other)
