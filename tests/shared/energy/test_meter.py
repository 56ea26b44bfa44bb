from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from shared.energy.meter import JITTER, Component, Meter, Reading, Sampler, Source, Total
from shared.errors import SensorError, SensorReason
from shared.metrics import EdgeMetrics

GAP_SECONDS = 1.0
TOTAL = Component.TOTAL


class Scripted:
    """A sensor that gives what a test wrote down, one entry per reading."""

    source = Source.EXTERNAL_METER
    interval_seconds = 0.01
    max_gap_seconds = GAP_SECONDS

    def __init__(self, *script: Sequence[Reading] | SensorError) -> None:
        self._script = iter(script)
        self.closed = False

    def read(self) -> Sequence[Reading]:
        step = next(self._script, ())
        if isinstance(step, SensorError):
            raise step
        return step

    def close(self) -> None:
        self.closed = True


def power(*points: tuple[float, float]) -> list[list[Reading]]:
    return [[Reading(TOTAL, at, watts)] for at, watts in points]


def counter(*points: tuple[float, float]) -> list[list[Reading]]:
    return [[Reading(TOTAL, at, joules=joules)] for at, joules in points]


def run(*script: Sequence[Reading] | SensorError) -> Sampler:
    sampler = Sampler(Scripted(*script), clock=lambda: 0.0)
    for _ in script:
        sampler.poll()
    return sampler


def test_power_is_integrated_by_trapezoids() -> None:
    total = run(*power((10, 2), (10.5, 4), (11, 4))).totals()[TOTAL]
    assert total.joules == pytest.approx(0.5 * 3 + 0.5 * 4)
    assert total.sampled_seconds == pytest.approx(1)
    assert total.unsampled_seconds == 0
    assert total.watts == 4


def test_a_counter_gives_energy_and_mean_power() -> None:
    total = run(*counter((0, 500), (0.5, 501), (1, 501.5))).totals()[TOTAL]
    assert total.joules == pytest.approx(1.5)
    assert total.watts == pytest.approx(1.0)


def test_the_counter_is_taken_where_there_is_power_too() -> None:
    readings = [[Reading(TOTAL, 0, 5.0, 100.0)], [Reading(TOTAL, 1, 7.0, 103.0)]]
    total = run(*readings).totals()[TOTAL]
    assert (total.joules, total.watts) == (3.0, 7.0)


@pytest.mark.parametrize(
    "script", [power((0, 2), (5, 2), (6, 2)), counter((0, 1), (5, 9), (6, 11))]
)
def test_no_energy_is_made_up_for_a_gap(script: list[list[Reading]]) -> None:
    total = run(*script).totals()[TOTAL]
    assert total.joules == pytest.approx(2.0)
    assert (total.sampled_seconds, total.unsampled_seconds) == (1, 5)


def test_a_counter_that_begins_anew_is_a_gap() -> None:
    total = run(*counter((0, 100), (0.5, 3), (1, 5))).totals()[TOTAL]
    assert total.joules == pytest.approx(2)
    assert total.unsampled_seconds == pytest.approx(0.5)


def test_a_clock_that_goes_back_counts_for_nothing() -> None:
    total = run(*power((5, 2), (4, 2), (4.5, 2))).totals()[TOTAL]
    assert (total.joules, total.unsampled_seconds) == (1.0, 0.0)


def test_one_reading_tells_power_and_no_energy() -> None:
    total = run(*power((0, 3.5))).totals()[TOTAL]
    assert (total.watts, total.joules, total.mean_watts) == (3.5, 0.0, None)


@given(
    # A step of a whole second may, added up, be a hair longer: a gap.
    st.lists(st.tuples(st.floats(1e-3, 0.999), st.floats(0, 1e3)), min_size=2, max_size=30),
    st.floats(0.1, 50),
)
def test_energy_lies_between_least_and_most_power(
    steps: list[tuple[float, float]], constant: float
) -> None:
    at, points = 0.0, []
    for seconds, watts in steps:
        at += seconds
        points.append((at, watts))
    total = run(*power(*points)).totals()[TOTAL]
    duration = points[-1][0] - points[0][0]
    used = [watts for _, watts in points]
    assert total.sampled_seconds == pytest.approx(duration)
    slack = 1e-9 * (1 + duration)
    assert min(used) * duration - slack <= total.joules <= max(used) * duration + slack * 1e3
    flat = run(*power(*[(at, constant) for at, _ in points])).totals()[TOTAL]
    assert flat.joules == pytest.approx(constant * duration)


def test_failed_readings_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    denied = SensorError(SensorReason.PERMISSION, "energy_uj: permission denied")
    sampler = run(denied, denied, SensorError(SensorReason.TIMEOUT, "slow"))
    assert sampler.errors() == {SensorReason.PERMISSION: 2, SensorReason.TIMEOUT: 1}
    assert sampler.totals() == {}
    assert len(caplog.messages) == 2


def test_power_of_a_sensor_that_fell_silent_is_not_told() -> None:
    now = 0.0
    sampler = Sampler(Scripted(*power((0, 3), (1, 3))), clock=lambda: now)
    sampler.poll()
    sampler.poll()
    assert sampler.totals()[TOTAL].watts == 3
    now = GAP_SECONDS + 0.1
    assert sampler.totals()[TOTAL].watts is None
    assert sampler.totals()[TOTAL].joules == 3


def test_times_between_readings_are_spread_around_the_interval() -> None:
    numbers: Iterator[float] = iter([0.0, 0.5, 0.999999])
    sampler = Sampler(Scripted(), jitter=lambda: next(numbers))
    waits = [sampler.wait_seconds() for _ in range(3)]
    expected = [0.01 * (1 - JITTER), 0.01, 0.01 * (1 + JITTER)]
    assert waits == pytest.approx(expected, rel=1e-4)


def test_a_window_is_the_difference_of_two_totals() -> None:
    window = Total(10.0, 4.0, 1.0, 3.0).since(Total(4.0, 2.0, 1.0, 9.0))
    assert window == Total(6.0, 2.0, 0.0, 3.0)
    assert window.mean_watts == 3.0


def test_a_meter_samples_on_its_own_thread_and_shows_it() -> None:
    class Steady(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.reads = 0
            self.enough = threading.Event()

        def read(self) -> Sequence[Reading]:
            self.reads += 1
            if self.reads > 5:
                self.enough.set()
            return [Reading(TOTAL, monotonic(), 2.0)]

    sensor, registry = Steady(), CollectorRegistry()
    meter = Meter([sensor])
    EdgeMetrics(registry, model="tiny").watch_energy(meter)
    labels = {"component": "total", "source": "external_meter"}
    name = "neucodex_measured_energy_joules_total"
    assert registry.get_sample_value(name, labels) is None
    meter.start()
    assert sensor.enough.wait(10)
    meter.close()
    meter.close()
    assert sensor.closed
    joules = registry.get_sample_value(name, labels)
    seconds = meter.samplers[0].totals()[TOTAL].sampled_seconds
    assert joules is not None
    assert joules == pytest.approx(2 * seconds) and seconds > 0
    assert registry.get_sample_value("neucodex_measured_power_watts", labels) == 2.0
    gaps = registry.get_sample_value(
        "neucodex_energy_unsampled_seconds_total", {"source": "external_meter"}
    )
    assert gaps == 0


def test_without_a_sensor_there_is_no_series() -> None:
    registry = CollectorRegistry()
    EdgeMetrics(registry, model="tiny").watch_energy(Meter([]))
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert not [name for name in names if "measured" in name or "unsampled" in name]
