"""The models that the benchmarks train: a shared trunk, one small head per loss, one fixed batch. No training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtopt import MultiLossLayer

Criterion = Callable[[Tensor, Tensor], Tensor]


class Problem:
    """A trunk, a head per loss, and a batch with one target per head.

    Args:
        trunk: From the inputs to the features that all heads read.
        heads: One per loss.
        inputs: The batch.
        targets: One per head.
        criterion: From a head's output and its target to a loss.
    """

    def __init__(
        self,
        trunk: nn.Module,
        heads: Sequence[nn.Module],
        inputs: Tensor,
        targets: Sequence[Tensor],
        criterion: Criterion,
    ) -> None:
        self.trunk = trunk
        self.heads = nn.ModuleList(heads)
        self.share: MultiLossLayer | None = None
        self.inputs = inputs
        self.targets = targets
        self.criterion = criterion

    def forward(self) -> tuple[Tensor, list[Tensor]]:
        """The features and the losses."""
        features: Tensor = self.trunk(self.inputs)
        read = [features] * len(self.heads) if self.share is None else self.share(features)
        outputs = [head(x) for head, x in zip(self.heads, read, strict=True)]
        return features, [self.criterion(*pair) for pair in zip(outputs, self.targets, strict=True)]

    def parameters(self) -> list[nn.Parameter]:
        return [*self.trunk.parameters(), *self.heads.parameters()]

    def to(self, device: torch.device) -> Problem:
        """The same problem, moved to a device."""
        self.trunk.to(device)
        self.heads.to(device)
        self.inputs = self.inputs.to(device)
        self.targets = [target.to(device) for target in self.targets]
        return self

    @property
    def shared_bytes(self) -> int:
        """Size of the parameters that all losses reach."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.trunk.parameters())


def make_problem(model: str, n_losses: int) -> Problem:
    """The same weights and the same batch at every call; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[model](n_losses)


def mlp(n_losses: int) -> Problem:
    """4 × 512, batch 256, MSE: a light trunk, a wide activation, trivial heads."""
    trunk = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(512, 512), nn.ReLU())))
    return _regression(trunk, 512, torch.randn(256, 512), n_losses)


def toy(n_losses: int) -> Problem:
    """A step of microseconds: what is left is overhead."""
    return _regression(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), 8, torch.randn(4, 8), n_losses)


def resnet(n_losses: int) -> Problem:
    """Three stages of two basic blocks for 32 × 32 images, batch 32, ten classes per loss."""
    trunk = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(BasicBlock(16, 16, 1), BasicBlock(16, 16, 1)),
        *(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1)),
        *(BasicBlock(32, 64, 2), BasicBlock(64, 64, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return _classification(trunk, 64, torch.randn(32, 3, 32, 32), n_losses)


def transformer(n_losses: int) -> Problem:
    """Four encoder layers of width 256, 4 heads, 64 tokens, batch 8, ten classes per loss, no dropout."""
    return _classification(Encoder(), 256, torch.randint(Encoder.VOCABULARY, (8, Encoder.LENGTH)), n_losses)


MODELS: dict[str, Callable[[int], Problem]] = {"mlp": mlp, "resnet": resnet, "transformer": transformer, "toy": toy}


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a way around them."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        self.around: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.around = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.around(x))


class Encoder(nn.Module):
    """Tokens to the mean of what the last encoder layer makes of them."""

    VOCABULARY = 1000
    LENGTH = 64

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(self.VOCABULARY, 256)
        self.places = nn.Parameter(0.02 * torch.randn(self.LENGTH, 256))
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, nn.LayerNorm(256), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        encoded: Tensor = self.layers(self.tokens(tokens) + self.places)
        return encoded.mean(1)


def _regression(trunk: nn.Module, width: int, inputs: Tensor, n_losses: int) -> Problem:
    heads = [nn.Linear(width, 1) for _ in range(n_losses)]
    targets = torch.randn(n_losses, len(inputs), 1)
    return Problem(trunk, heads, inputs, targets.unbind(), functional.mse_loss)


def _classification(trunk: nn.Module, width: int, inputs: Tensor, n_losses: int) -> Problem:
    heads = [nn.Linear(width, 10) for _ in range(n_losses)]
    targets = torch.randint(10, (n_losses, len(inputs)))
    return Problem(trunk, heads, inputs, targets.unbind(), functional.cross_entropy)
