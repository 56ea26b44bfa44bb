"""RAPL: the energy counters of x86 processors, Intel's and AMD's, through the powercap files.

The total is packages plus memory (``dram``). ``core`` and ``uncore`` lie within a package,
``psys`` contains the packages, and ``intel-rapl-mmio`` shows a package a second time: none of them
is added. The counters start again at ``max_energy_range_uj``, some 262 kJ, which at 100 W is after
three quarters of an hour.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from shared.energy import files
from shared.energy.meter import Component, Finding, Reading, Source
from shared.errors import SensorError, SensorReason

MOST_WATTS = 1000.0
"""No processor draws more: how soon a counter may have gone round unseen."""
ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
LOOKS = 3
"""How often two counters are compared to tell mirrors of one another."""


@dataclass
class Zone:
    """One counter."""

    component: Component
    path: Path
    range_microjoules: int
    last_microjoules: int | None = None
    microjoules: int = 0
    """Since the first reading."""

    def read(self) -> float:
        """Return the joules since the first reading; SensorError where it cannot be read."""
        now = files.number(self.path / "energy_uj")
        if self.last_microjoules is not None:
            step = now - self.last_microjoules
            self.microjoules += step if step >= 0 else step + self.range_microjoules
        self.last_microjoules = now
        return self.microjoules * 1e-6


class Rapl:
    """The counters of all packages.

    Args:
        zones: packages and memory.
    """

    source = Source.RAPL
    interval_seconds = 0.1

    def __init__(self, zones: Sequence[Zone], clock: Callable[[], float] = monotonic) -> None:
        self._zones = zones
        self._clock = clock
        smallest_joules = min(zone.range_microjoules for zone in zones) * 1e-6
        self.max_gap_seconds = smallest_joules / MOST_WATTS

    def read(self) -> list[Reading]:
        """Return the energy of processors, memory and both."""
        now = self._clock()
        joules = {Component.TOTAL: 0.0}
        for zone in self._zones:
            drawn = zone.read()
            joules[Component.TOTAL] += drawn
            joules[zone.component] = joules.get(zone.component, 0.0) + drawn
        return [Reading(component, now, joules=drawn) for component, drawn in joules.items()]

    def close(self) -> None:
        """There is nothing to let go of."""


def find(root: Path) -> Finding | None:
    """Look for the counters below ``root``; nothing on a machine without them."""
    shown = root.glob("sys/class/powercap/intel-rapl:*")
    folders = sorted(folder for folder in shown if ZONE.fullmatch(folder.name))
    if not folders:
        return None
    try:
        zones = _without_mirrors([zone for folder in folders for zone in _zones(folder)])
    except SensorError as error:
        return Finding(Source.RAPL, _advice(error, root))
    if not any(zone.component is Component.CPU for zone in zones):
        if files.in_container(root):
            return Finding(Source.RAPL, f"there, but empty: {_MASKED}")
        return Finding(Source.RAPL, "there, but no package is shown")
    names = ", ".join(files.text(zone.path / "name") for zone in zones)
    return Finding(Source.RAPL, f"{names}; packages and memory, not the board", Rapl(zones))


_MASKED = (
    "container runtimes mask it; mount /sys/devices/virtual/powercap into the container, read-only"
)


def _zones(folder: Path) -> list[Zone]:
    name = files.text(folder / "name")
    if name.startswith("package"):
        component = Component.CPU
    elif name == "dram":
        component = Component.DRAM
    else:
        return []
    return [Zone(component, folder, files.number(folder / "max_energy_range_uj"))]


def _without_mirrors(zones: Sequence[Zone]) -> list[Zone]:
    """Leave out zones that show the counter of another, as some processors of several dies do."""
    looks = [[files.number(zone.path / "energy_uj") for zone in zones] for _ in range(LOOKS)]
    kept: list[int] = []
    for index, zone in enumerate(zones):
        mirrored = any(
            zones[other].component is zone.component
            # Read one after the other, a counter may move on in between; hardly each time.
            and any(look[other] == look[index] != 0 for look in looks)
            for other in kept
        )
        if not mirrored:
            kept.append(index)
    return [zones[index] for index in kept]


def _advice(error: SensorError, root: Path) -> str:
    if error.reason is SensorReason.PERMISSION:
        return (
            f"there, but {error}; only root may read it (since CVE-2020-8694). Where its users are "
            "trusted: chmod a+r on the energy_uj files, by a udev rule or tmpfiles.d at each boot"
        )
    if error.reason is SensorReason.ABSENT and files.in_container(root):
        return f"there, but {error}; {_MASKED}"
    return f"there, but {error}"
