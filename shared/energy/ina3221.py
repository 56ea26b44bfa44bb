"""INA3221 rail monitors of a Jetson, through the kernel's files.

JetPack 5 and 6 show them as hwmon (``in1_label``, ``in1_input`` in mV, ``curr1_input`` in mA),
JetPack 4 as IIO (``rail_name_0``, ``in_power0_input`` in mW). hwmon numbers change from boot to
boot, so the chips are found by their I2C address and name.

What the whole module draws differs from board to board. Where a rail feeds the whole module that
rail is the total; else it is the sum of rails that do not contain one another: on AGX Orin
VDDQ_VDD2_1V8AO is fed by VIN_SYS_5V0 and is left out, on AGX Xavier all six are apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from shared.energy import files
from shared.energy.meter import Component, Finding, Reading, Source
from shared.errors import SensorError

INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module: Orin Nano, Orin NX, Xavier NX and TX2; Nano."""
SUMMED_RAILS = (
    frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),  # AGX Orin
    frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}),  # AGX Xavier
)
COMPONENTS = {
    "VDD_CPU_GPU_CV": Component.CPU_GPU,
    "VDD_SOC": Component.SOC,
    "VDD_GPU_SOC": Component.GPU_SOC,
    "VDD_CPU_CV": Component.CPU_CV,
    "VIN_SYS_5V0": Component.SYSTEM,
    "VDDQ_VDD2_1V8AO": Component.DRAM,
    "GPU": Component.GPU,
    "CPU": Component.CPU,
    "SOC": Component.SOC,
    "CV": Component.CV,
    "VDDRQ": Component.DRAM,
    "SYS5V": Component.SYSTEM,
    "POM_5V_GPU": Component.GPU,
    "POM_5V_CPU": Component.CPU,
    "VDD_SYS_GPU": Component.GPU,
    "VDD_SYS_SOC": Component.SOC,
    "VDD_SYS_CPU": Component.CPU,
    "VDD_SYS_DDR": Component.DRAM,
    "VDD_GPU": Component.GPU,
}
"""Rails told apart; others count only where they are part of a total."""
CHANNELS = 3


class Rail(NamedTuple):
    """One channel of a chip: power is the product of the files' numbers, times a factor."""

    label: str
    factors: tuple[Path, ...]
    watts_per_unit: float

    def watts(self) -> float:
        """Return the power now; SensorError where it cannot be read."""
        product = self.watts_per_unit
        for path in self.factors:
            product *= files.number(path)
        return product


class Ina3221:
    """The rails of all chips.

    Args:
        rails: by label.
        totals: labels of the rails that make up the total; empty where that is not known.
    """

    source = Source.INA3221
    interval_seconds = 0.02
    max_gap_seconds = 1.0

    def __init__(
        self,
        rails: Mapping[str, Rail],
        totals: frozenset[str],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._rails = [rail for rail in rails.values() if rail.label in COMPONENTS.keys() | totals]
        self._totals = totals
        self._clock = clock

    def read(self) -> list[Reading]:
        """Return the power of every rail and of the whole."""
        now = self._clock()
        watts = {rail.label: rail.watts() for rail in self._rails}
        readings = [
            Reading(COMPONENTS[label], now, power)
            for label, power in watts.items()
            if label in COMPONENTS
        ]
        if self._totals:
            total = sum(watts[label] for label in self._totals)
            readings.append(Reading(Component.TOTAL, now, total))
        return readings

    def close(self) -> None:
        """There is nothing to let go of."""


def find(root: Path, *, has_total: bool = True) -> Finding | None:
    """Look for the chips.

    Args:
        root: where the system's files are.
        has_total: whether to give a total, which another sensor may give better.

    Returns:
        Nothing on a machine without such chips.
    """
    chips = [chip for chip in devices(root) if "ina3221" in files.text(chip / "name")]
    if not chips:
        return None
    rails, trouble = {}, ""
    for rail in (each for chip in chips for each in _rails(chip)):
        try:
            rail.watts()
        except SensorError as error:
            trouble = str(error)  # A channel that is switched off is absent, not 0.
            continue
        rails[rail.label] = rail
    if not rails:
        what = trouble or f"{chips[0]} shows no rails"
        return Finding(Source.INA3221, f"there, but no rail can be read: {what}")
    totals = total_rails(frozenset(rails)) if has_total else frozenset()
    found = ", ".join(rails)
    if totals:
        found += f"; the module's total is {' + '.join(sorted(totals))}"
    elif has_total:
        found += "; which of them make up the total of this board is not known, so there is none"
    return Finding(Source.INA3221, found, Ina3221(rails, totals))


def devices(root: Path) -> list[Path]:
    """Return the I2C devices of the system."""
    return sorted(root.glob("sys/bus/i2c/devices/*-00*"))


def total_rails(labels: frozenset[str]) -> frozenset[str]:
    """Return the rails whose powers add up to the module's; none where that is not known."""
    for label in INPUT_RAILS:
        if label in labels:
            return frozenset({label})
    return next((rails for rails in SUMMED_RAILS if rails <= labels), frozenset())


def _rails(chip: Path) -> Iterator[Rail]:
    """Yield the channels of a chip that are connected."""
    for hwmon in sorted(chip.glob("hwmon/hwmon*")):
        for channel in range(1, CHANNELS + 1):
            label = files.text(hwmon / f"in{channel}_label")
            volts, amperes = hwmon / f"in{channel}_input", hwmon / f"curr{channel}_input"
            if label not in ("", "NC"):
                yield Rail(label, (volts, amperes), 1e-6)  # mV times mA
    for iio in sorted(chip.glob("iio:device*")):
        for channel in range(CHANNELS):
            label = files.text(iio / f"rail_name_{channel}")
            if label not in ("", "NC"):
                yield Rail(label, (iio / f"in_power{channel}_input",), 1e-3)  # mW
