"""A training loop of Hugging Face Accelerate, with mixed precision, gradient accumulation and clipping.

`accelerator.backward` takes one loss. `backward` below does the same for several: it divides them by the number of
micro-batches, scales them, and gives them to mtopt. Everything else is Accelerate's own. Give no losses to
`optimizer.step`: between two updates Accelerate skips that call, and the losses would be lost. Run it with

    torchrun --nproc-per-node 2 docs/examples/accelerate_loop.py
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import mtopt


class Net(nn.Module):
    """A trunk with two heads; it returns their losses."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.kind, self.depth = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x: Tensor, kind: Tensor, depth: Tensor) -> list[Tensor]:
        features = self.trunk(x)
        return [
            F.cross_entropy(self.kind(features), kind),
            F.mse_loss(self.depth(features).squeeze(1), depth),
        ]


def backward(accelerator: Accelerator, optimizer: Any, losses: Sequence[Tensor]) -> None:
    """Do what `accelerator.backward(loss)` does, for several losses."""
    losses = [loss / accelerator.gradient_accumulation_steps for loss in losses]
    if accelerator.scaler is not None:
        losses = accelerator.scaler.scale(losses)
    optimizer.optimizer.backward(losses)  # Accelerate has wrapped mtopt's optimizer in its own


def make_data() -> TensorDataset:
    x = torch.randn(512, 8)
    return TensorDataset(x, x[:, :3].argmax(1), x[:, 1] - x[:, 2] * x[:, 3])


def main() -> None:
    set_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16", gradient_accumulation_steps=2)
    data, model = make_data(), Net()
    optimizer = mtopt.MultiLossOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-2))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 160)
    loader = DataLoader(data, batch_size=16, shuffle=True)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    everything = [column.to(accelerator.device) for column in data.tensors]
    first = model(*everything)
    for _ in range(10):
        for batch in loader:
            with accelerator.accumulate(model):
                backward(accelerator, optimizer, model(*batch))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    of_all_ranks = accelerator.gather(nn.utils.parameters_to_vector(model.parameters()).detach()[None])
    last = model(*everything)

    for name, before, after in zip(("kind", "depth"), first, last, strict=True):
        accelerator.print(f"{name}: {before:.4f} -> {after:.4f}")
    same = bool((of_all_ranks == of_all_ranks[0]).all())
    accelerator.print(f"{len(of_all_ranks)} ranks, same parameters: {same}")
    time.sleep(0.1)  # or gloo threads may abort at exit: https://github.com/pytorch/pytorch/issues/190489
    accelerator.end_training()


if __name__ == "__main__":
    main()
