"""A run that may be killed at any moment: started again, it continues from its last checkpoint, bit for bit.

    python docs/examples/resume.py runs/resume

In that folder, `checkpoint.pt` holds everything that changes during training: the parameters, the optimizer (Adam's
moments and GradDrop's random state), the scheduler, and the generator that draws the batches. `curve.txt` gets each
step's losses.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mtopt

N_STEPS, SAVE_EVERY = 40, 10


class Net(nn.Module):
    """A trunk with two heads; it returns their losses."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.kind, self.depth = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x: Tensor, kind: Tensor, depth: Tensor) -> list[Tensor]:
        features = self.trunk(x)
        return [F.cross_entropy(self.kind(features), kind), F.mse_loss(self.depth(features).squeeze(1), depth)]


def save(state: dict[str, Any], path: Path) -> None:
    """Replace the file in one go: whenever the process dies, the old checkpoint or the new one is there, complete."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    data = [x, x[:, :3].argmax(1), x[:, 1] - x[:, 2] * x[:, 3]]
    picker = torch.Generator().manual_seed(1)
    model = Net()
    optimizer = mtopt.MultiLossOptimizer(torch.optim.AdamW(model.parameters(), lr=5e-3))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=N_STEPS)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    folder.mkdir(parents=True, exist_ok=True)
    saved: dict[str, Any] = {"step": 0, "end_of_curve": 0}
    if (folder / "checkpoint.pt").exists():
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        picker.set_state(saved["picker"])
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    with open(folder / "curve.txt", "a", buffering=1) as curve:  # a line is in the file as soon as it is printed
        curve.truncate(saved["end_of_curve"])  # the steps since the checkpoint are taken again
        for step in range(saved["step"] + 1, N_STEPS + 1):
            batch = torch.randint(len(x), (32,), generator=picker)
            losses = model(*(column[batch] for column in data))
            optimizer.zero_grad()
            optimizer.step(losses)
            scheduler.step()
            print(step, *(loss.item() for loss in losses), file=curve)
            if step % SAVE_EVERY == 0:
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {"picker": picker.get_state(), "step": step, "end_of_curve": curve.tell()}
                save(state, folder / "checkpoint.pt")
                print(f"step {step} of {N_STEPS}: checkpoint saved")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
