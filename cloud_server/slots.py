"""Membrane state of the samples under way: arrays allocated once, lent out row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.engine.base import Shape, State


class Slots:
    """Rows of preallocated state arrays, each held by at most one sample.

    Args:
        state_shapes: shape of each membrane array of one sample.
        limit: number of slots.

    Raises:
        ValueError: ``limit`` below 1.
    """

    def __init__(self, state_shapes: Sequence[Shape], limit: int) -> None:
        if limit < 1:
            raise ValueError(f"expected at least 1 slot, got {limit}")
        self._arrays: tuple[NDArray[np.float32], ...] = tuple(
            np.zeros((limit, *shape), np.float32) for shape in state_shapes
        )
        self._free = list(reversed(range(limit)))
        self._taken: set[int] = set()
        self.limit = limit
        self.slot_bytes = sum(array[0].nbytes for array in self._arrays)
        """Membrane state of one sample, in bytes."""

    @property
    def in_use(self) -> int:
        """Slots that are held now."""
        return len(self._taken)

    @property
    def free(self) -> int:
        """Slots that can be taken now."""
        return len(self._free)

    def take(self) -> int:
        """Return a slot whose state is zero.

        Raises:
            ValueError: none is free.
        """
        if not self._free:
            raise ValueError(f"expected a free slot, all {self.limit} are taken")
        slot = self._free.pop()
        self._taken.add(slot)
        for array in self._arrays:
            array[slot] = 0
        return slot

    def give_back(self, slot: int) -> None:
        """Return a slot.

        Raises:
            ValueError: the slot is not held: it was given back before.
        """
        if slot not in self._taken:
            raise ValueError(f"expected a slot that is held, got {slot}")
        self._taken.remove(slot)
        self._free.append(slot)

    def gather(self, slots: Sequence[int]) -> State:
        """Return a copy of the state of some slots, one array ``[N, ...]`` per membrane array."""
        rows = list(slots)
        return tuple(array[rows] for array in self._arrays)

    def scatter(self, slots: Sequence[int], state: State) -> None:
        """Store the state of some slots; the reverse of :meth:`gather`."""
        rows = list(slots)
        for array, values in zip(self._arrays, state, strict=True):
            array[rows] = values
