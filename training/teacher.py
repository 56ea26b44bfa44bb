"""A non-spiking teacher for distillation: the CIFAR ResNet of He et al. 2016, Sec. 4.2.

The weights are those of the public ``pytorch_resnet_cifar10`` checkpoints (ResNet-56: 93.39 % on
the test set). Only its logits are used, once per training image and its mirror image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

TEACHER_LOGITS = "teacher_logits.npy"
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a parameter-free shortcut (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map float ``[N, C, H, W]`` to ``[N, C', H/stride, W/stride]``."""
        hidden = functional.relu(self.bn1(self.conv1(x)))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(self.bn2(self.conv2(hidden)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for 32x32 images, e.g. n = 9 for ResNet-56."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised float images ``[N, 3, 32, 32]`` to logits ``[N, 10]``."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def load_teacher(path: Path) -> CifarResNet:
    """Load a ``pytorch_resnet_cifar10`` checkpoint (read as plain tensors, no code is run)."""
    weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    blocks = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("layer1."))
    teacher = CifarResNet(blocks)
    teacher.load_state_dict(weights)
    return teacher.eval()


@torch.no_grad()
def teacher_logits(teacher: CifarResNet, pixels: NDArray[np.uint8]) -> Tensor:
    """Return float32 logits ``[2, N, 10]`` for images uint8 ``[N, 3, 32, 32]`` and mirrors."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    logits = []
    for start in range(0, len(pixels), 250):
        batch = (torch.from_numpy(pixels[start : start + 250]).float() / 255 - mean) / std
        with torch.autocast("cpu", torch.bfloat16):
            logits.append(torch.stack([teacher(batch), teacher(batch.flip(-1))]).float())
    return torch.cat(logits, dim=1)
