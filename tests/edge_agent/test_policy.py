"""The closed form against a simulation of the real protocol machines; then the choice itself."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulation import Simulation
from edge_agent.policy import (
    LOCAL,
    LOCK_STEP,
    WIRE_MESSAGE_BYTES,
    Choice,
    Conditions,
    Expected,
    Fixed,
    Goal,
    Limits,
    Objective,
    Timeline,
    choices,
    choose,
    expect,
    link_seconds,
)
from shared.messages import ReplyMode

SECONDS = st.floats(0.0001, 0.1)
HAIR = 1e-9
"""Relative: events that lie no further apart may happen in either order."""
ROW = 40
EXIT = Choice(reply_mode=ReplyMode.EXIT)
HERE = Conditions(
    exits=(0.6, 0.2, 0.1, 0.1),
    head_seconds=0.002,
    service_seconds=0.001,
    transport_seconds=0.04,
    payload_bytes=20.0,
    head_joules=1e-6,
    tail_joules=2e-6,
)
ANY = Limits(max_window=16, max_steps_per_packet=16)


@st.composite
def ways(draw: st.DrawFn, *, known_rate: bool | None = None) -> tuple[Choice, Conditions]:
    """Return a way of whole packets, and conditions."""
    steps, packets = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    depth = draw(st.integers(1, 5))
    timesteps = steps * packets
    weights = draw(st.lists(st.floats(0.01, 1), min_size=timesteps, max_size=timesteps))
    with_rate = draw(st.booleans()) if known_rate is None else known_rate
    conditions = Conditions(
        exits=tuple(weight / sum(weights) for weight in weights),
        head_seconds=draw(SECONDS),
        service_seconds=draw(SECONDS),
        transport_seconds=draw(SECONDS),
        payload_bytes=draw(st.floats(1, 200)),
        link_bytes_per_second=draw(st.floats(2e3, 1e7)) if with_rate else None,
        head_joules=1.0,
    )
    # What was measured holds the time of one packet on the link.
    transport_seconds = conditions.transport_seconds + link_seconds(conditions, 1)
    mode = draw(st.sampled_from(ReplyMode))
    choice = Choice(reply_mode=mode, window=steps * depth, steps_per_packet=steps)
    return choice, replace(conditions, transport_seconds=transport_seconds)


@given(ways())
def test_a_lone_sample_takes_what_the_closed_form_says(way: tuple[Choice, Conditions]) -> None:
    choice, conditions = way
    timeline = Timeline(choice, conditions)
    for timestep in range(len(conditions.exits)):
        answered = timeline.answer(timestep)
        (trace,) = Simulation(choice, conditions).run([timestep])
        assert trace.latency_seconds == pytest.approx(answered)
        before, after = (timeline.progress(answered * (1 + hair)) for hair in (-HAIR, HAIR))
        assert before.computed <= trace.computed <= after.computed
        assert before.packets <= trace.sent / choice.steps_per_packet <= after.packets
        assert trace.wasted == trace.wasted_in_cloud == trace.sent - timestep - 1
        stepwise = choice.reply_mode is ReplyMode.STEP
        assert trace.verdicts == (timestep // choice.steps_per_packet + 1 if stepwise else 1)


def hold_bounds(timeline: Timeline, timestep: int) -> tuple[float, float]:
    """Return how long the next sample waits at least and at most, events a hair apart swapped."""
    answered = timeline.answer(timestep)
    progress = [timeline.progress(answered * (1 + hair)) for hair in (-HAIR, HAIR)]
    least, most = sorted(timeline.hold(answered, each) for each in progress)
    return least - 1e-6, most + 1e-6


@given(ways(known_rate=False), st.randoms(use_true_random=False))
def test_in_a_row_a_sample_waits_for_the_head_as_long_as_the_closed_form_says(
    way: tuple[Choice, Conditions], random: Random
) -> None:
    choice, conditions = way
    timeline = Timeline(choice, conditions)
    row = [random.randrange(len(conditions.exits)) for _ in range(ROW)]
    least = most = 0.0
    for timestep, trace in zip(row, Simulation(choice, conditions).run(row), strict=True):
        held = trace.latency_seconds - timeline.answer(timestep)
        assert least - 1e-6 <= held <= most + 1e-6
        least, most = hold_bounds(timeline, timestep)


@given(ways(known_rate=True), st.randoms(use_true_random=False))
def test_in_a_row_a_slow_link_costs_on_average_what_the_closed_form_says(
    way: tuple[Choice, Conditions], random: Random
) -> None:
    choice, conditions = way
    timeline = Timeline(choice, conditions)
    row = [random.randrange(len(conditions.exits)) for _ in range(ROW)]
    traces = Simulation(choice, conditions).run(row)
    total_seconds = sum(trace.latency_seconds for trace in traces[1:])
    answers_seconds = sum(timeline.answer(timestep) for timestep in row[1:])
    bounds = [hold_bounds(timeline, timestep) for timestep in row[:-1]]
    least, most = (answers_seconds + sum(holds) for holds in zip(*bounds, strict=True))
    # What a sample finds waiting on the link depends a little on the one before the last, too.
    assert 0.95 * least <= total_seconds <= 1.05 * most


def test_means_are_weighted_by_the_exits() -> None:
    first, last = (
        expect(EXIT, replace(HERE, exits=exits)) for exits in ((1.0, 0, 0, 0), (0, 0, 0, 1.0))
    )
    half = expect(EXIT, replace(HERE, exits=(0.5, 0, 0, 0.5)))
    for name in ("latency_seconds", "wire_bytes", "energy_joules", "timesteps_sent"):
        pair = (getattr(first, name), getattr(last, name))
        assert getattr(half, name) == pytest.approx(sum(pair) / 2)
    assert half.late_seconds == pytest.approx(last.late_seconds)


def test_a_sample_that_comes_by_itself_waits_for_no_other() -> None:
    near = replace(HERE, transport_seconds=0.0005)
    alone, row = (expect(EXIT, replace(near, follows=share)) for share in (0.0, 1.0))
    timeline = Timeline(EXIT, near)
    answers = [share * timeline.answer(t) for t, share in enumerate(near.exits)]
    assert alone.latency_seconds == pytest.approx(sum(answers))
    assert row.latency_seconds > alone.latency_seconds


def test_the_rate_of_a_link_counts_where_it_is_known() -> None:
    slow = replace(HERE, link_bytes_per_second=2000.0)
    one = link_seconds(slow, 1)
    assert one == pytest.approx((20 + 1 + 2 + 2 + WIRE_MESSAGE_BYTES) / 2000)
    assert link_seconds(HERE, 1) == 0
    # Both hold what one packet takes; packets right behind one another queue up on the slow one.
    assert Timeline(EXIT, slow).answer(0) == pytest.approx(0.002 + one + 0.001)
    assert Timeline(EXIT, slow).answer(3) == pytest.approx(0.002 + 4 * one + 0.001)
    assert Timeline(EXIT, HERE).answer(3) == pytest.approx(4 * 0.002 + 0.001 + 0.04)


def test_without_a_window_a_sample_takes_one_round_trip_and_the_slower_sides_time() -> None:
    for n in range(1, 5):
        h, s = HERE.head_seconds, HERE.service_seconds
        bound = HERE.transport_seconds + max(n * h + s, h + n * s)
        assert Timeline(EXIT, HERE).answer(n - 1) == pytest.approx(bound)
        lock_step = n * (h + s + HERE.transport_seconds)
        assert Timeline(LOCK_STEP, HERE).answer(n - 1) == pytest.approx(lock_step)


def test_on_this_device_nothing_is_sent_and_the_tail_counts() -> None:
    expected = expect(LOCAL, replace(HERE, tail_seconds=0.003))
    used = 0.6 * 1 + 0.2 * 2 + 0.1 * 3 + 0.1 * 4
    assert expected.latency_seconds == pytest.approx(used * 0.005)
    assert expected.late_seconds == pytest.approx(4 * 0.005)
    assert expected.energy_joules == pytest.approx(used * 3e-6)
    assert (expected.wire_bytes, expected.timesteps_sent) == (0, 0)
    with pytest.raises(ValueError, match="not known"):
        expect(LOCAL, HERE)


def test_every_open_way_is_tried() -> None:
    found = choices(4, replace(ANY, local=True), Fixed())
    steps = {(c.window, c.steps_per_packet) for c in found if c.reply_mode is ReplyMode.STEP}
    exits = {c.steps_per_packet for c in found if c.reply_mode is ReplyMode.EXIT}
    assert found[0] == LOCK_STEP
    assert steps == {(1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (4, 2), (4, 4)}
    assert exits == {1, 2, 4}
    assert LOCAL in found


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        (Fixed(window=2), {("step", 2, 1), ("step", 2, 2)}),
        (Fixed(window=3, reply_mode=ReplyMode.STEP), {("step", 3, 1)}),
        (Fixed(reply_mode=ReplyMode.EXIT), {("exit", 1, 1), ("exit", 1, 2), ("exit", 1, 4)}),
        (Fixed(window=3, reply_mode=ReplyMode.EXIT, steps_per_packet=2), {("exit", 3, 2)}),
        (
            Fixed(steps_per_packet=4),
            {("step", 4, 4), ("exit", 1, 4)},
        ),
        (Fixed(window=2, steps_per_packet=1), {("step", 2, 1)}),
    ],
)
def test_what_the_user_has_set_stays(fixed: Fixed, expected: set[tuple[str, int, int]]) -> None:
    found = choices(4, ANY, fixed)
    assert {(c.reply_mode.value, c.window, c.steps_per_packet) for c in found} == expected


def test_limits_of_the_cloud_are_kept() -> None:
    found = choices(8, Limits(max_window=3, max_steps_per_packet=2), Fixed())
    assert max(c.window for c in found) == 3
    assert max(c.steps_per_packet for c in found) == 2


def best(goal: Goal, conditions: Conditions, present: Choice | None = None) -> Expected:
    found = choices(len(conditions.exits), ANY, Fixed())
    return choose([expect(choice, conditions) for choice in found], goal, present)


def test_each_objective_gets_its_least() -> None:
    options = [expect(choice, HERE) for choice in choices(4, ANY, Fixed())]
    for objective, cost in (
        (Objective.LATENCY, "latency_seconds"),
        (Objective.BYTES, "wire_bytes"),
        (Objective.ENERGY, "energy_joules"),
    ):
        chosen = choose(options, Goal(objective=objective))
        least = min(getattr(each, cost) for each in options)
        assert least <= getattr(chosen, cost) <= 1.03 * least


def test_a_long_round_trip_is_hidden_and_a_short_one_wastes_nothing() -> None:
    far = replace(HERE, transport_seconds=0.2)
    assert best(Goal(), far).latency_seconds <= 1.03 * expect(EXIT, far).latency_seconds
    assert best(Goal(), far).latency_seconds < 0.65 * expect(LOCK_STEP, far).latency_seconds
    # With the verdict there long before the next head step is done, nothing is gained by haste.
    near = best(Goal(), replace(HERE, transport_seconds=1e-5, service_seconds=1e-5))
    assert near.timesteps_computed == pytest.approx(1.7)
    assert best(Goal(objective=Objective.ENERGY), HERE).choice == LOCK_STEP
    assert best(Goal(objective=Objective.BYTES), HERE).choice.steps_per_packet > 1


def test_a_deadline_comes_first_then_the_objective() -> None:
    far = replace(HERE, transport_seconds=0.1)
    assert best(Goal(objective=Objective.ENERGY), far).choice == LOCK_STEP
    lock_step_seconds = expect(LOCK_STEP, far).late_seconds
    timely = best(Goal(objective=Objective.ENERGY, deadline_seconds=0.25), far)
    assert timely.late_seconds <= 0.25 < lock_step_seconds
    hopeless = best(Goal(objective=Objective.ENERGY, deadline_seconds=0.01), far)
    assert hopeless.latency_seconds == pytest.approx(best(Goal(), far).latency_seconds, rel=0.03)


def test_the_way_in_use_stays_while_it_is_good_enough() -> None:
    def option(steps: int, latency_seconds: float, wire_bytes: float = 100.0) -> Expected:
        return replace(
            expect(Choice(reply_mode=ReplyMode.EXIT, steps_per_packet=steps), HERE),
            latency_seconds=latency_seconds,
            wire_bytes=wire_bytes,
            energy_joules=1.0,
        )

    present = option(1, 0.1025)
    other = option(2, 0.100)
    assert choose([present, other], Goal()) == other
    assert choose([present, other], Goal(), present.choice) == present
    assert choose([option(1, 0.104), other], Goal(), present.choice) == other
    # As fast, but it sends much less.
    assert choose([present, option(2, 0.103, 80.0)], Goal(), present.choice).wire_bytes == 80.0
    assert choose([present, option(2, 0.103, 95.0)], Goal(), present.choice) == present
