from __future__ import annotations

from pathlib import Path

import pytest

from shared.energy import rapl
from shared.energy.meter import Finding, Sampler
from shared.errors import SensorError, SensorReason
from tests.shared.energy.conftest import Plant

POWERCAP = "sys/class/powercap"
RANGE = 262_143_328_850
DRAM_RANGE = 65_712_999_613


def zone(folder: str, name: str, energy: int, most: int = RANGE) -> dict[str, object]:
    path = f"{POWERCAP}/{folder}"
    return {
        f"{path}/name": name,
        f"{path}/energy_uj": energy,
        f"{path}/max_energy_range_uj": most,
    }


LAPTOP = (
    zone("intel-rapl:0", "package-0", 5_000_000)
    | zone("intel-rapl:0:0", "core", 900_000)
    | zone("intel-rapl:0:1", "uncore", 800_000)
    | zone("intel-rapl:0:2", "dram", 700_000, DRAM_RANGE)
    | zone("intel-rapl:1", "psys", 9_000_000)
    | zone("intel-rapl-mmio:0", "package-0", 5_000_000)
)


def usable(finding: Finding | None) -> rapl.Rapl:
    assert finding is not None
    assert isinstance(finding.sensor, rapl.Rapl), finding.found
    return finding.sensor


def add(root: Path, folder: str, microjoules: int, most: int = RANGE) -> None:
    """Let a counter go on, round its end if need be."""
    path = root / POWERCAP / folder / "energy_uj"
    path.write_text(str((int(path.read_text()) + microjoules) % most))


def joules(sensor: rapl.Rapl) -> dict[str, float]:
    return {each.component: each.joules for each in sensor.read() if each.joules is not None}


def test_the_total_is_packages_and_memory(plant: Plant) -> None:
    root = plant(LAPTOP)
    sensor = usable(rapl.find(root))
    assert joules(sensor) == {"total": 0, "cpu": 0, "dram": 0}
    for folder, amount in (("intel-rapl:0", 3_000_000), ("intel-rapl:0:0", 2_000_000)):
        add(root, folder, amount)
    add(root, "intel-rapl:0:2", 500_000)
    add(root, "intel-rapl:1", 7_000_000)
    add(root, "intel-rapl-mmio:0", 3_000_000)
    assert joules(sensor) == pytest.approx({"total": 3.5, "cpu": 3.0, "dram": 0.5})


def test_counters_that_went_round_go_on(plant: Plant) -> None:
    root = plant(
        zone("intel-rapl:0", "package-0", RANGE - 1_000_000)
        | zone("intel-rapl:0:0", "dram", DRAM_RANGE - 10, DRAM_RANGE)
    )
    sensor = usable(rapl.find(root))
    sensor.read()
    add(root, "intel-rapl:0", 4_000_000)
    add(root, "intel-rapl:0:0", 2_000_000, DRAM_RANGE)
    assert joules(sensor) == pytest.approx({"total": 6.0, "cpu": 4.0, "dram": 2.0})


def test_a_gap_in_which_a_counter_may_have_gone_round_is_a_gap(plant: Plant) -> None:
    now, root = 0.0, plant(LAPTOP)
    finding = rapl.find(root)
    sensor = rapl.Rapl(usable(finding)._zones, clock=lambda: now)
    assert sensor.max_gap_seconds == pytest.approx(DRAM_RANGE * 1e-6 / 1000)
    sampler = Sampler(sensor, clock=lambda: now)
    sampler.poll()
    now = 1000.0
    add(root, "intel-rapl:0", 3_000_000)
    sampler.poll()
    total = next(iter(sampler.totals().values()))
    assert (total.joules, total.unsampled_seconds) == (0, 1000)


def test_two_sockets_are_added_and_mirrored_dies_are_not(plant: Plant) -> None:
    root = plant(
        zone("intel-rapl:0", "package-0", 1_000_000)
        | zone("intel-rapl:1", "package-1", 2_000_000)
        | zone("intel-rapl:2", "package-0-die-1", 1_000_000)
    )
    finding = rapl.find(root)
    sensor = usable(finding)
    sensor.read()
    for folder in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:2"):
        add(root, folder, 1_000_000)
    assert joules(sensor) == pytest.approx({"total": 2.0, "cpu": 2.0})


def test_without_permission_there_is_no_sensor_and_the_reason(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, read_text = plant(LAPTOP), Path.read_text

    def denied(path: Path, *args: str, **options: str) -> str:
        if path.name == "energy_uj":  # Mode bits would not stop the root of a test machine.
            raise PermissionError(13, "Permission denied")
        return read_text(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", denied)
    finding = rapl.find(root)
    assert finding is not None
    assert finding.sensor is None
    assert "Permission denied" in finding.found
    assert "chmod a+r" in finding.found


def test_permission_taken_away_later_is_an_error_of_the_reading(plant: Plant) -> None:
    root = plant(LAPTOP)
    sensor = usable(rapl.find(root))
    (root / POWERCAP / "intel-rapl:0/energy_uj").unlink()
    with pytest.raises(SensorError) as raised:
        sensor.read()
    assert raised.value.reason is SensorReason.ABSENT


def test_a_container_masks_the_counters(plant: Plant, tmp_path: Path) -> None:
    plant({".dockerenv": ""})
    powercap = tmp_path / POWERCAP
    powercap.mkdir(parents=True)
    (powercap / "intel-rapl:0").symlink_to(tmp_path / "sys/devices/virtual/powercap/intel-rapl:0")
    finding = rapl.find(tmp_path)
    assert finding is not None
    assert finding.sensor is None
    assert "read-only" in finding.found


def test_machines_without_counters_say_nothing(tmp_path: Path) -> None:
    assert rapl.find(tmp_path) is None
