"""Count the synaptic operations of a network exactly, from its spikes.

An input element that is not zero costs one operation for every output it reaches through a weight
that is not zero; biases cost nothing. How many outputs it reaches (its fan-out, smaller at the
border of a picture) is a map computed once per layer. Where all inputs of a layer are 0 or 1 its
operations are accumulates, else multiply-accumulates; these are the definitions of NeuroBench
(Yik et al. 2025), "synaptic operations".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.engine.base import Array
from shared.engine.torch_engine import load_network
from shared.model.bundle import Bundle, Operations, PartName
from shared.model.neuron import LIF

SYNAPSES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
PIXELS_AT_ONCE = 200_000
"""Input pixels of all timesteps that are run together; more are no faster, and take memory."""


class Counts(NamedTuple):
    """The operations of a part of the network, of every sample at every timestep."""

    mac: NDArray[np.float64]
    """Multiply-accumulates, ``[T, N]``."""
    ac: NDArray[np.float64]
    """Accumulates, ``[T, N]``."""
    neuron: int
    """Membrane updates, the same for every sample and timestep."""

    def plus(self, other: Counts) -> Counts:
        """Return the operations of two parts that both ran on the same samples."""
        return Counts(self.mac + other.mac, self.ac + other.ac, self.neuron + other.neuron)

    def by_timestep(self) -> tuple[Operations, ...]:
        """Return the mean over samples at t = 0..T-1."""
        means = zip(self.mac.mean(1).tolist(), self.ac.mean(1).tolist(), strict=True)
        return tuple(Operations(mac=mac, ac=ac, neuron=float(self.neuron)) for mac, ac in means)

    def per_timestep(self) -> Operations:
        """Return the mean of one timestep of one sample."""
        return Operations(
            mac=float(self.mac.mean()), ac=float(self.ac.mean()), neuron=float(self.neuron)
        )

    def per_sample(self, used: NDArray[np.bool_]) -> Operations:
        """Return the mean of one sample over the timesteps used, ``[T, N]``."""
        samples = used.shape[1]
        return Operations(
            mac=float(self.mac[used].sum()) / samples,
            ac=float(self.ac[used].sum()) / samples,
            neuron=self.neuron * float(used.sum()) / samples,
        )


class OperationCounter:
    """Counts the operations of a chain of layers while it runs them.

    Args:
        chain: in folded form; may share layers with other chains.
    """

    def __init__(self, chain: nn.Module) -> None:
        self._chain = chain
        self._synapses = {
            name: module for name, module in chain.named_modules() if isinstance(module, SYNAPSES)
        }
        self._fan_out: dict[str, Tensor] = {}
        self._operations: dict[str, list[Tensor]] = {name: [] for name in self._synapses}
        self._is_binary = dict.fromkeys(self._synapses, True)
        self._neurons: dict[str, int] = {}

    def run(self, x: Tensor) -> Tensor:
        """Run samples, float ``[T, n, ...]``, from the start; return what the chain gives."""
        timesteps = len(x)
        handles = [
            module.register_forward_hook(self._synapse_hook(name, timesteps))
            for name, module in self._synapses.items()
        ]
        handles += [
            module.register_forward_hook(self._neuron_hook(name))
            for name, module in self._chain.named_modules()
            if isinstance(module, LIF)
        ]
        try:
            with torch.no_grad():
                y: Tensor = self._chain(x)[0]
        finally:
            for handle in handles:
                handle.remove()
        return y

    def counts(self) -> Counts:
        """Return what was counted so far, samples in the order they were run."""
        mac, ac = (self._sum(is_binary=each) for each in (False, True))
        return Counts(mac, ac, sum(self._neurons.values()))

    def _sum(self, *, is_binary: bool) -> NDArray[np.float64]:
        """Return the operations of all layers of one kind, ``[T, N]``."""
        by_layer = [
            torch.cat(runs, dim=1) * (self._is_binary[name] is is_binary)
            for name, runs in self._operations.items()
        ]
        total: NDArray[np.float64] = torch.stack(by_layer).sum(0).numpy()
        return total

    def _synapse_hook(self, name: str, timesteps: int) -> Callable[..., None]:
        def count(layer: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
            (x,) = inputs  # timesteps and samples are one axis here
            if name not in self._fan_out:
                self._fan_out[name] = fan_out(layer, x.shape[1:])
            operations = reached_outputs(x, self._fan_out[name])
            self._operations[name].append(operations.view(timesteps, -1))
            self._is_binary[name] &= torch.equal(x != 0, x == 1)

        return count

    def _neuron_hook(self, name: str) -> Callable[..., None]:
        def count(_: nn.Module, inputs: tuple[Tensor, Tensor | None], __: Any) -> None:
            self._neurons[name] = math.prod(inputs[0].shape[2:])

        return count


def fan_out(layer: nn.Module, shape: Iterable[int]) -> Tensor:
    """Return to how many outputs each input element counts, float64 of the input's ``shape``.

    Args:
        layer: convolution, transposed convolution or linear layer.
        shape: of one sample's input.
    """
    probe = copy.deepcopy(layer).double()
    with torch.no_grad():
        for name, parameter in probe.named_parameters():
            parameter.copy_((parameter != 0) if name == "weight" else torch.zeros_like(parameter))
    with torch.enable_grad():
        x = torch.zeros(1, *shape, dtype=torch.float64, requires_grad=True)
        # ``forward`` itself, because calling the module would run the hooks that count.
        (gradient,) = torch.autograd.grad(probe.forward(x).sum(), x)
    return gradient[0]


def reached_outputs(x: Tensor, reach: Tensor) -> Tensor:
    """Return the sum of the fan-outs of the non-zero elements of each input, float64 ``[n]``.

    Args:
        x: float, ``[n, C, ...]``.
        reach: fan-outs, float64 ``[C, ...]``.
    """
    channels = len(reach)
    planes = reach.reshape(channels, -1)
    # Whole numbers up to 2 ** 24 are exact in float32, which is much faster.
    dtype = torch.float32 if planes.sum(1).max() < 1 << 24 else torch.float64
    active = (x != 0).to(dtype).reshape(len(x), channels, -1)
    return torch.einsum("ncp,cp->nc", active, planes.to(dtype)).double().sum(1)


def count_operations(bundle: Bundle, batches: Iterable[list[Array]]) -> dict[PartName, Counts]:
    """Run samples through a bundle's network for all T timesteps and count.

    Args:
        bundle: only its weights are read.
        batches: for every timestep of a batch, float32 ``[n, C, H, W]``, normalised.

    Returns:
        By part.
    """
    network = load_network(bundle)
    # The stages before the split belong to two parts and are run once.
    head, encoder = OperationCounter(network.backbone_head()), OperationCounter(network.encoder)
    tail, rest = OperationCounter(network.cloud_tail()), OperationCounter(network.backbone_tail())
    _, height, width = bundle.spec.input_shape
    samples = max(1, PIXELS_AT_ONCE // (bundle.spec.timesteps * height * width))
    for batch in batches:
        for start in range(0, len(batch[0]), samples):
            some = np.stack([frames[start : start + samples] for frames in batch])
            features = head.run(torch.from_numpy(some))
            tail.run(encoder.run(features))
            rest.run(features)
    shared = head.counts()
    return {
        "head": shared.plus(encoder.counts()),
        "tail": tail.counts(),
        "whole": shared.plus(rest.counts()),
    }
