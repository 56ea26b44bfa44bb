"""INA3221 and INA238 on trees laid out as each board shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.energy import ina238, ina3221
from shared.energy.config import EnergyConfig
from shared.energy.meter import Component, Finding
from shared.energy.sensors import find_sensors
from shared.errors import SensorError, SensorReason
from tests.shared.energy.conftest import Plant

I2C = "sys/bus/i2c/devices"


def hwmon(device: str, number: int, *rails: tuple[str, int, int]) -> dict[str, object]:
    """One chip as JetPack 5 and 6 show it: rails by label, in mV and mA."""
    folder = f"{I2C}/{device}/hwmon/hwmon{number}"
    files: dict[str, object] = {f"{I2C}/{device}/name": "ina3221", f"{folder}/name": "ina3221"}
    for channel, (label, millivolts, milliamperes) in enumerate(rails, start=1):
        files[f"{folder}/in{channel}_label"] = label
        files[f"{folder}/in{channel}_input"] = millivolts
        files[f"{folder}/curr{channel}_input"] = milliamperes
    # The chip's sums, of shunt voltages and of currents: no rails.
    files[f"{folder}/in7_label"] = "sum of shunt voltages"
    files[f"{folder}/in7_input"] = 99_999
    files[f"{folder}/curr4_input"] = 99_999
    return files


def iio(device: str, *rails: tuple[str, int]) -> dict[str, object]:
    """One chip as JetPack 4 shows it: rails by label, in mW."""
    folder = f"{I2C}/{device}/iio:device0"
    files: dict[str, object] = {f"{I2C}/{device}/name": "ina3221x"}
    for channel, (label, milliwatts) in enumerate(rails):
        files[f"{folder}/rail_name_{channel}"] = label
        files[f"{folder}/in_power{channel}_input"] = milliwatts
        files[f"{folder}/in_voltage{channel}_input"] = 5000
        files[f"{folder}/in_current{channel}_input"] = 1
    return files


ORIN_NANO = hwmon(
    "1-0040",
    3,
    ("VDD_IN", 5000, 1200),
    ("VDD_CPU_GPU_CV", 5000, 400),
    ("VDD_SOC", 5000, 300),
)
AGX_ORIN = hwmon(
    "1-0040",
    1,
    ("VDD_GPU_SOC", 10_000, 500),
    ("VDD_CPU_CV", 10_000, 300),
    ("VIN_SYS_5V0", 5000, 900),
) | hwmon("1-0041", 2, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 200), ("NC", 0, 0))
AGX_XAVIER = hwmon(
    "1-0040", 0, ("GPU", 10_000, 100), ("CPU", 10_000, 200), ("SOC", 10_000, 300)
) | hwmon("1-0041", 1, ("CV", 10_000, 10), ("VDDRQ", 10_000, 20), ("SYS5V", 5000, 40))
NANO = iio("6-0040", ("POM_5V_IN", 4200), ("POM_5V_GPU", 800), ("POM_5V_CPU", 1100))
TX2 = iio("0-0040", ("VDD_SYS_GPU", 700), ("VDD_SYS_SOC", 600), ("VDD_4V0_WIFI", 90)) | iio(
    "0-0041", ("VDD_IN", 5100), ("VDD_SYS_CPU", 900), ("VDD_SYS_DDR", 500)
)
THOR = hwmon(
    "2-0040", 4, ("VDD_GPU", 12_000, 700), ("VDD_CPU_SOC_MSS", 12_000, 500), ("NC", 0, 0)
) | {
    f"{I2C}/2-0044/name": "ina238",
    f"{I2C}/2-0044/hwmon/hwmon5/in1_input": 20_000,
    f"{I2C}/2-0044/hwmon/hwmon5/curr1_input": 1500,
    f"{I2C}/2-0044/hwmon/hwmon5/power1_input": 30_000_000,
}
BOARDS = {
    "orin_nano": (ORIN_NANO, {"total": 6.0, "cpu_gpu": 2.0, "soc": 1.5}),
    "agx_orin": (AGX_ORIN, {"total": 12.5, "gpu_soc": 5, "cpu_cv": 3, "system": 4.5, "dram": 1}),
    "agx_xavier": (
        AGX_XAVIER,
        {"total": 6.5, "gpu": 1, "cpu": 2, "soc": 3, "cv": 0.1, "dram": 0.2, "system": 0.2},
    ),
    "nano_jetpack_4": (NANO, {"total": 4.2, "gpu": 0.8, "cpu": 1.1}),
    "tx2_jetpack_4": (TX2, {"total": 5.1, "gpu": 0.7, "soc": 0.6, "cpu": 0.9, "dram": 0.5}),
}


def watts(finding: Finding | None) -> dict[str, float]:
    assert finding is not None
    assert finding.sensor is not None, finding.found
    return {each.component: each.watts for each in finding.sensor.read() if each.watts is not None}


@pytest.mark.parametrize("board", BOARDS)
def test_every_board_has_its_rails_and_the_right_total(board: str, plant: Plant) -> None:
    files, expected = BOARDS[board]
    assert watts(ina3221.find(plant(files))) == pytest.approx(expected)


def test_the_module_total_contains_every_rail_once(plant: Plant) -> None:
    finding = ina3221.find(plant(AGX_ORIN))
    assert finding is not None
    assert "total is VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0" in finding.found


def test_thor_measures_its_input_and_no_second_total(plant: Plant) -> None:
    root = plant(THOR)
    findings = find_sensors(EnergyConfig(), root)
    found = {finding.source: watts(finding) for finding in findings}
    assert found == {"ina238": {"total": pytest.approx(30)}, "ina3221": {"gpu": pytest.approx(8.4)}}


def test_an_unknown_board_has_no_total_and_says_so(plant: Plant) -> None:
    finding = ina3221.find(plant(hwmon("1-0040", 0, ("VDD_GPU", 5000, 100), ("VDD_X", 5000, 10))))
    assert watts(finding) == {"gpu": pytest.approx(0.5)}
    assert finding is not None
    assert "total of this board is not known" in finding.found


def test_a_channel_that_is_switched_off_is_absent(plant: Plant) -> None:
    root = plant(ORIN_NANO)
    channel = root / I2C / "1-0040/hwmon/hwmon3/curr3_input"
    channel.unlink()
    channel.mkdir()  # Reading it fails, as that of a channel that is off does.
    assert watts(ina3221.find(root)) == pytest.approx({"total": 6.0, "cpu_gpu": 2.0})


def test_a_chip_without_rails_is_not_usable(plant: Plant) -> None:
    finding = ina3221.find(plant({f"{I2C}/1-0040/name": "ina3221"}))
    assert finding is not None
    assert finding.sensor is None
    assert "no rail can be read" in finding.found


def test_a_file_that_goes_away_or_makes_no_sense_is_an_error(plant: Plant) -> None:
    root = plant(ORIN_NANO)
    finding = ina3221.find(root)
    assert finding is not None and finding.sensor is not None
    file = root / I2C / "1-0040/hwmon/hwmon3/in1_input"
    for break_it, reason in (
        (lambda: file.write_text("five"), SensorReason.MALFORMED),
        (file.unlink, SensorReason.ABSENT),
    ):
        break_it()
        with pytest.raises(SensorError, match="in1_input") as raised:
            finding.sensor.read()
        assert raised.value.reason is reason


def test_several_input_chips_are_told_apart_by_nobody(plant: Plant) -> None:
    second = {f"{I2C}/3-0045/name": "ina238", f"{I2C}/3-0045/hwmon/hwmon6/power1_input": 1}
    finding = ina238.find(plant(THOR | second))
    assert finding is not None
    assert finding.sensor is None
    assert "got 2" in finding.found


def test_other_machines_have_none(plant: Plant, tmp_path: Path) -> None:
    plant({f"{I2C}/1-0050/name": "24c02"})
    assert ina3221.find(tmp_path) is None
    assert ina238.find(tmp_path) is None
    assert find_sensors(EnergyConfig(), tmp_path) == []


def test_components_are_those_of_the_metrics() -> None:
    assert set(ina3221.COMPONENTS.values()) <= set(Component)
