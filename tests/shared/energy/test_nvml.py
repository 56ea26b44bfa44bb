from __future__ import annotations

from typing import Any

import pytest

from shared.energy import nvml
from shared.energy.meter import Component
from shared.errors import SensorError, SensorReason
from tests.shared.energy.conftest import Plant

DRIVER = {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  575"}


class NVMLError(Exception):
    """As in the module."""


class FakeNvml:
    """The functions of the module that are used, on GPUs given by power and energy."""

    NVMLError = NVMLError

    def __init__(self, *gpus: tuple[int | None, int | None], loads: bool = True) -> None:
        self.gpus = list(gpus)
        self.open = 0
        self._loads = loads

    def nvmlInit(self) -> None:  # noqa: N802
        if not self._loads:
            raise NVMLError("Driver/library version mismatch")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        if not self.open:
            raise NVMLError("Uninitialized")
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return self._told(self.gpus[handle][0])

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return self._told(self.gpus[handle][1])

    def _told(self, value: int | None) -> int:
        if value is None:
            raise NVMLError("Not Supported")
        return value


def find(plant: Plant, module: FakeNvml) -> Any:
    return nvml.find(plant(DRIVER), lambda name: module)


def test_gpus_that_count_their_energy_are_added_up(plant: Plant) -> None:
    module = FakeNvml((70_000, 1_000_000), (30_500, 500))
    sensor = find(plant, module).sensor
    (reading,) = sensor.read()
    assert (reading.component, reading.watts, reading.joules) == (
        Component.GPU,
        pytest.approx(100.5),
        pytest.approx(1000.5),
    )
    sensor.close()
    sensor.close()
    assert module.open == 0


def test_an_older_gpu_tells_its_power_alone(plant: Plant) -> None:
    (reading,) = find(plant, FakeNvml((45_000, None))).sensor.read()
    assert (reading.watts, reading.joules) == (pytest.approx(45), None)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (FakeNvml((1, 1), loads=False), "version mismatch"),
        (FakeNvml(), "shows no GPU"),
        (FakeNvml((None, None)), "does not tell its power"),
    ],
)
def test_what_cannot_be_asked_is_not_usable(plant: Plant, module: FakeNvml, said: str) -> None:
    finding = find(plant, module)
    assert finding.sensor is None
    assert said in finding.found
    assert module.open == 0


def test_a_gpu_that_is_lost_is_an_error(plant: Plant) -> None:
    module = FakeNvml((1000, 1000))
    sensor = find(plant, module).sensor
    module.gpus[0] = (None, None)
    with pytest.raises(SensorError, match="Not Supported") as raised:
        sensor.read()
    assert raised.value.reason is SensorReason.FAILED


def test_without_the_module_it_says_what_to_install(plant: Plant) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    finding = nvml.find(plant(DRIVER), absent)
    assert finding is not None
    assert finding.sensor is None
    assert "neucodex[nvml]" in finding.found


def test_without_a_driver_the_module_is_not_even_imported(plant: Plant) -> None:
    def forbidden(name: str) -> Any:
        raise AssertionError(name)

    assert nvml.find(plant({}), forbidden) is None
