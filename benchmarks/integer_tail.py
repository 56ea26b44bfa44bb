"""A tail whose sums are exact in float32, so that no batch and no machine changes an answer.

For tests and runs that compare answers without tolerance, or want no engine in the way.
"""

from __future__ import annotations

import numpy as np

from shared.engine.base import Array, Shape, State
from shared.model.bundle import Bundle

SCALE = np.float32(32)
"""Divides the sums, so that confidences are not all 1; a power of two rounds nothing."""


class IntegerTail:
    """Adds up integer projections of a bundle's code.

    Args:
        bundle: gives code shape and classes.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.input_shape: Shape = bundle.spec.code_shape
        self.output_shape: Shape = (bundle.spec.classes,)
        self.state_shapes: tuple[Shape, ...] = (self.output_shape,)
        shape = (bundle.spec.code_bits, bundle.spec.classes)
        self._weights = np.random.default_rng(0).integers(-3, 4, shape)

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """Run one timestep: code ``[N, C', H', W']`` to logits ``[N, K]``."""
        sums = x.reshape(len(x), -1).astype(np.int64) @ self._weights
        total = (state[0] + sums).astype(np.float32)
        return total / SCALE, (total,)
