"""MMOE, a recommender of torch-rechub: with sparse tables, gradients are combined at the dense parameters only.

Run it with

    python docs/examples/torch_rechub_mmoe.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer

import mtopt


class MultiLossTrainer(MTLTrainer):
    """Wraps the trainer's optimizer, and gives it the losses where the trainer would take their mean."""

    def __init__(self, model: nn.Module, task_types: list[str], transforms: Any, at: Any, **settings: Any) -> None:
        super().__init__(model, task_types, **settings)
        self.optimizer = mtopt.MultiLossOptimizer(self.optimizer, transforms, at=at)

    def train_one_epoch(self, data_loader: Any) -> list[float]:
        self.model.train()
        totals = torch.zeros(self.n_task)
        for inputs, labels in data_loader:
            outputs = self.model(inputs)
            losses = [fn(outputs[:, i], labels[:, i].float()) for i, fn in enumerate(self.loss_fns)]
            self.optimizer.zero_grad()
            self.optimizer.step([loss / self.n_task for loss in losses])
            totals += torch.stack(losses).detach()
        return (totals / len(data_loader)).tolist()


class Clicks(Dataset[Any]):
    """Users with an age, and items; whether an item is clicked, and whether it is bought."""

    def __init__(self, n: int = 2000) -> None:
        random = torch.Generator().manual_seed(0)
        self.user, self.item = torch.randint(0, 50, (2, n), generator=random)
        self.age = torch.rand(n, generator=random)
        liking = (self.user * 7 + self.item * 3) % 11 / 11 + self.age
        self.labels = torch.stack([liking > 0.8, liking > 1.2], 1).float()

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, i: int) -> tuple[dict[str, Tensor], Tensor]:
        return {"user": self.user[i], "item": self.item[i], "age": self.age[i]}, self.labels[i]


def make_model(*, sparse: bool) -> MMOE:
    torch.manual_seed(0)
    features = [SparseFeature(name, vocab_size=50, embed_dim=8) for name in ("user", "item")]
    towers = [{"dims": [16]}, {"dims": [16]}]
    model = MMOE([*features, DenseFeature("age")], ["classification"] * 2, 4, {"dims": [32]}, towers)
    for table in model.modules():
        if isinstance(table, nn.Embedding):
            table.sparse = sparse
    return model


def dense_parameters(model: nn.Module) -> list[nn.Parameter]:
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [parameter for parameter in model.parameters() if id(parameter) not in tables]


def main() -> None:
    torch.set_num_threads(1)
    for sparse in (False, True):
        model = make_model(sparse=sparse)
        trainer = MultiLossTrainer(
            model,
            ["classification"] * 2,
            mtopt.UPGrad(),
            dense_parameters(model) if sparse else "parameters",
            optimizer_fn=torch.optim.Adagrad,
            optimizer_params={"lr": 0.05},
        )
        loader = DataLoader(Clicks(), batch_size=64, shuffle=True)
        first, *_, last = (trainer.train_one_epoch(loader) for _ in range(8))
        for name, before, after in zip(("click", "buy"), first, last, strict=True):
            print(f"{'sparse' if sparse else 'dense'} tables, {name}: {before:.4f} -> {after:.4f}")


if __name__ == "__main__":
    main()
