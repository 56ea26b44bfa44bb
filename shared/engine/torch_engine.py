"""PyTorch as an engine: the same bundle, on CPU or a CUDA device.

The only file of the daemons' way that imports torch; a daemon loads it when its configuration asks
for it.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from shared.engine.base import DTYPES, Array, Shape, State, check_step
from shared.errors import BundleError, EngineError
from shared.model.bundle import WEIGHTS, Bundle, PartName, PartSpec
from shared.model.folding import folded_network
from shared.model.split import Part, SplitNetwork, flatten_state, nest_state

PARTS = {
    "head": SplitNetwork.head,
    "tail": SplitNetwork.cloud_tail,
    "whole": SplitNetwork.whole,
}


def load_network(bundle: Bundle) -> SplitNetwork:
    """Return the bundle's network in folded form, float32, on the CPU.

    Raises:
        BundleError: the weights are damaged or do not fit the spec, or an imported backbone's
            layers do not exist so.
    """
    try:
        return folded_network(bundle.spec, load_safetensors(bundle.read(WEIGHTS)))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise BundleError(f"{bundle.path / WEIGHTS}: {error}") from error


def load_engine(bundle: Bundle, part: PartName, *, device: str = "cpu") -> TorchEngine:
    """Load one part of a bundle.

    Args:
        bundle: where the weights are read from, verified; the graphs are not needed.
        part: ``head``, ``tail`` or ``whole``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        BundleError: the part is not described, or the weights are damaged or do not fit.
        EngineError: no such device.
    """
    spec = bundle.part(part)
    network = load_network(bundle)
    try:
        module = PARTS[part](network).to(device)
        return TorchEngine(module, part, spec, torch.device(device))
    except (RuntimeError, AssertionError) as error:
        # A torch built without CUDA says so with an AssertionError.
        raise EngineError(f"expected a usable torch device, got {device!r}: {error}") from error


class TorchEngine:
    """One part as a torch module; see :class:`shared.engine.base.Engine`.

    Args:
        module: the part, on ``device``, folded.
        part: which part.
        spec: the part's description.
        device: where it runs.

    Raises:
        BundleError: the description's states are not the module's.
    """

    def __init__(self, module: Part, part: PartName, spec: PartSpec, device: torch.device) -> None:
        self._module = module
        self._device = device
        self._input_dtype, output_dtype = DTYPES[part]
        self._output_dtype = torch.uint8 if output_dtype == np.uint8 else torch.float32
        with torch.inference_mode():
            _, self._form = module.step(torch.zeros(1, *spec.input.shape, device=device))
        found = {name: tuple(m.shape[1:]) for name, m in flatten_state(self._form).items()}
        described = {state.name: state.shape for state in spec.states}
        if list(found.items()) != list(described.items()):
            raise BundleError(f"{part}: expected states {described}, got {found}")
        self._paths = tuple(found)
        self._input_shape, self._output_shape = spec.input.shape, spec.output.shape
        self._state_shapes = tuple(found.values())

    @property
    def input_shape(self) -> Shape:
        """Shape of one sample's input, without N."""
        return self._input_shape

    @property
    def output_shape(self) -> Shape:
        """Shape of one sample's output, without N."""
        return self._output_shape

    @property
    def state_shapes(self) -> tuple[Shape, ...]:
        """Shape of each membrane array, without N."""
        return self._state_shapes

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Run one timestep; see :meth:`shared.engine.base.Engine.step`."""
        check_step(self, self._input_dtype, x, state)
        try:
            with torch.inference_mode():
                membranes = dict(zip(self._paths, map(self._to_device, state), strict=True))
                y, after = self._module.step(
                    self._to_device(x).float(), nest_state(membranes, self._form)
                )
                output = y.to(self._output_dtype).cpu().numpy()
                return output, tuple(m.cpu().numpy() for m in flatten_state(after).values())
        except RuntimeError as error:
            raise EngineError(f"torch failed: {error}") from error

    def _to_device(self, array: Array) -> Tensor:
        # A copy where NumPy's array is read-only, which torch would warn of.
        return torch.tensor(array, device=self._device)
