"""An event recording: where and when pixels became brighter or darker."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Events:
    """Events of one recording, or a piece of one, in the order of time.

    Raises:
        ValueError: the arrays differ in length, times fall or are negative, a pixel is outside
            the sensor, or a polarity is not 0 or 1.
    """

    microseconds: Ints
    """int64, ``[E]``, since the start of the recording; never falling."""
    x: Ints
    """int64, ``[E]``, column, 0 at the left."""
    y: Ints
    """int64, ``[E]``, row, 0 at the top."""
    polarity: Ints
    """int64, ``[E]``, 0 OFF (darker), 1 ON (brighter)."""
    sensor: tuple[int, int]
    """``[H, W]`` in pixels."""

    def __post_init__(self) -> None:
        lengths = [len(a) for a in (self.microseconds, self.x, self.y, self.polarity)]
        if len(set(lengths)) != 1:
            raise ValueError(f"expected arrays of one length, got {lengths}")
        height, width = self.sensor
        _check_range("x", self.x, width)
        _check_range("y", self.y, height)
        _check_range("polarity", self.polarity, 2)
        if len(self) and self.microseconds[0] < 0:
            raise ValueError(f"expected times from 0 on, got {self.microseconds[0]}")
        if (np.diff(self.microseconds) < 0).any():
            raise ValueError("expected events in the order of time, got falling times")

    def __len__(self) -> int:
        return len(self.microseconds)

    def part(self, start: int, stop: int) -> Events:
        """Return events ``start`` to ``stop - 1``."""
        return replace(
            self,
            microseconds=self.microseconds[start:stop],
            x=self.x[start:stop],
            y=self.y[start:stop],
            polarity=self.polarity[start:stop],
        )

    def resized(self, sensor: tuple[int, int]) -> Events:
        """Return the same events on a sensor of another size ``[H, W]``.

        Each event keeps its time and polarity; ``x`` becomes ``floor(x * W' / W)``, ``y``
        likewise, so that a smaller sensor adds up whole cells and no event is lost.
        """
        height, width = self.sensor
        return replace(
            self, x=self.x * sensor[1] // width, y=self.y * sensor[0] // height, sensor=sensor
        )


def _check_range(name: str, values: Ints, end: int) -> None:
    outside = (values < 0) | (values >= end)
    if outside.any():
        raise ValueError(
            f"expected {name} in 0..{end - 1}, got {values[outside][0]} "
            f"({np.count_nonzero(outside)} of {len(values)} events)"
        )
