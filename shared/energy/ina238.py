"""INA238 at the input of a Jetson Thor: what the whole board draws, in one file in microwatts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic

from shared.energy import files
from shared.energy.ina3221 import devices
from shared.energy.meter import Component, Finding, Reading, Source
from shared.errors import SensorError


class Ina238:
    """The chip.

    Args:
        power: its file of microwatts.
    """

    source = Source.INA238
    interval_seconds = 0.02
    max_gap_seconds = 1.0

    def __init__(self, power: Path, clock: Callable[[], float] = monotonic) -> None:
        self._power = power
        self._clock = clock

    def read(self) -> list[Reading]:
        """Return the power of the board."""
        now = self._clock()
        return [Reading(Component.TOTAL, now, files.number(self._power) * 1e-6)]

    def close(self) -> None:
        """There is nothing to let go of."""


def find(root: Path) -> Finding | None:
    """Look for the chip below ``root``; nothing on a machine without it."""
    chips = [chip for chip in devices(root) if files.text(chip / "name") == "ina238"]
    if not chips:
        return None
    powers = [power for chip in chips for power in sorted(chip.glob("hwmon/hwmon*/power1_input"))]
    if len(powers) != 1:
        count = len(powers)
        return Finding(
            Source.INA238,
            f"there, but expected one power1_input, at the board's input; got {count}",
        )
    sensor = Ina238(powers[0])
    try:
        sensor.read()
    except SensorError as error:
        return Finding(Source.INA238, f"there, but cannot be read: {error}")
    return Finding(Source.INA238, "the board's input", sensor)
