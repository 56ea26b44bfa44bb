"""What an inference engine is: one part of a network as a pure step over NumPy arrays."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import EngineError
from shared.model.bundle import PartName

Array = NDArray[Any]
State = tuple[NDArray[np.float32], ...]
"""Membrane potentials, one float32 array ``[N, ...]`` per LIF layer, in the part's order."""

Shape = tuple[int, ...]

FLOAT32, UINT8 = np.dtype(np.float32), np.dtype(np.uint8)
DTYPES: dict[PartName, tuple[np.dtype[Any], np.dtype[Any]]] = {
    "head": (FLOAT32, UINT8),
    "tail": (UINT8, FLOAT32),
    "whole": (FLOAT32, FLOAT32),
}
"""Input and output dtype of each part; membrane potentials are float32."""


class Engine(Protocol):
    """One part (``head``, ``tail`` or ``whole``) of a bundle, ready to run.

    ``head`` maps float32 ``[N, C, H, W]`` to the code, uint8 0/1 ``[N, C', H', W']``;
    ``tail`` maps the code to this timestep's logits, float32 ``[N, K]``;
    ``whole``, the network before the bottleneck was inserted, maps the input to logits.
    Calls from several threads are safe: nothing is held between them.
    """

    @property
    def input_shape(self) -> Shape:
        """Shape of one sample's input, without N."""
        ...

    @property
    def output_shape(self) -> Shape:
        """Shape of one sample's output, without N."""
        ...

    @property
    def state_shapes(self) -> tuple[Shape, ...]:
        """Shape of each membrane array, without N."""
        ...

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Run one timestep.

        Args:
            x: ``[N, *input_shape]``; uint8 for ``tail``, float32 otherwise.
            state: one array ``[N, *shape]`` for each of ``state_shapes``.

        Returns:
            ``(y, state)``: ``[N, *output_shape]`` and the membrane potentials afterwards.

        Raises:
            EngineError: the engine failed, or a shape or dtype is wrong.
        """
        ...


class CountingEngine(Engine, Protocol):
    """An engine that can count the operations of a timestep, besides."""

    def count(self, x: Array, state: State) -> tuple[Array, State, NDArray[np.float64]]:
        """Run one timestep; arguments and errors are those of :meth:`Engine.step`.

        Returns:
            ``(y, state, operations)``: what ``step`` gives, and for every sample its
            multiply-accumulates and accumulates, float64 ``[N, 2]``.
        """
        ...


def zero_state(engine: Engine, samples: int) -> State:
    """Return the state of ``samples`` samples that have not begun."""
    return tuple(np.zeros((samples, *shape), np.float32) for shape in engine.state_shapes)


def check_step(engine: Engine, dtype: np.dtype[Any], x: Array, state: State) -> None:
    """Refuse arguments of :meth:`Engine.step` that do not fit ``engine``.

    Args:
        engine: about to run.
        dtype: of its input.
        x: see :meth:`Engine.step`.
        state: see :meth:`Engine.step`.

    Raises:
        EngineError: saying which array was expected and which came.
    """
    if x.dtype != dtype or x.shape[1:] != engine.input_shape:
        raise EngineError(
            f"expected input {dtype} [N, {_listed(engine.input_shape)}], "
            f"got {x.dtype} [{_listed(x.shape)}]"
        )
    shapes = engine.state_shapes
    if len(state) != len(shapes):
        raise EngineError(f"expected {len(shapes)} membrane arrays, got {len(state)}")
    for index, (array, shape) in enumerate(zip(state, shapes, strict=True)):
        if array.dtype != FLOAT32 or array.shape != (len(x), *shape):
            raise EngineError(
                f"expected membrane array {index} float32 [{len(x)}, {_listed(shape)}], "
                f"got {array.dtype} [{_listed(array.shape)}]"
            )


def _listed(shape: Shape) -> str:
    return ", ".join(map(str, shape))
