"""Sums and distributions that cost next to nothing to add to.

Told from a daemon's one thread, read by scrapes from others: they take no lock, which would cost
seven times the addition (x86-64, Python 3.11), and a server tells some fifteen figures a timestep.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence


class Tally:
    """A sum."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0.0

    def tell(self, amount: float) -> None:
        """Add an amount."""
        self.total += amount


class Distribution:
    """Counts of observations between bounds, and their sum.

    Args:
        bounds: upper bounds, ascending; an observation equal to one is counted below it.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def tell(self, value: float) -> None:
        """Add one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[int]:
        """Return how many observations were at most each bound, and last how many there were."""
        return list(itertools.accumulate(self.counts))
