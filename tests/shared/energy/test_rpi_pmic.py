from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.energy import rpi_pmic
from shared.energy.meter import Component
from shared.energy.rpi_pmic import rail_watts, run_command
from shared.errors import SensorError, SensorReason
from tests.shared.energy.conftest import Plant

PRINTED = """\
   3V7_WL_SW_A current(0)=0.09758850A
     3V3_SYS_A current(1)=0.05953140A
  VDD_CORE_A current(7)=1.42880000A
   3V7_WL_SW_V volt(8)=3.69800000V
     3V3_SYS_V volt(9)=3.31200000V
  VDD_CORE_V volt(15)=0.90659250V
      EXT5V_V volt(24)=5.05000000V
       BATT_V volt(25)=0.00000000V
"""
MODEL = "proc/device-tree/model"


def prints(text: str) -> rpi_pmic.Run:
    def run(command: Sequence[str]) -> str:
        assert command == ("vcgencmd", "pmic_read_adc")
        return text

    return run


def fails(reason: SensorReason, message: str) -> rpi_pmic.Run:
    def run(command: Sequence[str]) -> str:
        raise SensorError(reason, message)

    return run


def test_rails_with_voltage_and_current_are_added_up(plant: Plant) -> None:
    root = plant({MODEL: "Raspberry Pi 5 Model B Rev 1.0\0"})
    finding = rpi_pmic.find(root, prints(PRINTED))
    assert finding is not None and finding.sensor is not None
    watts = {each.component: each.watts for each in finding.sensor.read()}
    core = 1.4288 * 0.9065925
    total = 0.0975885 * 3.698 + 0.0595314 * 3.312 + core
    assert watts == {Component.TOTAL: pytest.approx(total), Component.CPU: pytest.approx(core)}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (prints('error=1 error_msg="Command not registered"\n'), "only the Raspberry Pi 5 has"),
        (fails(SensorReason.ABSENT, "vcgencmd: none"), "raspi-utils"),
        (fails(SensorReason.FAILED, "cannot open /dev/vcio"), "group video"),
    ],
)
def test_a_pi_that_does_not_tell_is_not_usable(run: rpi_pmic.Run, said: str, plant: Plant) -> None:
    finding = rpi_pmic.find(plant({MODEL: "Raspberry Pi 4 Model B Rev 1.4\0"}), run)
    assert finding is not None
    assert finding.sensor is None
    assert said in finding.found


def test_in_a_container_the_device_is_missing(plant: Plant) -> None:
    root = plant({MODEL: "Raspberry Pi 5 Model B", ".dockerenv": ""})
    finding = rpi_pmic.find(root, fails(SensorReason.ABSENT, "vcgencmd: none"))
    assert finding is not None
    assert "--device /dev/vcio" in finding.found


def test_other_machines_are_not_asked(plant: Plant, tmp_path: Path) -> None:
    run = fails(SensorReason.FAILED, "must not run")
    assert rpi_pmic.find(tmp_path, run) is None
    assert rpi_pmic.find(plant({MODEL: "NVIDIA Jetson Orin Nano"}), run) is None


@given(st.text(max_size=200))
def test_anything_printed_is_power_or_a_clear_error(printed: str) -> None:
    try:
        watts = rail_watts(printed)
    except SensorError as error:
        assert error.reason is SensorReason.MALFORMED
    else:
        assert watts and all(value >= 0 for value in watts.values())


@pytest.mark.parametrize(
    ("code", "reason"),
    [("import sys; sys.exit('no device')", SensorReason.FAILED), (None, SensorReason.ABSENT)],
)
def test_a_command_that_fails_says_why(code: str | None, reason: SensorReason) -> None:
    command = ["/no/such/command"] if code is None else [sys.executable, "-c", code]
    with pytest.raises(SensorError, match="no device|No such file") as raised:
        run_command(command)
    assert raised.value.reason is reason


def test_what_a_command_prints_is_returned() -> None:
    assert run_command([sys.executable, "-c", "print('x')"]) == "x\n"
