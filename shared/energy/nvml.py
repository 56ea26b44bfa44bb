"""NVIDIA GPUs, through the driver's library (extra ``nvml``, imported only when it is looked for).

A GPU of the Volta generation or later counts its energy itself; of an older one the power is
integrated. It is that of whole GPUs, whoever uses them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from shared.energy.meter import Component, Finding, Reading, Source
from shared.errors import SensorError, SensorReason

MODULE = "pynvml"
DRIVER = "proc/driver/nvidia/version"


class Nvml:
    """All GPUs together.

    Args:
        nvml: the module, initialised.
        handles: of the GPUs.
        counts: whether all of them count their energy.
    """

    source = Source.NVML
    interval_seconds = 0.1

    def __init__(
        self,
        nvml: Any,
        handles: Sequence[Any],
        *,
        counts: bool,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._nvml = nvml
        self._handles = handles
        self._counts = counts
        self._clock = clock
        self.max_gap_seconds = 3600.0 if counts else 1.0

    def read(self) -> list[Reading]:
        """Return energy or power of all GPUs."""
        now, nvml = self._clock(), self._nvml
        try:
            watts = sum(nvml.nvmlDeviceGetPowerUsage(handle) for handle in self._handles) * 1e-3
            joules = None
            if self._counts:
                energies = map(nvml.nvmlDeviceGetTotalEnergyConsumption, self._handles)
                joules = sum(energies) * 1e-3
        except nvml.NVMLError as error:
            raise SensorError(SensorReason.FAILED, f"NVML: {error}") from error
        return [Reading(Component.GPU, now, watts, joules)]

    def close(self) -> None:
        """Let go of the library."""
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:
            return  # Let go of already.


def find(root: Path, load: Callable[[str], Any] = importlib.import_module) -> Finding | None:
    """Look for GPUs; nothing where NVIDIA's driver is not loaded.

    Args:
        root: where the system's files are.
        load: imports a module by name.
    """
    if not (root / DRIVER).is_file():
        return None
    try:
        nvml = load(MODULE)
    except ImportError:
        return Finding(
            Source.NVML, "a GPU is there, but not the module to ask it: pip install neucodex[nvml]"
        )
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    except nvml.NVMLError as error:
        return Finding(Source.NVML, f"a GPU is there, but cannot be asked: {error}")
    if not handles:
        nvml.nvmlShutdown()
        return Finding(Source.NVML, "the driver is there, but shows no GPU")
    sensor = Nvml(nvml, handles, counts=_all_count(nvml, handles))
    try:
        sensor.read()
    except SensorError as error:
        sensor.close()
        return Finding(Source.NVML, f"a GPU is there, but does not tell its power: {error}")
    return Finding(Source.NVML, f"{count} GPU, whoever uses it", sensor)


def _all_count(nvml: Any, handles: Sequence[Any]) -> bool:
    try:
        for handle in handles:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return False
    return True
