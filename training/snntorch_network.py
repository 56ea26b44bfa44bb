"""Take over a network written in snnTorch as an imported backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import msgspec
import snntorch
import torch
from torch import Tensor, nn

from shared.errors import ConfigError
from shared.model import layers
from shared.model.backbones import Chain
from shared.model.folding import Norm
from shared.model.imported import make_imported
from shared.model.neuron import LIF, heaviside
from training.snntorch_layers import DROPPED, NORMS, Dims, describe, with_norm

Readout = Literal["spikes", "membrane"]


class NamedLayer(NamedTuple):
    """A layer of the network to import."""

    name: str
    module: nn.Module


class Converted(NamedTuple):
    """A network taken over."""

    description: layers.ImportedBackbone
    backbone: Chain
    """The same with the network's weights, leaks and thresholds, in evaluation mode."""


def named_stages(network: nn.Module) -> dict[str, list[NamedLayer]]:
    """Return a network's layers by stage, in the order they run.

    Left out are layers that do nothing in evaluation mode, and stages of nothing else.

    Args:
        network: an ``nn.Sequential``, each of whose children is a stage, or a module whose
            attribute ``stages`` maps the name of each stage to a layer, an ``nn.Sequential``, or a
            list of these; a mapping, or such a module itself.

    Raises:
        ConfigError: it is neither, or there are no layers.
    """
    stages: Any = network if _is_sequential(network) else getattr(network, "stages", None)
    if _is_sequential(stages) or isinstance(stages, nn.ModuleDict):
        stages = stages._modules
    if isinstance(stages, Mapping):
        named = {str(name): list(_leaves(str(name), stage)) for name, stage in stages.items()}
        if any(named.values()):
            return {name: leaves for name, leaves in named.items() if leaves}
    raise ConfigError(
        "expected an nn.Sequential, or a module whose attribute stages maps names to layers, "
        f"got {type(network).__name__}"
    )


def _is_sequential(module: object) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _leaves(name: str, stage: object) -> Iterator[NamedLayer]:
    if isinstance(stage, nn.Module) and not _is_sequential(stage):
        if type(stage) not in DROPPED:
            yield NamedLayer(name, stage)
        return
    if not isinstance(stage, nn.Sequential | Sequence):
        raise ConfigError(f"layer {name}: expected an nn.Module, got {type(stage).__name__}")
    for number, inner in enumerate(stage):
        yield from _leaves(f"{name}.{number}", inner)


def convert(network: nn.Module, input_shape: Dims, classes: int, readout: Readout) -> Converted:
    """Take a network over; its modules are read, not changed.

    A stage ends wherever a stage of the network's ends and only spikes pass; what comes after the
    last of these is the classifier.

    Args:
        network: see :func:`named_stages`; in evaluation mode.
        input_shape: ``[C, H, W]`` of one timestep's input.
        classes: K.
        readout: what a ``Leaky`` at the end hands on: spikes, whose mean is a firing rate, or its
            membrane potential.

    Raises:
        ConfigError: a layer cannot be taken over, or input or output are not of these shapes.
    """
    conversion = _Conversion(input_shape)
    named = named_stages(network)
    *_, last = named
    for name, leaves in named.items():
        for leaf in leaves:
            conversion.take(leaf)
        if name != last:
            conversion.cut(name)
    if conversion.shape != (classes,):
        raise ConfigError(f"expected [{classes}] logits, got {list(conversion.shape)}")
    if readout == "membrane":
        conversion.read_membrane()
    return conversion.end()


class _Taken(NamedTuple):
    """A layer taken over, and the modules that hold its tensors."""

    layer: layers.AnyLayer
    sources: tuple[nn.Module, ...] = ()


class _Conversion:
    """Takes one layer after the other and keeps track of what passes between them.

    Args:
        input_shape: ``[C, H, W]`` of the first layer's input.
    """

    def __init__(self, input_shape: Dims) -> None:
        self.shape = input_shape
        self._is_binary = False
        self._stages: list[layers.Stage] = []
        self._done: list[_Taken] = []
        self._open: list[_Taken] = []
        """What no stage holds yet."""

    def take(self, leaf: NamedLayer) -> None:
        """Take a layer over; ConfigError if that cannot be."""
        module, kind = leaf.module, type(leaf.module)
        try:
            if kind is snntorch.Leaky and module.init_hidden and self._has(module):
                raise ValueError("expected neurons with a state of their own, got earlier ones")
            if kind in NORMS:
                self._add_norm(cast("Norm", module))
            else:
                self._add(describe(module, self.shape), module)
            self.shape = _output_shape(module, self.shape)
        except ValueError as error:
            raise ConfigError(f"layer {leaf.name}, {kind.__name__}: {error}") from error

    def cut(self, name: str) -> None:
        """End a stage here, if only spikes pass, and others than at the end of the last."""
        only_flat = all(isinstance(taken.layer, layers.Flatten) for taken in self._open)
        if only_flat or not self._is_binary:
            return
        features = self.shape
        if is_vector := len(features) == 1:
            features = (*features, 1, 1)
            self._add(layers.Unflatten())
        self._stages.append(
            layers.Stage(
                name=name,
                features=cast("tuple[int, int, int]", features),
                layers=tuple(taken.layer for taken in self._open),
            )
        )
        self._done += self._open
        self._open = []
        if is_vector:
            self._add(layers.Flatten())

    def read_membrane(self) -> None:
        """Have the last layer hand on its membrane potential; ConfigError if it has none."""
        layer, sources = self._open.pop()
        if not isinstance(layer, layers.Leaky):
            raise ConfigError("expected a Leaky at the end, to read its membrane potential")
        self._open.append(_Taken(msgspec.structs.replace(layer, output="membrane"), sources))

    def end(self) -> Converted:
        """Return all that was taken; ConfigError if there is no split point."""
        if not self._stages:
            raise ConfigError("expected a stage before the last that ends in spikes, found none")
        classifier = tuple(taken.layer for taken in self._open)
        try:
            description = layers.ImportedBackbone(stages=tuple(self._stages), classifier=classifier)
            backbone = make_imported(description, heaviside)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        made = [layer for stage in backbone.values() for layer in cast("Chain", stage).values()]
        for layer, taken in zip(made, (*self._done, *self._open), strict=True):
            _copy_tensors(taken.sources, layer)
        return Converted(description, backbone.eval())

    def _add(self, layer: layers.AnyLayer, *sources: nn.Module) -> None:
        self._open.append(_Taken(layer, sources))
        match layer:
            case layers.Pool(kind="max") | layers.Flatten() | layers.Unflatten():
                pass
            case _:
                self._is_binary = isinstance(layer, layers.Leaky)

    def _has(self, module: nn.Module) -> bool:
        return any(module in taken.sources for taken in (*self._done, *self._open))

    def _add_norm(self, norm: Norm) -> None:
        layer = with_norm(self._open[-1].layer if self._open else None, norm)
        self._open[-1] = _Taken(layer, (*self._open[-1].sources, norm))


def _output_shape(module: nn.Module, shape: Dims) -> Dims:
    if isinstance(module, snntorch.Leaky):
        return shape
    try:
        with torch.inference_mode():
            output: Tensor = module(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"expected an input that fits, got {list(shape)}: {error}") from error
    return tuple(output.shape[1:])


def _copy_tensors(sources: tuple[nn.Module, ...], made: nn.Module) -> None:
    (inner,) = made.children()
    if isinstance(inner, LIF):
        neurons = cast("snntorch.Leaky", sources[0])
        # snnTorch clamps the leak at every step.
        inner.load_state_dict({"beta": neurons.beta.clamp(0, 1), "threshold": neurons.threshold})
        return
    targets = inner if isinstance(inner, nn.Sequential) else [inner]
    for target, source in zip(targets, sources, strict=False):
        target.load_state_dict(source.state_dict())


def original_logits(network: nn.Module, frames: Tensor, readout: Readout) -> Tensor:
    """Run the layers of a network as snnTorch computes them.

    Args:
        network: see :func:`convert`.
        frames: float, ``[T, N, C, H, W]``.
        readout: see :func:`convert`.

    Returns:
        float, ``[T, N, K]``.
    """
    modules = [leaf.module for stage in named_stages(network).values() for leaf in stage]
    potentials: dict[int, Tensor] = {}
    logits = []
    for x in frames:
        for index, module in enumerate(modules):
            if isinstance(module, snntorch.Leaky):
                x, potentials[index] = _neuron_step(module, x, potentials.get(index))
            else:
                x = module(x)
        logits.append(potentials[max(potentials)] if readout == "membrane" else x)
    return torch.stack(logits)


def _neuron_step(
    neurons: snntorch.Leaky, current: Tensor, potential: Tensor | None
) -> tuple[Tensor, Tensor]:
    # With ``init_hidden`` neurons keep their state and refuse to be given one.
    neurons.mem = torch.zeros_like(current) if potential is None else potential
    output = neurons(current) if neurons.init_hidden else neurons(current, neurons.mem)
    spikes: Tensor = output[0] if isinstance(output, tuple) else output
    return spikes, neurons.mem
