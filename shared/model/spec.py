"""The description of a split spiking network: everything needed to build it, no torch.

These structs are the ``spec`` of a bundle's manifest and the ``[network]`` table of a training
recipe.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from shared.model.layers import ImportedBackbone

Positive = Annotated[int, msgspec.Meta(ge=1)]
Channels = Annotated[int, msgspec.Meta(ge=1, le=4096)]

MAX_INPUT_VALUES = 1 << 25
"""Most numbers of one timestep's input."""
MAX_CODE_BITS = 1 << 22
"""Most bits of one timestep's code."""

SPLIT_POINTS = {
    "resnet18": ("stem", "layer1", "layer2", "layer3", "layer4"),
    "vgg16": ("block1", "block2", "block3", "block4", "block5"),
}


class NeuronSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leaky integrate-and-fire parameters of every layer, but for those of an imported backbone."""

    beta: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    """Leak: share of the membrane potential that survives one timestep."""
    threshold: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Firing threshold; a neuron fires strictly above it."""
    reset: Literal["subtract", "zero"] = "subtract"
    """What firing does to the membrane potential."""


class BottleneckSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The learned compression encoder and decoder at one split point."""

    split: str
    """Split point after which the encoder sits, e.g. ``layer3``."""
    channels: Channels
    """Channels C' of the binary code."""
    stride: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1
    """Spatial reduction of the code in each direction."""
    encoder: tuple[Channels, ...] = ()
    """Channels of hidden convolution-BatchNorm-LIF layers before the code; the paper has none."""
    decoder: tuple[Channels, ...] = ()
    """Channels of hidden layers of the decoder; the paper has none."""
    output: Literal["identity", "lif"] = "identity"
    """What follows the decoder's last BatchNorm."""


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backbone, its input and its bottleneck."""

    backbone: Literal["resnet18", "vgg16"] | ImportedBackbone
    """By name, or layer by layer as ``neucodex-train import-net`` describes it."""
    width: Annotated[float, msgspec.Meta(gt=0, le=4)] = 1.0
    """Multiplier of all channel counts of a named backbone."""
    input_shape: tuple[Positive, Positive, Positive]
    """``[C, H, W]`` of one timestep's input."""
    input_kind: Literal["static", "events"] = "static"
    """``static``: one image, the same at every timestep (direct encoding); ``events``: a frame
    per timestep."""
    classes: Annotated[int, msgspec.Meta(ge=2, le=1 << 16)]
    timesteps: Annotated[int, msgspec.Meta(ge=1, le=255)] = 4
    """T, the most timesteps spent on one sample."""
    neuron: NeuronSpec = NeuronSpec()
    bottleneck: BottleneckSpec

    def __post_init__(self) -> None:
        if math.prod(self.input_shape) > MAX_INPUT_VALUES:
            raise ValueError(
                f"expected an input of at most {MAX_INPUT_VALUES} numbers, got {self.input_shape}"
            )
        if self.bottleneck.split not in self.split_points:
            raise ValueError(
                f"expected split to be one of {', '.join(self.split_points)} for "
                f"{self.backbone_name}, got {self.bottleneck.split!r}"
            )
        if self.width != 1 and not isinstance(self.backbone, str):
            raise ValueError(f"expected no width of an imported backbone, got {self.width:g}")
        _, height, width = self.feature_shape
        if height % self.bottleneck.stride or width % self.bottleneck.stride:
            raise ValueError(
                f"expected a bottleneck stride that divides the {height}x{width} features of "
                f"{self.bottleneck.split}, got {self.bottleneck.stride}"
            )
        if not 1 <= self.code_bits <= MAX_CODE_BITS:
            raise ValueError(
                f"expected a code of 1 to {MAX_CODE_BITS} bits, got {self.code_bits}: "
                f"{self.code_shape}"
            )

    @property
    def backbone_name(self) -> str:
        """``resnet18``, ``vgg16`` or ``imported``."""
        return self.backbone if isinstance(self.backbone, str) else "imported"

    @property
    def split_points(self) -> tuple[str, ...]:
        """The places at which this backbone may be cut."""
        if isinstance(self.backbone, str):
            return SPLIT_POINTS[self.backbone]
        return tuple(stage.name for stage in self.backbone.stages)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """``[C, H, W]`` of the binary features at the split point."""
        index = self.split_points.index(self.bottleneck.split)
        if not isinstance(self.backbone, str):
            return self.backbone.stages[index].features
        _, height, width = self.input_shape
        if self.backbone == "resnet18":
            full, halvings = (64, 64, 128, 256, 512)[index], max(0, index - 1)
        else:
            full, halvings = (64, 128, 256, 512, 512)[index], index + 1
        for _ in range(halvings):
            # ResNet's strided convolutions round up, VGG's poolings down.
            round_ = math.ceil if self.backbone == "resnet18" else math.floor
            height, width = round_(height / 2), round_(width / 2)
        return scaled(full, self.width), height, width

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """``[C', H', W']`` of the binary code ``z_t``."""
        _, height, width = self.feature_shape
        stride = self.bottleneck.stride
        return self.bottleneck.channels, height // stride, width // stride

    @property
    def code_bits(self) -> int:
        """Bits of one timestep's code."""
        return math.prod(self.code_shape)


def scaled(channels: int, width: float) -> int:
    """Return ``channels`` times ``width``, rounded to a multiple of 8 and at least 8."""
    return max(8, round(channels * width / 8) * 8)
