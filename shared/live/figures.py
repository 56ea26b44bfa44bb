"""What the figures of both sides have in common."""

from __future__ import annotations

from shared.energy.meter import Component
from shared.readings import Readings

METRIC = "measured_power_watts"


def watts(readings: Readings) -> dict[str, float]:
    """Return the power of this machine now, by the source that measures it; often there is none."""
    if not readings.has(METRIC):
        return {}
    return readings.labels(METRIC, "source", component=Component.TOTAL)
