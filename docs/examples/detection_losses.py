"""A detector from Transformers (YOLOS, with DETR's losses): mtopt gets the entries of its `loss_dict`, with the
detector's own weights, in place of their sum. Run it with

    python docs/examples/detection_losses.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import YolosConfig, YolosForObjectDetection, set_seed

import mtopt


def make_detector() -> YolosForObjectDetection:
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    picture = {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 5}
    return YolosForObjectDetection(YolosConfig(num_labels=2, use_mid_position_embeddings=False, **sizes, **picture))


def weighted(detector: YolosForObjectDetection, output: Any) -> dict[str, Tensor]:
    """The losses that add up to the model's `loss`. The dict also has numbers for reading, such as how many boxes."""
    config = detector.config
    weights = {"loss_ce": 1, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
    return {name: weight * output.loss_dict[name] for name, weight in weights.items()}


def make_batch(n: int = 16) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Pictures of one bright or dark box on grey, with its place."""
    center, size = 0.3 + 0.4 * torch.rand(n, 2), 0.2 + 0.2 * torch.rand(n, 2)
    kinds = torch.randint(2, (n,))
    grid = (torch.arange(32) + 0.5) / 32
    inside = ((grid[None, None] - center[..., None]).abs() < size[..., None] / 2).float()
    pictures = inside[:, 1, :, None] * inside[:, 0, None, :] * (2 * kinds - 1)[:, None, None]
    labels = [
        {"class_labels": kind[None], "boxes": torch.cat([c, s])[None]}
        for kind, c, s in zip(kinds, center, size, strict=True)
    ]
    return pictures[:, None].expand(n, 3, 32, 32), labels


def main() -> None:
    set_seed(0)
    detector = make_detector()
    adam = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    optimizer = mtopt.MultiLossOptimizer(adam, mtopt.UPGrad(), at="parameters")
    pictures, labels = make_batch()  # learned by heart
    history = []
    for _ in range(250):
        losses = weighted(detector, detector(pixel_values=pictures, labels=labels))
        optimizer.zero_grad()
        optimizer.step(losses)
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
    for name in history[0]:
        print(f"{name}: {history[0][name]:.4f} -> {history[-1][name]:.4f}")


if __name__ == "__main__":
    main()
