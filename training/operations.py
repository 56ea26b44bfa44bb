"""Count the synaptic operations of a network exactly, from its spikes.

An input element that is not zero costs one operation for every output it reaches through a weight
that is not zero; biases cost nothing. How many outputs it reaches (its fan-out, smaller at the
border of a picture) is a map computed once per layer. Where all inputs of a layer are 0 or 1 its
operations are accumulates, else multiply-accumulates; these are the definitions of NeuroBench
(Yik et al. 2025), "synaptic operations".
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.engine.base import Array
from shared.engine.torch_engine import PARTS, load_network
from shared.model.bundle import Bundle, Operations
from shared.model.neuron import LIF
from shared.model.split import Part

SYNAPSES = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class OperationCounter:
    """Counts the operations of one part while it runs; use as a context manager.

    Args:
        part: in folded form.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._fan_out: dict[str, Tensor] = {}
        self._synaptic: dict[str, float] = {}
        self._binary: dict[str, bool] = {}
        self._neuron = 0

    def __enter__(self) -> OperationCounter:
        for name, module in self._part.named_modules():
            if isinstance(module, SYNAPSES):
                self._handles.append(module.register_forward_hook(self._synapse_hook(name)))
            elif isinstance(module, LIF):
                self._handles.append(module.register_forward_hook(self._count_neurons))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def totals(self, steps: int) -> Operations:
        """Return the mean over ``steps``, the number of samples times timesteps that were run."""
        mac = sum(n for name, n in self._synaptic.items() if not self._binary[name])
        ac = sum(n for name, n in self._synaptic.items() if self._binary[name])
        return Operations(mac=mac / steps, ac=ac / steps, neuron=self._neuron / steps)

    def _synapse_hook(self, name: str) -> Any:
        def count(layer: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
            (x,) = inputs
            if name not in self._fan_out:
                self._fan_out[name] = fan_out(layer, x.shape[1:])
            active = (x != 0).sum(0).double()
            operations = float((active * self._fan_out[name]).sum())
            self._synaptic[name] = self._synaptic.get(name, 0.0) + operations
            binary = bool(((x == 0) | (x == 1)).all())
            self._binary[name] = self._binary.get(name, True) and binary

        return count

    def _count_neurons(self, _: nn.Module, inputs: tuple[Tensor, Tensor | None], __: Any) -> None:
        self._neuron += inputs[0].numel()


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


def count_operations(bundle: Bundle, batches: Iterable[list[Array]]) -> dict[str, Operations]:
    """Run samples through a bundle's network for all T timesteps and count.

    Args:
        bundle: only its weights are read.
        batches: for every timestep of a batch, float32 ``[n, C, H, W]``, normalised.

    Returns:
        By part: mean operations per timestep of one sample.
    """
    network = load_network(bundle)
    parts = {name: make(network) for name, make in PARTS.items()}
    # Head and whole share layers, so each counter listens only while its own part runs.
    counters = {name: OperationCounter(part) for name, part in parts.items()}
    steps = 0
    for batch in batches:
        frames = torch.from_numpy(np.stack(batch))
        steps += len(frames) * frames.shape[1]
        with torch.no_grad():
            with counters["head"]:
                code, _ = parts["head"](frames)
            with counters["tail"]:
                parts["tail"](code)
            with counters["whole"]:
                parts["whole"](frames)
    return {name: counter.totals(steps) for name, counter in counters.items()}
