"""Measured energy of the running daemon: idle power, and energy per sample while it works.

Sensors are too slow for a single sample. The daemon's time is therefore cut into stretches: one in
which nothing was done tells the idle power, one with samples enough tells what each of them drew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from shared.energy.meter import Source
from shared.energy.stretches import Stretch
from shared.metrics import EdgeMetrics, Placement, Reckoning

FEWEST_SAMPLES = 10
"""Samples of a stretch, at least: one that began before it, or ended after, then weighs little."""


class EdgeWork(NamedTuple):
    """What the daemon has done so far."""

    accepted: int
    """Samples."""
    under_way: int
    """Samples accepted and not ended."""
    answered: Mapping[Placement, int]
    """Samples by where they were computed."""

    @property
    def is_idle(self) -> bool:
        """Whether no sample is under way."""
        return not self.under_way

    def plus(self, other: EdgeWork) -> EdgeWork:
        """Return the work of two loops together."""
        return EdgeWork(
            self.accepted + other.accepted,
            self.under_way + other.under_way,
            Counter(self.answered) + Counter(other.answered),
        )


NO_WORK = EdgeWork(0, 0, {})


class EnergyWatch:
    """Tells the metrics what stretches of time show.

    Args:
        metrics: told.
    """

    def __init__(self, metrics: EdgeMetrics) -> None:
        self._metrics = metrics
        self._idle_watts: dict[Source, float] = {}

    def told(self, stretch: Stretch[EdgeWork]) -> None:
        """Take in one stretch of time."""
        if stretch.was_idle:
            for source, drawn in stretch.drawn.items():
                self._idle_watts[source] = drawn.watts
                self._metrics.idle(source, drawn.component, drawn.watts)
            return
        samples = _samples(stretch)
        if len(samples) == 1:
            ((placement, count),) = samples.items()
            if count >= FEWEST_SAMPLES:
                self._tell_samples(stretch, placement, count)

    def _tell_samples(self, stretch: Stretch[EdgeWork], placement: Placement, count: int) -> None:
        seconds = stretch.seconds / count
        for source, drawn in stretch.drawn.items():
            tell = self._metrics.measured_energy
            tell(placement, Reckoning.GROSS, source, drawn.watts * seconds, count)
            if source in self._idle_watts:
                # Less than idle is noise; and a sum that falls would look like a restart.
                net_watts = max(0.0, drawn.watts - self._idle_watts[source])
                tell(placement, Reckoning.NET_OF_IDLE, source, net_watts * seconds, count)


def _samples(stretch: Stretch[EdgeWork]) -> dict[Placement, int]:
    """Return how many samples were answered in a stretch, by placement."""
    before, after = stretch.before.answered, stretch.after.answered
    return {
        placement: count - before.get(placement, 0)
        for placement, count in after.items()
        if count > before.get(placement, 0)
    }
