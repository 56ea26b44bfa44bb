"""PyTorch as an engine: the same bundle, on CPU or a CUDA device.

On CUDA a step is captured as a graph for batches of a few sizes (:mod:`shared.engine.buckets`).
These two alone on the daemons' way import torch; a daemon loads them when its configuration asks
for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from shared.engine.base import DTYPES, Array, Shape, State, check_step
from shared.engine.buckets import Buckets, bucket_sizes
from shared.errors import BundleError, EngineError
from shared.model.bundle import WEIGHTS, Bundle, PartName, PartSpec
from shared.model.folding import folded_network
from shared.model.split import Part, SplitNetwork, flatten_state, nest_state

logger = logging.getLogger(__name__)

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


def load_engine(
    bundle: Bundle, part: PartName, *, device: str = "cpu", max_batch: int = 1
) -> TorchEngine:
    """Load one part of a bundle.

    Args:
        bundle: where the weights are read from, verified; the graphs are not needed.
        part: ``head``, ``tail`` or ``whole``.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: CUDA where it is there, else, with a
            warning, the CPU.
        max_batch: largest batch that is captured on CUDA; larger ones run in pieces.

    Raises:
        BundleError: the part is not described, or the weights are damaged or do not fit.
        EngineError: no such device.
    """
    spec = bundle.part(part)
    network = load_network(bundle)
    place = _present(device) if device == "auto" else device
    try:
        module = PARTS[part](network).to(place)
        engine = TorchEngine(module, part, spec, torch.device(place))
    except (RuntimeError, AssertionError) as error:
        # A torch built without CUDA says so with an AssertionError.
        raise EngineError(f"expected a usable torch device, got {device!r}: {error}") from error
    if torch.device(place).type == "cuda":
        _capture(engine, max_batch)
    return engine


def _present(device: str) -> str:
    """Return the device that ``auto`` stands for here."""
    if torch.cuda.is_available():
        return "cuda"
    logger.warning("device %s: expected a CUDA device, there is none: the CPU is used", device)
    return "cpu"


def _capture(engine: TorchEngine, max_batch: int) -> None:
    try:
        engine.use_buckets(bucket_sizes(max_batch))
    except RuntimeError as error:
        logger.warning("expected CUDA graphs, the engine runs without: %s", error)


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
        self._buckets: Buckets | None = None

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

    def use_buckets(self, sizes: Sequence[int]) -> None:
        """Run batches in buckets of these sizes from now on, captured where that is possible.

        Raises:
            RuntimeError: they cannot be captured.
        """
        examples = [
            torch.zeros(1, *shape, dtype=dtype, device=self._device)
            for shape, dtype in (
                (self._input_shape, torch.from_numpy(np.zeros(0, self._input_dtype)).dtype),
                *((shape, torch.float32) for shape in self._state_shapes),
            )
        ]
        with torch.inference_mode():
            self._buckets = Buckets(self._compute, examples, sizes)

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Run one timestep; see :meth:`shared.engine.base.Engine.step`."""
        check_step(self, self._input_dtype, x, state)
        try:
            with torch.inference_mode():
                output, *after = self._run((x, *state))
        except RuntimeError as error:
            raise EngineError(f"torch failed: {error}") from error
        return output, tuple(after)

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        if self._buckets is not None:
            return self._buckets.run(arrays)
        return [each.cpu().numpy() for each in self._compute(*map(self._to_device, arrays))]

    def _compute(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        membranes = dict(zip(self._paths, state, strict=True))
        y, after = self._module.step(x.float(), nest_state(membranes, self._form))
        return (y.to(self._output_dtype), *flatten_state(after).values())

    def _to_device(self, array: Array) -> Tensor:
        # A copy where NumPy's array is read-only, which torch would warn of.
        return torch.tensor(array, device=self._device)
