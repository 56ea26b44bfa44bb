"""How far the cloud's wall clock is off, and how far that may be wrong."""

from __future__ import annotations

import time

import pytest
from prometheus_client import CollectorRegistry

from cloud_server import servicer
from edge_agent.peer_clock import REMEMBERED, PeerClock
from shared.metrics import EdgeMetrics
from tests.edge_agent.conftest import Clouds, Edges, picture

AHEAD_SECONDS = 40.0


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def clock(registry: CollectorRegistry) -> PeerClock:
    return PeerClock(EdgeMetrics(registry, model="tiny"), "cloud")


def read(registry: CollectorRegistry) -> tuple[float, float]:
    """Return offset and error."""
    names = ("offset_seconds", "offset_error_seconds")
    values = [
        registry.get_sample_value(f"neucodex_edge_peer_clock_{name}", {"peer": "cloud"})
        for name in names
    ]
    assert values[0] is not None and values[1] is not None
    return values[0], values[1]


@pytest.mark.parametrize("up_seconds", [0.0, 0.012, 0.002, 0.014])
def test_the_offset_is_within_its_error_however_the_way_divides(
    clock: PeerClock, registry: CollectorRegistry, up_seconds: float
) -> None:
    service_seconds, both_ways = 0.003, 0.014
    down_seconds = both_ways - up_seconds
    cloud_seconds = time.time() - down_seconds + AHEAD_SECONDS
    clock.told(cloud_seconds, both_ways + service_seconds, service_seconds)
    offset, error = read(registry)
    assert error == pytest.approx(both_ways / 2)
    assert abs(offset - AHEAD_SECONDS) <= error + 0.005  # The test's own time.


def test_the_shortest_of_the_latest_round_trips_counts(
    clock: PeerClock, registry: CollectorRegistry
) -> None:
    clock.told(time.time(), 0.02, 0.0)
    clock.told(time.time(), 0.50, 0.0)
    assert read(registry)[1] == pytest.approx(0.01)
    for _ in range(REMEMBERED):
        clock.told(time.time(), 0.50, 0.0)
    assert read(registry)[1] == pytest.approx(0.25)


async def test_the_cloud_tells_its_clock_once_in_ten_seconds(
    clouds: Clouds, edges: Edges, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead:
        """The time, of which the servicer reads these two."""

        perf_counter = staticmethod(time.perf_counter)
        asked = 0

        @classmethod
        def time(cls) -> float:
            cls.asked += 1
            return time.time() + AHEAD_SECONDS

    monkeypatch.setattr(servicer, "time", Ahead)
    async with clouds() as cloud, edges(cloud=cloud.address) as edge:
        for seed in range(3):
            await edge.loop.submit(picture(seed))
        error = edge.count("edge_peer_clock_offset_error_seconds", peer=cloud.address)
        offset = edge.count("edge_peer_clock_offset_seconds", peer=cloud.address)
    assert Ahead.asked == 1
    assert error > 0
    # Rounded to microseconds on the way, and two clocks are read one after the other.
    assert abs(offset - AHEAD_SECONDS) <= error + 1e-3
