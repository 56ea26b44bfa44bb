"""A backbone given layer by layer: how a network that somebody else wrote is described. No torch.

Only the form is here; weights, leaks and thresholds are tensors of the bundle.
:mod:`shared.model.imported` builds the network.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Padding = Annotated[int, msgspec.Meta(ge=0, le=1 << 10)]
Epsilon = Annotated[float, msgspec.Meta(gt=0)]
CLASSIFIER = "classifier"
"""The last part's name beside those of the stages."""
StageName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_]{1,64}$")]


class Layer(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
):
    """One layer of an imported backbone."""


class Convolution(Layer, frozen=True, kw_only=True, tag="conv"):
    """Two-dimensional convolution, ``[C, H, W]`` to ``[C', H', W']``."""

    inputs: Size
    outputs: Size
    kernel: tuple[Size, Size]
    """Rows and columns, as all pairs here."""
    stride: tuple[Size, Size] = (1, 1)
    padding: tuple[Padding, Padding] = (0, 0)
    dilation: tuple[Size, Size] = (1, 1)
    groups: Size = 1
    bias: bool = True
    norm_epsilon: Epsilon | None = None
    """That of the BatchNorm that follows; None: none follows."""


class Linear(Layer, frozen=True, kw_only=True, tag="linear"):
    """Fully connected layer, ``[F]`` to ``[F']``."""

    inputs: Size
    outputs: Size
    bias: bool = True
    norm_epsilon: Epsilon | None = None
    """As of :class:`Convolution`."""


class Pool(Layer, frozen=True, kw_only=True, tag="pool"):
    """Pooling; averages count the padding."""

    kind: Literal["average", "max"]
    kernel: tuple[Size, Size]
    stride: tuple[Size, Size]
    padding: tuple[Padding, Padding] = (0, 0)


class Flatten(Layer, frozen=True, kw_only=True, tag="flatten"):
    """``[C, H, W]`` to ``[C * H * W]``."""


class Unflatten(Layer, frozen=True, kw_only=True, tag="unflatten"):
    """``[F]`` to ``[F, 1, 1]``, so that a bottleneck can follow."""


class Leaky(Layer, frozen=True, kw_only=True, tag="leaky"):
    """LIF neurons; leak and threshold are tensors that broadcast to the layer's currents."""

    beta: tuple[Size, ...] = ()
    """Shape of the leak: ``()`` if all neurons share one."""
    threshold: tuple[Size, ...] = ()
    reset: Literal["subtract", "zero", "none"] = "subtract"
    output: Literal["spikes", "membrane"] = "spikes"
    """What the layer hands on: only the last one's membrane potential may be of use."""


AnyLayer = Convolution | Linear | Pool | Flatten | Unflatten | Leaky


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Layers up to a split point."""

    name: StageName
    features: tuple[Size, Size, Size]
    """``[C, H, W]`` of the spikes at the split point."""
    layers: tuple[AnyLayer, ...]


class ImportedBackbone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A backbone given layer by layer.

    Raises:
        ValueError: there is no stage, two have the same name, or one that of the classifier.
    """

    stages: tuple[Stage, ...]
    classifier: tuple[AnyLayer, ...]
    """What follows the last split point, up to the logits."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names) or CLASSIFIER in names:
            raise ValueError(
                f"expected stages with names of their own, none of them {CLASSIFIER}, got {names}"
            )
