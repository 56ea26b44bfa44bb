"""Spiking backbones, cut into named stages between which only spikes pass.

ResNet-18 follows the membrane-shortcut form of MS-ResNet (Hu et al., "Advancing Spiking Neural
Networks towards Deep Residual Learning"): convolutions read spikes, the residual stream carries
real-valued currents, and every convolution is followed by its own BatchNorm, so it folds. Our own
decision where the paper is silent: a stage ends in a LIF layer and the next begins with a
projection shortcut, so that the features at every split point are binary, as NeuCODEX has them.

VGG-16 is thirteen convolution-BatchNorm-LIF layers in five blocks; max pooling of spikes keeps
them binary.

Every module here maps ``(x, state) -> (y, state)`` for a run of T timesteps, ``x`` being float
``[T, N, C, H, W]``. State is a nested dict of membrane potentials ``[N, C, H, W]`` whose keys
are the module names; ``None`` starts a sample. Running T timesteps at once equals running them
one by one with the state handed on (BatchNorm in evaluation mode).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.model.neuron import LIF
from shared.model.spec import scaled

State = dict[str, "Tensor | State | None"]
MakeLIF = Callable[[], LIF]

VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RESNET18_STAGES = (64, 128, 256, 512)


def over_time(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a stateless layer to every timestep of ``x`` (``[T, N, ...]``) in one call."""
    if len(x) == 1:  # keeps reshapes to a shape known only at run time out of exported graphs
        return layer(x[0])[None]
    y = layer(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])


def substate(state: State | None, name: str) -> State | None:
    """Return the part of ``state`` that belongs to the child ``name``."""
    return None if state is None else cast("State | None", state[name])


def membrane(state: State | None, name: str) -> Tensor | None:
    """Return the membrane potential of the LIF layer ``name``, None at a sample's start."""
    return None if state is None else cast("Tensor | None", state[name])


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a bias-free convolution with "same" padding and its BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Chain(nn.ModuleDict):
    """Named spiking modules run one after the other."""

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run ``x`` (``[T, N, ...]``) through every module; the state has one entry per name."""
        after: State = {}
        for name, module in self.items():
            x, after[name] = module(x, substate(state, name))
        return x, after


class ConvLIF(nn.Module):
    """Convolution with BatchNorm, LIF and optional 2x2 max pooling of the spikes."""

    def __init__(self, conv: nn.Sequential, make_lif: MakeLIF, *, pool: bool = False) -> None:
        super().__init__()
        self.conv = conv
        self.lif = make_lif()
        self.pool = pool

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map ``[T, N, C, H, W]`` to spikes ``[T, N, C', H', W']``."""
        spikes, after = self.lif(over_time(self.conv, x), membrane(state, "lif"))
        if self.pool:
            spikes = over_time(lambda s: functional.max_pool2d(s, 2), spikes)
        return spikes, {"lif": after}


class FirstBlock(nn.Module):
    """A stage's first residual block: spikes in, projection shortcut, residual stream out."""

    def __init__(self, inputs: int, outputs: int, stride: int, make_lif: MakeLIF) -> None:
        super().__init__()
        self.shortcut = conv_norm(inputs, outputs, kernel=1, stride=stride)
        self.conv1 = conv_norm(inputs, outputs, stride=stride)
        self.lif = make_lif()
        self.conv2 = conv_norm(outputs, outputs)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map spikes ``[T, N, C, H, W]`` to currents ``[T, N, C', H/stride, W/stride]``."""
        hidden, after = self.lif(over_time(self.conv1, x), membrane(state, "lif"))
        return over_time(self.shortcut, x) + over_time(self.conv2, hidden), {"lif": after}


class IdentityBlock(nn.Module):
    """A residual block inside a stage: the stream passes unchanged, its spikes are convolved."""

    def __init__(self, channels: int, make_lif: MakeLIF) -> None:
        super().__init__()
        self.lif1 = make_lif()
        self.conv1 = conv_norm(channels, channels)
        self.lif2 = make_lif()
        self.conv2 = conv_norm(channels, channels)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map currents ``[T, N, C, H, W]`` to currents of the same shape."""
        spikes, after1 = self.lif1(x, membrane(state, "lif1"))
        hidden, after2 = self.lif2(over_time(self.conv1, spikes), membrane(state, "lif2"))
        return x + over_time(self.conv2, hidden), {"lif1": after1, "lif2": after2}


class Fire(nn.Module):
    """A LIF layer as a module of a :class:`Chain`: currents in, spikes out."""

    def __init__(self, make_lif: MakeLIF) -> None:
        super().__init__()
        self.lif = make_lif()

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map currents ``[T, N, ...]`` to spikes of the same shape."""
        spikes, after = self.lif(x, membrane(state, "lif"))
        return spikes, {"lif": after}


class Classifier(nn.Module):
    """Global average pooling of the last spikes and a linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map spikes ``[T, N, C, H, W]`` to this timestep's logits ``[T, N, K]``."""
        return over_time(self.linear, x.mean(dim=(-2, -1))), {}


def resnet18_stages(inputs: int, width: float, make_lif: MakeLIF) -> dict[str, Chain]:
    """Return the stages ``stem``, ``layer1`` .. ``layer4`` of spiking ResNet-18 (3x3 stem)."""
    channels = [scaled(c, width) for c in RESNET18_STAGES]
    stages = {"stem": Chain({"conv": ConvLIF(conv_norm(inputs, channels[0]), make_lif)})}
    before = channels[0]
    for number, outputs in enumerate(channels, start=1):
        stages[f"layer{number}"] = Chain(
            {
                "block1": FirstBlock(before, outputs, 1 if number == 1 else 2, make_lif),
                "block2": IdentityBlock(outputs, make_lif),
                "fire": Fire(make_lif),
            }
        )
        before = outputs
    return stages


def vgg16_stages(inputs: int, width: float, make_lif: MakeLIF) -> dict[str, Chain]:
    """Return the stages ``block1`` .. ``block5`` of spiking VGG-16; each ends in a pooling."""
    stages = {}
    for number, block in enumerate(VGG16_BLOCKS, start=1):
        layers = {}
        for index, full in enumerate(block, start=1):
            outputs = scaled(full, width)
            pool = index == len(block)
            layers[f"conv{index}"] = ConvLIF(conv_norm(inputs, outputs), make_lif, pool=pool)
            inputs = outputs
        stages[f"block{number}"] = Chain(layers)
    return stages


BACKBONES = {"resnet18": resnet18_stages, "vgg16": vgg16_stages}
BACKBONE_OUTPUTS = {"resnet18": RESNET18_STAGES[-1], "vgg16": VGG16_BLOCKS[-1][-1]}


def run_stages(
    stages: Iterable[tuple[str, nn.Module]], x: Tensor, state: State | None
) -> tuple[Tensor, State]:
    """Run named stages one after the other, as :class:`Chain` does."""
    after: State = {}
    for name, stage in stages:
        x, after[name] = stage(x, substate(state, name))
    return x, after


class Backbone(Chain):
    """A whole spiking network: named stages, then ``classifier``.

    Args:
        name: ``"resnet18"`` or ``"vgg16"``.
        inputs: input channels, 3 for RGB images, 2 for event frames.
        classes: number of classes K.
        width: multiplier of all channel counts.
        make_lif: makes each LIF layer.
    """

    def __init__(
        self, name: str, *, inputs: int, classes: int, width: float, make_lif: MakeLIF
    ) -> None:
        stages: dict[str, nn.Module] = dict(BACKBONES[name](inputs, width, make_lif))
        stages["classifier"] = Classifier(scaled(BACKBONE_OUTPUTS[name], width), classes)
        super().__init__(stages)


def cumulative_mean(logits: Tensor) -> Tensor:
    """Return the mean of the logits ``[T, N, K]`` over timesteps 0..t, for every t."""
    steps = torch.arange(1, len(logits) + 1, dtype=logits.dtype, device=logits.device)
    return logits.cumsum(0) / steps[:, None, None]
