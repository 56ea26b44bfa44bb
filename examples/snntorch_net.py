"""A network of somebody's own, written and trained in snnTorch, for ``neucodex-train import-net``.

``python -m examples.snntorch_net cifar-10-batches-bin weights.safetensors`` trains it on the
published binary files of CIFAR-10. Nothing here knows of NeuCODEX.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import snntorch
import torch
from safetensors.torch import save_file
from snntorch import utils
from torch import Tensor, nn
from torch.nn import functional

TIMESTEPS = 4
EPOCHS = 3
BATCH = 128
LEARNING_RATE = 4e-3
MEAN, STD = 0.5, 0.25
"""Of pixels between 0 and 1; the recipe has to say the same."""


def network() -> nn.Sequential:
    """Return the network: float ``[N, 3, 32, 32]`` to spikes and membrane ``[N, 10]``."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            norm1=nn.BatchNorm2d(16),
            lif1=snntorch.Leaky(beta=0.5, init_hidden=True),
            conv2=nn.Conv2d(16, 32, 3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(32),
            # A leak of its own for every channel.
            lif2=snntorch.Leaky(
                beta=torch.full((32, 1, 1), 0.5), learn_beta=True, init_hidden=True
            ),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(32, 32, 3, padding=1, bias=False),
            norm3=nn.BatchNorm2d(32),
            lif3=snntorch.Leaky(beta=0.5, learn_threshold=True, init_hidden=True),
            pool3=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(0.1),
            linear=nn.Linear(32 * 4 * 4, 10),
            lif4=snntorch.Leaky(beta=0.8, reset_mechanism="none", init_hidden=True, output=True),
        )
    )


def membranes(net: nn.Module, pixels: Tensor) -> Tensor:
    """Return the last membrane potential after every timestep, float ``[T, N, 10]``.

    Args:
        net: starts from zero.
        pixels: uint8, ``[N, 3, 32, 32]``, the same at every timestep.
    """
    images = (pixels / 255 - MEAN) / STD
    utils.reset(net)
    return torch.stack([net(images)[1] for _ in range(TIMESTEPS)])


def read(paths: list[Path]) -> tuple[Tensor, Tensor]:
    """Return the pixels, uint8 ``[N, 3, 32, 32]``, and labels, int64 ``[N]``, of binary batches."""
    records = torch.from_numpy(np.concatenate([np.fromfile(path, np.uint8) for path in paths]))
    labels, pixels = torch.split(records.view(-1, 3073), [1, 3072], dim=1)
    return pixels.reshape(-1, 3, 32, 32), labels[:, 0].long()


def train(net: nn.Module, pixels: Tensor, labels: Tensor) -> None:
    """Train a network on every timestep's membrane potential."""
    optimiser = torch.optim.Adam(net.parameters())
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(labels)), BATCH):
            images = pixels[chosen].flip(-1) if torch.rand(()) < 0.5 else pixels[chosen]
            outputs = membranes(net, images).flatten(0, 1)
            loss = functional.cross_entropy(outputs, labels[chosen].repeat(TIMESTEPS))
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def accuracy(net: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Return the share of images whose mean membrane potential is right."""
    outputs = [membranes(net, images).mean(0) for images in torch.split(pixels, BATCH)]
    return float((torch.cat(outputs).argmax(-1) == labels).float().mean())


def main(folder: Path, weights: Path) -> None:
    """Train the network, say what it reaches on the test images, and save its weights."""
    torch.manual_seed(1)
    net = network()
    train(net, *read(sorted(folder.glob("data_batch_*.bin"))))
    reached = accuracy(net.eval(), *read([folder / "test_batch.bin"]))
    print(f"test accuracy {100 * reached:.2f} %")
    save_file(net.state_dict(), weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
