"""Power management chip of a Raspberry Pi 5, through ``vcgencmd pmic_read_adc``.

It tells voltage and current of twelve rails behind the chip. Their sum leaves out what the chip
itself loses and all that hangs on 5 V directly (USB, HATs, the fan): the input has a voltage there
but no current. Each reading is a process, so it is read a few times a second only.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from shared.energy import files
from shared.energy.meter import Component, Finding, Reading, Source
from shared.errors import SensorError, SensorReason

COMMAND = ("vcgencmd", "pmic_read_adc")
TIMEOUT_SECONDS = 2.0
LINE = re.compile(
    r"^\s*(?P<rail>\S+)_(?P<unit>[AV])\s+(?:current|volt)\(\d+\)=(?P<value>[0-9.]+)[AV]\s*$"
)
CPU_RAIL = "VDD_CORE"

Run = Callable[[Sequence[str]], str]
"""Runs a command and returns what it prints; SensorError where it cannot."""


def run_command(command: Sequence[str]) -> str:
    """Run a command; see :data:`Run`."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        message = f"{command[0]}: no answer within {TIMEOUT_SECONDS} s"
        raise SensorError(SensorReason.TIMEOUT, message) from error
    except OSError as error:
        raise SensorError.of(error, command[0]) from error
    printed = done.stdout.decode("ascii", errors="replace")
    if done.returncode != 0:
        said = (done.stderr.decode("ascii", errors="replace") or printed).strip()
        raise SensorError(
            SensorReason.FAILED, f"{' '.join(command)}: exit code {done.returncode}: {said[:200]}"
        )
    return printed


def rail_watts(printed: str) -> dict[str, float]:
    """Return the power of every rail that has both voltage and current.

    Raises:
        SensorError: there is none.
    """
    values: dict[tuple[str, str], float] = {}
    for line in printed.splitlines():
        if (found := LINE.match(line)) is not None:
            try:
                values[found["rail"], found["unit"]] = float(found["value"])
            except ValueError:
                continue  # Two points in a number.
    watts = {
        rail: amperes * values[rail, "V"]
        for (rail, unit), amperes in values.items()
        if unit == "A" and (rail, "V") in values
    }
    if not watts:
        message = f"expected voltages and currents, got {printed.strip()[:200]!r}"
        raise SensorError(SensorReason.MALFORMED, message)
    return watts


class RpiPmic:
    """The chip.

    Args:
        run: runs the command.
    """

    source = Source.RPI_PMIC
    interval_seconds = 0.25
    max_gap_seconds = 2.5

    def __init__(self, run: Run = run_command, clock: Callable[[], float] = monotonic) -> None:
        self._run = run
        self._clock = clock

    def read(self) -> list[Reading]:
        """Return the power of the processor's cores and of all rails."""
        watts = rail_watts(self._run(COMMAND))
        now = self._clock()
        readings = [Reading(Component.TOTAL, now, sum(watts.values()))]
        if CPU_RAIL in watts:
            readings.append(Reading(Component.CPU, now, watts[CPU_RAIL]))
        return readings

    def close(self) -> None:
        """There is nothing to let go of."""


def find(root: Path, run: Run = run_command) -> Finding | None:
    """Look for the chip, on a Raspberry Pi; nothing on any other machine."""
    model = files.text(root / "proc/device-tree/model")
    if not model.startswith("Raspberry Pi"):
        return None
    sensor = RpiPmic(run)
    try:
        sensor.read()
    except SensorError as error:
        return Finding(Source.RPI_PMIC, f"{model}: {_advice(error, root)}")
    return Finding(Source.RPI_PMIC, f"{model}: rails behind the power management chip", sensor)


def _advice(error: SensorError, root: Path) -> str:
    if error.reason is SensorReason.MALFORMED:
        return f"this model has no such sensor (only the Raspberry Pi 5 has): {error}"
    if files.in_container(root):
        return (
            f"{error}; in a container it takes the device /dev/vcio and the program vcgencmd "
            "(docker run --device /dev/vcio)"
        )
    if error.reason is SensorReason.ABSENT:
        return f"{error}; install the package raspi-utils"
    return f"{error}; the user must be in the group video"
