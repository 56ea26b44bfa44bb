from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.observer import Model, Observer, Recent

MODEL = Model(exits=(0.5, 0.3, 0.2), check_bytes=2, head_joules=1e-6, tail_joules=2e-6)
GAPS = st.lists(st.floats(0, 0.02), min_size=1, max_size=8)


def recent(*values: float, every_seconds: float) -> float:
    found = Recent()
    for index, value in enumerate(values):
        found.add(value, index * every_seconds)
    assert found.value is not None
    return found.value


def test_nothing_is_known_before_the_first_measurement() -> None:
    assert Recent().value is None
    assert Observer(MODEL).conditions() is None
    assert Observer(MODEL).estimates() == {}


@pytest.mark.parametrize("factor", [100.0, 0.01])
@pytest.mark.parametrize("every_seconds", [0.005, 0.1, 0.5])
def test_a_change_is_known_within_two_seconds_however_often_one_looks(
    every_seconds: float, factor: float
) -> None:
    before = [1.0] * int(10 / every_seconds)
    after = [factor] * int(1.5 / every_seconds)
    assert recent(*before, *after, every_seconds=every_seconds) == factor


@pytest.mark.parametrize("every_seconds", [0.005, 10])
def test_one_late_packet_counts_for_nothing(every_seconds: float) -> None:
    assert recent(*[1.0] * 20, 11.0, every_seconds=every_seconds) == 1.0


@given(
    gaps=GAPS,
    service_seconds=st.floats(1e-5, 0.05),
    transport_seconds=st.floats(0, 0.2),
    steps=st.integers(1, 3),
)
def test_service_is_told_from_waiting_for_the_timesteps_before(
    gaps: list[float], service_seconds: float, transport_seconds: float, steps: int
) -> None:
    sent: list[tuple[int, float]] = []
    now = done = 0.0
    for packet, gap in enumerate(gaps):
        now += gap
        sent.append((packet * steps, now))
        for timestep in range(packet * steps, (packet + 1) * steps):
            # The cloud takes one timestep after the other; its clock is the edge's, shifted.
            done = max(done, now) + service_seconds
            observer = Observer(MODEL)
            observer.verdict(sent, timestep, done - now, done + transport_seconds)
            found = observer.estimates()
            assert found["service"] == pytest.approx(service_seconds)
            assert found["transport"] == pytest.approx(transport_seconds, abs=1e-9)


def test_packets_sent_after_the_one_judged_do_not_matter() -> None:
    observer = Observer(MODEL)
    observer.verdict([(0, 1.0), (1, 1.002), (2, 1.004)], 0, 0.003, 1.05)
    assert observer.estimates() == pytest.approx({"service": 0.003, "transport": 0.047})


def test_conditions_are_what_was_measured() -> None:
    observer = Observer(MODEL)
    observer.head(0.002, 0.0)
    observer.packets(2, 40, 0.0004, 0.0)
    assert observer.conditions() is None
    observer.verdict([(0, 1.0)], 0, 0.003, 1.05)
    observer.link_bytes_per_second = 1e6
    found = observer.conditions()
    assert found is not None
    assert found.head_seconds == pytest.approx(0.0022)
    assert (found.payload_bytes, found.check_bytes) == (20, 2)
    assert (found.head_joules, found.tail_joules) == (1e-6, 2e-6)
    assert (found.link_bytes_per_second, found.tail_seconds) == (1e6, None)
    assert found.exits == pytest.approx(MODEL.exits)


def test_samples_seen_outweigh_the_calibration_in_time() -> None:
    observer = Observer(MODEL)
    observer.head(0.002, 0.0)
    observer.packets(1, 20, 0.0, 0.0)
    observer.verdict([(0, 1.0)], 0, 0.003, 1.05)
    for _ in range(30):
        observer.answered(3, 0.0)
    found = observer.conditions()
    assert found is not None
    assert 0.5 < found.exits[2] < 0.7
    assert sum(found.exits) == pytest.approx(1)
    for _ in range(1000):
        observer.answered(3, 0.0)
    found = observer.conditions()
    assert found is not None
    assert found.exits[2] > 0.98


@pytest.mark.parametrize(("gap_seconds", "expected"), [(0.0005, 1.0), (0.1, 0.0)])
def test_samples_that_come_one_by_one_do_not_wait_for_each_other(
    gap_seconds: float, expected: float
) -> None:
    observer, now = Observer(MODEL), 0.0
    observer.head(0.002, now)
    observer.packets(1, 20, 0.0, now)
    observer.verdict([(0, 1.0)], 0, 0.003, 1.05)
    for _ in range(100):
        observer.began(now)
        now += 0.05
        observer.answered(1, now)
        now += gap_seconds
    found = observer.conditions()
    assert found is not None
    assert found.follows == pytest.approx(expected, abs=0.01)
