"""Networks as NIR graphs, the exchange format of neuromorphic frameworks and chips.

Import takes a chain of layers over as a backbone; export writes the head of a bundle, so that the
same head can run on a chip. NIR (Pedersen et al. 2024) describes neurons in continuous time and
leaves the step to its reader; ours is ``v = beta * v + r * (1 - beta) * I`` with
``beta = 1 - dt / tau``. It knows a reset to a value only: where our neurons subtract the threshold,
as most do, the file says so in the neuron's metadata (:data:`RESET`), which whoever reads it
must heed; without them a reset to 0 is read as that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import snntorch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.errors import ConfigError
from shared.model.backbones import Chain, ConvLIF, Fire, FirstBlock, IdentityBlock
from shared.model.imported import Stateless
from shared.model.neuron import LIF
from shared.model.split import Part

RESET, TIMESTEP = "neucodex_reset", "neucodex_timestep_seconds"
"""Keys of a neuron's metadata: ``subtract`` or ``zero``, and dt of the file's time constants."""
DEFAULT_TIMESTEP_SECONDS = 0.001
Reset = Literal["zero", "subtract"]
Dims = tuple[int, ...]


def read_graph(path: Path) -> Any:
    """Read a NIR file; ConfigError if there is none, or nir is not installed."""
    nir = _nir()
    try:
        return nir.read(path)
    # nir raises what h5py, its own checks and missing keys raise.
    except (OSError, ValueError, KeyError, AttributeError, TypeError, AssertionError) as error:
        raise ConfigError(f"{path}: expected a NIR graph: {error}") from error


def write_graph(graph: Any, path: Path) -> None:
    """Write a NIR file; ConfigError if that cannot be."""
    try:
        _nir().write(path, graph)
    except OSError as error:
        raise ConfigError(f"{path}: expected a place to write: {error}") from error


def _nir() -> Any:
    try:
        import nir
    except ImportError as error:
        raise ConfigError("expected the extra 'nir': pip install 'neucodex[nir]'") from error
    return nir


# Import.


def network_of(graph: Any, reset: Reset | None, timestep_seconds: float | None) -> nn.Sequential:
    """Return a chain of layers as snnTorch would have it; every stage ends in neurons.

    A sum pooling becomes an average pooling and weights that are larger by as much.

    Args:
        graph: a ``nir.NIRGraph``.
        reset: what firing does, where the file's neurons do not say; None for what NIR says, zero.
        timestep_seconds: dt, where neurons leak and the file does not say.

    Raises:
        ConfigError: branches, loops, or a node that has no counterpart; names it.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    layers: list[nn.Module] = []
    scale = 1.0
    for name, node in _chain(graph):
        try:
            layer, factor = _layer(node, reset, timestep_seconds)
        except ValueError as error:
            raise ConfigError(f"node {name}, {type(node).__name__}: {error}") from error
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data *= scale
            scale = 1.0
        elif isinstance(layer, snntorch.Leaky) and scale != 1:
            raise ConfigError(f"node {name}: expected weights between a sum pooling and neurons")
        scale *= factor
        layers.append(layer)
        if isinstance(layer, snntorch.Leaky):
            stages[f"stage{len(stages) + 1}"] = nn.Sequential(*layers)
            layers = []
    if layers:
        stages["readout"] = nn.Sequential(*layers)
    if scale != 1:
        raise ConfigError("expected weights after a sum pooling, got none")
    return nn.Sequential(stages).eval()


def _chain(graph: Any) -> list[tuple[str, Any]]:
    """Return the nodes from input to output, both left out, in their order."""
    after: dict[str, str] = {}
    for source, target in graph.edges:
        if source in after:
            raise ConfigError(f"expected a chain, got two edges from node {source}")
        after[source] = target
    starts = [name for name, node in graph.nodes.items() if type(node).__name__ == "Input"]
    if len(starts) != 1:
        raise ConfigError(f"expected one input, got {len(starts)}")
    names, name = [], after.get(starts[0])
    while name is not None and type(graph.nodes.get(name)).__name__ != "Output":
        if name in names or name not in graph.nodes:
            raise ConfigError(f"expected a chain of nodes, got an edge back or away to {name}")
        names.append(name)
        name = after.get(name)
    if len(names) != len(graph.nodes) - 2:
        left = sorted(set(graph.nodes) - set(names) - set(starts))
        raise ConfigError(f"expected a chain of all nodes, not on it are {', '.join(left)}")
    return [(name, graph.nodes[name]) for name in names]


def _layer(
    node: Any, reset: Reset | None, timestep_seconds: float | None
) -> tuple[nn.Module, float]:
    """Return a node's layer, and by how much its output falls short."""
    match type(node).__name__:
        case "Conv2d":
            return _convolution(node), 1.0
        case "Affine" | "Linear":
            return _linear(node), 1.0
        case "SumPool2d":
            kernel = _pair(node.kernel_size)
            return nn.AvgPool2d(kernel, _pair(node.stride), _pair(node.padding)), float(
                kernel[0] * kernel[1]
            )
        case "AvgPool2d":
            kernel, stride, padding = map(_pair, (node.kernel_size, node.stride, node.padding))
            return nn.AvgPool2d(kernel, stride, padding), 1.0
        case "Flatten":
            if node.start_dim != 0 or node.end_dim not in (-1, 2):
                raise ValueError(f"expected all of it, got {node.start_dim} to {node.end_dim}")
            return nn.Flatten(), 1.0
        case "IF" | "LIF":
            return _neurons(node, reset, timestep_seconds), 1.0
        case _:
            raise ValueError(
                "expected Conv2d, Affine, Linear, SumPool2d, AvgPool2d, Flatten, IF or LIF"
            )


def _convolution(node: Any) -> nn.Conv2d:
    outputs, inputs, *kernel = node.weight.shape
    groups = int(node.groups)
    padding = node.padding if isinstance(node.padding, str) else _pair(node.padding)
    made = nn.Conv2d(
        inputs * groups,
        outputs,
        (kernel[0], kernel[1]),
        _pair(node.stride),
        padding,
        _pair(node.dilation),
        groups,
    )
    return cast("nn.Conv2d", _with_weights(made, node.weight, node.bias))


def _linear(node: Any) -> nn.Linear:
    outputs, inputs = node.weight.shape
    bias = getattr(node, "bias", None)
    made = nn.Linear(inputs, outputs, bias is not None)
    return cast("nn.Linear", _with_weights(made, node.weight, bias))


def _with_weights(
    layer: nn.Conv2d | nn.Linear, weight: NDArray[Any], bias: NDArray[Any] | None
) -> nn.Module:
    state = {"weight": torch.from_numpy(np.array(weight, np.float32))}
    if bias is not None:
        state["bias"] = torch.from_numpy(np.array(bias, np.float32))
    layer.load_state_dict(state)
    return layer


def _neurons(node: Any, reset: Reset | None, timestep_seconds: float | None) -> nn.Module:
    """Return neurons in units in which their input is not scaled."""
    beta: NDArray[Any] = np.ones((), np.float32)
    gain = np.asarray(node.r, np.float64)
    if type(node).__name__ == "LIF":
        dt = node.metadata.get(TIMESTEP, timestep_seconds)
        if dt is None:
            raise ValueError("expected the length of a timestep, for neurons that leak")
        if np.any(node.v_leak):
            raise ValueError("expected neurons that leak to 0")
        leak = float(np.asarray(dt).item()) / np.asarray(node.tau, np.float64)
        beta, gain = (1 - leak).astype(np.float32), gain * leak
    if np.any(node.v_reset):
        raise ValueError("expected neurons that are reset to 0")
    if (gain <= 0).any() or ((beta < 0) | (beta > 1)).any():
        raise ValueError("expected r above 0 and time constants of one timestep or more")
    told = node.metadata.get(RESET, reset or "zero")
    threshold = (np.asarray(node.v_threshold, np.float64) / gain).astype(np.float32)
    made: nn.Module = snntorch.Leaky(
        beta=_parameter(beta), threshold=_parameter(threshold), reset_mechanism=str(told)
    )
    return made


def _parameter(values: Any) -> Tensor:
    """Return one number where all neurons have the same."""
    array = np.asarray(values, np.float32)
    first = array.reshape(-1)[:1].reshape(())
    return torch.from_numpy(np.array(first if (array == first).all() else array))


def _pair(value: Any) -> tuple[int, int]:
    rows, columns = np.broadcast_to(np.asarray(value, int), 2).tolist()
    return rows, columns


# Export.


class _Currents(NamedTuple):
    """What reaches the next layer: the sum of some nodes' outputs."""

    nodes: tuple[str, ...]
    shape: Dims


def head_graph(head: Part, input_shape: Dims, timestep_seconds: float) -> Any:
    """Return a head, encoder included, as a ``nir.NIRGraph``.

    Args:
        head: folded.
        input_shape: ``[C, H, W]``.
        timestep_seconds: dt, to which the time constants refer.

    Raises:
        ConfigError: it has a layer that NIR has no node for, or nir is not installed.
    """
    return _Writer(_nir(), input_shape, timestep_seconds).write(head)


class _Writer:
    """Adds nodes and edges, module by module."""

    def __init__(self, nir: Any, input_shape: Dims, timestep_seconds: float) -> None:
        self._nir = nir
        self._shape = input_shape
        self._dt = timestep_seconds
        self._nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(input_shape)})}
        self._edges: list[tuple[str, str]] = []

    def write(self, head: Part) -> Any:
        code = self._add("head", head.chains, _Currents(("input",), self._shape))
        output = self._nir.Output({"output": np.array(code.shape)})
        self._join("output", output, code, code.shape)
        return self._nir.NIRGraph(self._nodes, self._edges, metadata={TIMESTEP: self._dt})

    def _join(self, name: str, node: Any, before: _Currents, shape: Dims) -> _Currents:
        self._nodes[name] = node
        self._edges += [(source, name) for source in before.nodes]
        return _Currents((name,), shape)

    def _add(self, name: str, module: nn.Module, x: _Currents) -> _Currents:
        match module:
            case Chain():
                for child, inner in module.items():
                    x = self._add(f"{name}_{child}", inner, x)
                return x
            case ConvLIF(pool=False):
                return self._fire(f"{name}_lif", module.lif, self._layer(name, module.conv, x))
            case FirstBlock():
                shortcut = self._layer(f"{name}_shortcut", module.shortcut, x)
                hidden = self._layer(f"{name}_conv1", module.conv1, x)
                return self._sum(shortcut, name, module.lif, module.conv2, hidden)
            case IdentityBlock():
                spikes = self._fire(f"{name}_lif1", module.lif1, x)
                hidden = self._layer(f"{name}_conv1", module.conv1, spikes)
                return self._sum(x, name, module.lif2, module.conv2, hidden)
            case Fire():
                return self._fire(name, module.lif, x)
            case Stateless():
                return self._layer(name, module.layer, x)
            case _:
                raise ConfigError(f"{name}: NIR has no node for {type(module).__name__} here")

    def _sum(
        self, x: _Currents, name: str, lif: LIF, conv: nn.Module, hidden: _Currents
    ) -> _Currents:
        spikes = self._fire(f"{name}_fire", lif, hidden)
        branch = self._layer(f"{name}_conv2", conv, spikes)
        return _Currents((*x.nodes, *branch.nodes), x.shape)

    def _layer(self, name: str, layer: nn.Module, x: _Currents) -> _Currents:
        nir = self._nir
        match layer:
            case nn.Conv2d():
                node = nir.Conv2d(
                    input_shape=x.shape[1:],
                    weight=_array(layer.weight),
                    stride=layer.stride,
                    padding=layer.padding,
                    dilation=layer.dilation,
                    groups=layer.groups,
                    bias=_bias(layer, layer.out_channels),
                )
            case nn.Linear():
                bias = _bias(layer, layer.out_features)
                node = nir.Affine(weight=_array(layer.weight), bias=bias)
            case nn.AvgPool2d():
                sizes = (layer.kernel_size, layer.stride, layer.padding)
                node = nir.AvgPool2d(*(np.array(_pair(size)) for size in sizes))
            case nn.Flatten():
                node = nir.Flatten({"input": np.array(x.shape)}, start_dim=0)
            case _:
                raise ConfigError(f"{name}: NIR has no node for {type(layer).__name__}")
        with torch.inference_mode():
            shape = tuple(layer(torch.zeros(1, *x.shape)).shape[1:])
        return self._join(name, node, x, shape)

    def _fire(self, name: str, lif: LIF, x: _Currents) -> _Currents:
        if lif.reset == "none":
            raise ConfigError(f"{name}: NIR has no neurons without a reset")
        beta, threshold = (
            np.broadcast_to(np.asarray(value, np.float32), x.shape).copy()
            for value in (lif.beta, lif.threshold)
        )
        zeros, metadata = np.zeros(x.shape, np.float32), {RESET: lif.reset}
        if (beta == 1).all():
            node = self._nir.IF(
                r=zeros + 1, v_threshold=threshold, v_reset=zeros, metadata=metadata
            )
        elif (beta == 1).any():
            raise ConfigError(f"{name}: expected all neurons to leak, or none")
        else:
            # dt / tau = 1 - beta, and an input of 1 raises the potential by 1.
            node = self._nir.LIF(
                tau=self._dt / (1 - beta),
                r=1 / (1 - beta),
                v_leak=zeros,
                v_threshold=threshold,
                v_reset=zeros,
                metadata=metadata | {TIMESTEP: self._dt},
            )
        return self._join(name, node, x, x.shape)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().numpy().astype(np.float32)


def _bias(layer: nn.Conv2d | nn.Linear, outputs: int) -> NDArray[np.float32]:
    return np.zeros(outputs, np.float32) if layer.bias is None else _array(layer.bias)


def summary(graph: Any) -> Mapping[str, int]:
    """Return how many nodes there are of each kind."""
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
