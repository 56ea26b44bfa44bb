"""The energy block, with a meter that the test feeds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from edge_agent.cli import main
from edge_agent.config import EdgeConfig
from edge_agent.measure.energy import Window, mode_energy
from edge_agent.measure.inputs import Inputs
from edge_agent.measure.instrument import choose_modes, measure
from edge_agent.measure.markdown import markdown
from edge_agent.measure.run import EnergyPlan, Plan
from shared.energy.config import EnergyConfig
from shared.errors import ConfigError
from shared.machine import governors, hottest_celsius
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import Clouds, picture

pytestmark = pytest.mark.timeout(300)

IDLE_WATTS = 2.0
LOAD_WATTS = {"edge_only_exit": 6.0, "cloud_only_raw": 3.0, "lock_step": 4.0}
METER_SECONDS = 0.002
PLAN = EnergyPlan(modes=tuple(LOAD_WATTS), load_seconds=0.1, idle_seconds=0.06)
Configs = Callable[..., EdgeConfig]


class Bench:
    """A wall meter whose power the test sets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watts = IDLE_WATTS

    @contextmanager
    def writing(self) -> Iterator[None]:
        stop = threading.Event()

        def write() -> None:
            with self.path.open("a", buffering=1) as file:
                while not stop.wait(METER_SECONDS):
                    file.write(f'{{"watts": {self.watts}, "time_seconds": {time.monotonic()}}}\n')

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.measure.run.LATE_ACK_SECONDS", 0.03)


async def test_gross_and_net_energy_of_every_mode_and_their_spread(
    tiny_bundle: Bundle, clouds: Clouds, edge_config: Configs, tmp_path: Path
) -> None:
    bench = Bench(tmp_path / "meter.jsonl")
    bench.path.touch()

    def told(mode: str, _: int) -> None:
        bench.watts = LOAD_WATTS.get(mode, IDLE_WATTS)

    energy = EnergyConfig(sensors=False, external_meter=str(bench.path))
    async with clouds() as cloud:
        config = edge_config(cloud=f"127.0.0.1:{cloud.port}", energy=energy)
        with bench.writing():
            report = await measure(
                config,
                tiny_bundle,
                Inputs([picture(seed) for seed in range(3)], None),
                Plan(rounds=1, warm_up=1, energy=PLAN),
                choose_modes(tiny_bundle, [*LOAD_WATTS, "no_exit"]),
                told=told,
            )
    assert report.energy is not None
    assert list(report.energy.modes) == list(LOAD_WATTS)
    assert len(report.energy.windows) == PLAN.repeats * (2 * len(LOAD_WATTS) + 1)
    for name, watts in LOAD_WATTS.items():
        loads = [window for window in report.energy.windows if window.mode == name]
        assert all(window.seconds >= PLAN.load_seconds for window in loads)
        assert sum(window.inputs for window in loads) > PLAN.repeats
        (found,) = report.energy.modes[name].values()
        assert found.repeats == PLAN.repeats
        assert found.load_watts.mean == pytest.approx(watts, rel=0.05)
        assert found.idle_watts.mean == pytest.approx(IDLE_WATTS, rel=0.15)
        seconds = [window.seconds / window.inputs for window in loads]
        assert found.gross_joules.mean == pytest.approx(
            watts * sum(seconds) / len(seconds), rel=0.05
        )
        net = found.net_joules.mean / found.gross_joules.mean
        assert net == pytest.approx((watts - IDLE_WATTS) / watts, abs=0.12)
        assert found.gross_joules.least <= found.gross_joules.mean <= found.gross_joules.most
    text = markdown(report, [])
    assert "## Measured energy of this device" in text
    assert "| edge-only-exit | external_meter | 5 |" in text
    assert str(bench.path) in text


def window(mode: str | None, watts: float | None, inputs: int = 0) -> Window:
    told = {} if watts is None else {"rapl": watts}
    return Window(mode=mode, seconds=10.0, inputs=inputs, watts=told, hottest_celsius=None)


def test_a_load_is_held_against_the_idle_times_around_it() -> None:
    windows = [
        window(None, 2.0),
        window("a", 7.0, 100),
        window(None, 4.0),
        window("a", 9.0, 200),
        window(None, 6.0),
    ]
    found = mode_energy(windows, "a", "rapl")
    assert found is not None
    assert (found.gross_joules.least, found.gross_joules.most) == pytest.approx((0.45, 0.7))
    assert (found.net_joules.least, found.net_joules.most) == pytest.approx((0.2, 0.4))
    assert found.net_joules.deviation == pytest.approx(0.1414, rel=1e-3)
    assert found.idle_watts.mean == 4.0


def test_windows_of_which_a_sensor_told_too_little_are_left_out() -> None:
    idle, load = window(None, 2.0), window("a", 7.0, 100)
    windows = [idle, load, idle, load, window(None, None), load, idle, load, idle]
    found = mode_energy(windows, "a", "rapl")
    assert found is not None
    assert found.repeats == 2
    assert mode_energy(windows[:5], "a", "rapl") is None
    assert mode_energy(windows, "b", "rapl") is None


async def test_without_a_sensor_nothing_is_measured_at_all(
    tiny_bundle: Bundle, edge_config: Configs, tmp_path: Path
) -> None:
    energy = EnergyConfig(sensors=False, external_meter=str(tmp_path / "none"))
    config, modes = edge_config(energy=energy), choose_modes(tiny_bundle, ["lock_step"])
    with pytest.raises(ConfigError, match=r"expected a power sensor .*none: No such file"):
        await measure(config, tiny_bundle, Inputs([], None), Plan(energy=PLAN), modes)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--energy-repeats", "4"], "energy.repeats"),
        (["--energy-load-seconds", "0"], "energy.load_seconds"),
    ],
)
def test_wrong_lengths_are_refused(
    tiny_bundle: Bundle,
    image_files: list[Path],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    images = ["--images", str(image_files[0].parent), "--energy", *flags]
    assert main(["measure", "--bundle", str(tiny_bundle.path), *images]) == 2
    assert said in capsys.readouterr().err


def test_governor_and_temperature_are_those_the_system_shows(tmp_path: Path) -> None:
    assert (governors(tmp_path), hottest_celsius(tmp_path)) == ((), None)
    shown = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance",
        "sys/class/thermal/thermal_zone0/temp": "41500",
        "sys/class/thermal/thermal_zone1/temp": "-273000",
        "sys/class/thermal/thermal_zone2/temp": "",
    }
    for name, content in shown.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"{content}\n")
    assert governors(tmp_path) == ("performance", "schedutil")
    assert hottest_celsius(tmp_path) == 41.5


def test_a_report_with_energy_is_read_again(tmp_path: Path) -> None:
    assert msgspec.convert(msgspec.to_builtins(Plan(energy=PLAN)), Plan).energy == PLAN
