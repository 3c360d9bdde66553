"""The Trainer of Hugging Face Transformers with two losses: a subclass with two methods.

`create_optimizer` wraps the optimizer that the TrainingArguments ask for. `training_step` gives it the losses, where
Trainer would call `accelerator.backward(loss)`. The scheduler, accumulation, clipping, logs and checkpoints stay
Trainer's: the last lines resume a run in the middle and end with the same parameters. Run it with

    python docs/examples/hugging_face_trainer.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, Trainer, TrainingArguments, set_seed

import mtopt


class Net(nn.Module):
    """A small BERT with two heads: which token comes first, and how often token 0 comes at all."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        self.trunk = BertModel(BertConfig(vocab_size=8, max_position_embeddings=12, **sizes))
        self.first, self.often = nn.Linear(32, 8), nn.Linear(32, 1)

    def forward(self, input_ids: Tensor, often: Tensor) -> dict[str, list[Tensor]]:
        features = self.trunk(input_ids).pooler_output
        losses = [
            F.cross_entropy(self.first(features), input_ids[:, 0]),
            F.mse_loss(self.often(features).squeeze(1), often),
        ]
        return {"losses": losses}


class MultiLossTrainer(Trainer):
    optimizer: Any

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        if self.optimizer is None:
            self.optimizer = mtopt.MultiLossOptimizer(super().create_optimizer(model))
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        model.train()
        with self.compute_loss_context_manager():
            losses = model(**self._prepare_inputs(inputs))["losses"]
        losses = [loss / self.current_gradient_accumulation_steps for loss in losses]
        scaler = self.accelerator.scaler
        self.optimizer.optimizer.backward(losses if scaler is None else scaler.scale(losses))
        return torch.stack(losses).sum().detach()


def make_data() -> list[dict[str, Tensor]]:
    tokens = torch.randint(8, (512, 12))
    return [{"input_ids": row, "often": (row == 0).float().mean()} for row in tokens]


def train(folder: str, data: list[dict[str, Tensor]], checkpoint: str | None = None) -> Trainer:
    set_seed(0)
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=4,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        logging_steps=16,
        save_steps=32,
        disable_tqdm=True,
    )
    trainer = MultiLossTrainer(Net(), arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def main() -> None:
    set_seed(0)
    data = make_data()
    with TemporaryDirectory() as folder:
        whole = train(folder, data)
        resumed = train(folder, data, checkpoint=str(Path(folder, "checkpoint-32")))
    history = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    print(f"sum of losses: {history[0]:.4f} -> {history[-1]:.4f}")
    same = all(torch.equal(*pair) for pair in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    print(f"resumed in the middle, same parameters: {same}")


if __name__ == "__main__":
    main()
