"""The breaker: waits double, a dead cloud is left alone and probed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.breaker import JITTER, Breaker, Pace
from shared.metrics import BreakerState

PACE = Pace(min_seconds=1.0, max_seconds=4.0, failures=5, probe_seconds=60.0)


def breaker(chance: float = 0.0) -> Breaker:
    """A breaker whose waits are as long as can be, unless said otherwise."""
    return Breaker(PACE, lambda: chance)


def fail(machine: Breaker) -> float:
    machine.attempt()
    machine.failed()
    return machine.wait_seconds()


def test_waits_double_up_to_the_limit_and_then_the_cloud_is_only_probed() -> None:
    machine = breaker()
    assert [fail(machine) for _ in range(7)] == [1.0, 2.0, 4.0, 4.0, 60.0, 60.0, 60.0]
    assert machine.state is BreakerState.OPEN


def test_a_probe_that_opens_a_stream_closes_the_breaker() -> None:
    machine = breaker()
    for _ in range(5):
        fail(machine)
    machine.attempt()
    states = [machine.state]
    machine.opened()
    assert [*states, machine.state] == [BreakerState.PROBING, BreakerState.CLOSED]
    # A cloud that opens streams and says nothing on them is not asked more often for it.
    assert machine.wait_seconds() == 4.0
    machine.answered()
    assert machine.wait_seconds() == 1.0
    assert [fail(machine) for _ in range(5)] == [2.0, 4.0, 4.0, 4.0, 60.0]


def test_a_full_cloud_lives_and_is_not_asked_before_it_said() -> None:
    machine = breaker(chance=0.999)
    for _ in range(20):
        machine.attempt()
        machine.full(10.0)
        assert machine.wait_seconds() >= 10.0
        assert machine.state is BreakerState.CLOSED
    # What it asked for holds once.
    assert machine.wait_seconds() <= 4.0


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.999])
def test_waits_are_shortened_by_chance_and_not_by_more_than_the_jitter(chance: float) -> None:
    assert fail(breaker(chance)) == pytest.approx(1 - JITTER * chance)


@given(st.lists(st.sampled_from(["failed", "opened", "answered", "full"]), max_size=60))
def test_whatever_happens_the_breaker_is_open_only_after_so_many_failures(
    events: list[str],
) -> None:
    machine, failures, probing = breaker(), 0, False
    for event in events:
        machine.attempt()
        if event == "failed":
            machine.failed()
            failures += 1
        elif event == "full":
            machine.full(3.0)
            failures = 0
        elif event == "opened":
            machine.opened()
            failures = 0
        else:
            machine.opened()
            machine.answered()
            failures = 0
        wait = machine.wait_seconds()
        probing = failures >= PACE.failures
        assert (machine.state is BreakerState.OPEN) == probing
        assert wait == 60.0 if probing else 1.0 <= wait <= 7.0
