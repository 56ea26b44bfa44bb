"""The figures of ``benchmarks.pipelining``, from made-up answers."""

from __future__ import annotations

import pytest

from benchmarks.pipelining import Round, figures_at, typical_seconds
from edge_agent.answers import Answer, Latency
from edge_agent.policy import Choice
from shared.model.bundle import Bundle

RTT, HEAD, SERVICE = 0.04, 0.002, 0.001


def answer(used: int, seconds: float) -> Answer:
    latency = Latency(
        total_seconds=seconds,
        head_seconds=used * HEAD,
        service_seconds=used * SERVICE,
        transport_seconds=used * RTT,
    )
    return Answer(
        label=0,
        name="none",
        confidence=1.0,
        timesteps_used=used,
        placement="co_inference",
        latency=latency,
        payload_bytes=0,
    )


def test_typical_latency_weighs_timesteps_and_forgets_outliers() -> None:
    answers = [*(answer(1, seconds) for seconds in (1.0, 1.0, 9.0)), answer(2, 5.0)]
    assert typical_seconds(answers) == pytest.approx((3 * 1.0 + 5.0) / 4)


def test_figures_are_ratios_to_bound_and_lock_step(tiny_bundle: Bundle) -> None:
    used = [1, 1, 4]
    bounds = [RTT + HEAD * n + SERVICE for n in used]
    lock_step = [n * (RTT + HEAD + SERVICE) for n in used]
    ways = {
        "lock_step": lock_step,
        "pipelined": [1.1 * bound for bound in bounds],
        "one_packet": bounds,
        "policy": bounds,
    }
    answers = {
        name: [answer(n, each) for n, each in zip(used, seconds, strict=True)]
        for name, seconds in ways.items()
    }
    made = Round(RTT, answers)
    assert made.median_bound() == pytest.approx(RTT + HEAD + SERVICE)
    assert made.expected_over_measured("lock_step", Choice(), tiny_bundle) == pytest.approx(1)
    found = {each.name: each.value for each in figures_at("40ms", [made], tiny_bundle)}
    assert found["pipelined_p50_over_bound_40ms"] == pytest.approx(1.1)
    assert found["pipelined_p50_over_lock_step_40ms"] == pytest.approx(1.1)
    assert found["policy_p50_over_pipelined_40ms"] == pytest.approx(1 / 1.1)
    slow = lock_step[2] / (1.1 * bounds[2])
    assert found["lock_step_over_pipelined_from_3_timesteps_40ms"] == pytest.approx(slow)
