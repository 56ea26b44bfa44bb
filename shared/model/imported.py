"""Build the modules of an imported backbone from its description (:mod:`shared.model.layers`).

They map ``(x, state) -> (y, state)`` like those of :mod:`shared.model.backbones`. Leaks and
thresholds are zeros until the weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from shared.model import layers
from shared.model.backbones import Chain, Fire, State, membrane, over_time
from shared.model.neuron import LIF, SpikeFunction


class Stateless(nn.Module):
    """An ordinary layer as a module of a :class:`Chain`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map ``[T, N, ...]`` to ``[T, N, ...]``, every timestep by itself."""
        return over_time(self.layer, x), {}


class Integrate(nn.Module):
    """A LIF layer that hands on its membrane potential instead of spikes."""

    def __init__(self, lif: LIF) -> None:
        super().__init__()
        self.lif = lif

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map currents ``[T, N, ...]`` to the membrane potential after each timestep."""
        potential, outputs = membrane(state, "lif"), []
        for current in x.unbind(0):
            _, potential = self.lif(current[None], potential)
            outputs.append(potential)
        return torch.stack(outputs), {"lif": potential}


def make_imported(backbone: layers.ImportedBackbone, spike: SpikeFunction) -> Chain:
    """Return the stages of a backbone by name.

    Args:
        backbone: what to build.
        spike: step function of its LIF layers.

    Raises:
        ValueError: a layer cannot be built, such as a convolution whose groups do not divide its
            channels, or a stage has a name that a module has no room for.
    """
    stages = {stage.name: stage.layers for stage in backbone.stages}
    stages[layers.CLASSIFIER] = backbone.classifier
    if taken := [name for name in stages if hasattr(Chain({}), name)]:
        raise ValueError(f"expected other names of stages than {', '.join(taken)}")
    return Chain({name: _make_stage(described, spike) for name, described in stages.items()})


def _make_stage(described: Iterable[layers.AnyLayer], spike: SpikeFunction) -> Chain:
    return Chain(
        {
            f"{type(layer).__name__.lower()}{number}": _make_layer(layer, spike)
            for number, layer in enumerate(described, start=1)
        }
    )


def _make_layer(layer: layers.AnyLayer, spike: SpikeFunction) -> nn.Module:
    match layer:
        case layers.Convolution():
            conv = nn.Conv2d(
                layer.inputs,
                layer.outputs,
                layer.kernel,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
                layer.bias,
            )
            return Stateless(_with_norm(conv, nn.BatchNorm2d, layer))
        case layers.Linear():
            linear = nn.Linear(layer.inputs, layer.outputs, layer.bias)
            return Stateless(_with_norm(linear, nn.BatchNorm1d, layer))
        case layers.Pool(kind="max"):
            return Stateless(nn.MaxPool2d(layer.kernel, layer.stride, layer.padding))
        case layers.Pool():
            return Stateless(nn.AvgPool2d(layer.kernel, layer.stride, layer.padding))
        case layers.Flatten():
            return Stateless(nn.Flatten())
        case layers.Unflatten():
            return Stateless(nn.Unflatten(1, (-1, 1, 1)))
        case layers.Leaky():
            lif = LIF(torch.zeros(layer.beta), torch.zeros(layer.threshold), layer.reset, spike)
            return Fire(lambda: lif) if layer.output == "spikes" else Integrate(lif)


def _with_norm(
    layer: nn.Module, norm: type[nn.Module], described: layers.Convolution | layers.Linear
) -> nn.Module:
    if described.norm_epsilon is None:
        return layer
    return nn.Sequential(layer, norm(described.outputs, eps=described.norm_epsilon))
