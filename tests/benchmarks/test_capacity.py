"""The model behind the table of docs/scale.md, against what is known of such queues."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks import capacity
from benchmarks.capacity import Cost, fitted, full_rate, servers_for, simulate
from benchmarks.report import Report
from shared.model.bundle import Bundle

COST = Cost(0.001, 0.0005)


def test_an_idle_server_takes_the_time_of_each_timestep() -> None:
    found = simulate(0.01, (0, 0, 1), COST, away_seconds=0.02, samples=200)
    each = COST.of(1) + 0.02
    assert found.p50_seconds == pytest.approx(3 * each)
    assert found.mean_batch == pytest.approx(1, abs=0.01)
    assert found.most_under_way <= 2


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
def test_without_batches_it_is_the_queue_of_the_textbook(
    busy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poisson arrivals, constant service (M/D/1): mean wait = busy * service / (2 (1 - busy))."""
    monkeypatch.setattr(capacity, "MAX_BATCH", 1)
    service = COST.of(1)
    found = simulate(busy / service, (1,), COST, away_seconds=0, samples=100_000)
    assert found.busy == pytest.approx(busy, rel=0.02)
    expected = service * (1 + busy / (2 * (1 - busy)))
    assert found.mean_seconds == pytest.approx(expected, rel=0.05)


def test_batches_carry_more_than_single_calls_could() -> None:
    rate = 1.5 / COST.of(1)
    found = simulate(rate, (1,), COST, away_seconds=0.01)
    assert found.mean_batch > 1.5
    assert found.busy < 1
    assert found.p99_seconds < 0.2


def test_timesteps_and_exits_count() -> None:
    few, many = (
        simulate(50, exits, COST, away_seconds=0.01) for exits in ((1, 0, 0, 0), (0, 0, 0, 1))
    )
    assert many.mean_seconds == pytest.approx(4 * few.mean_seconds, rel=0.2)
    assert many.busy > 3 * few.busy


def test_a_full_core_is_nearly_but_not_wholly_busy() -> None:
    exits = (0.5, 0.5)
    rate = full_rate(exits, COST, 0.04, samples=5_000)
    found = simulate(rate, exits, COST, 0.04, samples=5_000)
    assert 0.7 < found.busy <= capacity.MOST_BUSY


def test_a_fit_gives_back_what_it_was_made_from() -> None:
    points = [(batch, COST.of(batch) / batch) for batch in (1.0, 4.0, 20.0)]
    assert fitted(points) == pytest.approx(COST)
    assert fitted([(1.0, 0.001), (4.0, 0.002)]) == pytest.approx(Cost(0.0, 0.0015))


@pytest.mark.parametrize("edges", [1, 100, 10_000])
def test_the_fullest_of_the_servers_can_carry_its_edges(edges: int) -> None:
    servers = servers_for(edges, 250.0)
    assert servers >= edges / 250
    drawn = np.random.default_rng(1).multinomial(edges, [1 / servers] * servers, size=50)
    assert np.median(drawn.max(axis=1)) <= 250


@pytest.mark.slow
def test_the_report_becomes_a_table(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "capacity.json"
    flags = ["--quick", "--bundle", str(tiny_bundle.path), "--out", str(out)]
    assert capacity.main(flags) == 0
    report = msgspec.json.decode(out.read_bytes(), type=Report)
    found = {result.name: result.value for result in report.results}
    for percent in (25, 50, 75):
        assert found[f"at_{percent}_percent_unanswered"] == 0
    assert found["fleet_1000000_cores"] > found["fleet_1000_cores"] >= 1
    capsys.readouterr()
    assert capacity.main(["table", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"| 1,000,000 | {found['fleet_1000000_cores']:,.0f} |")
