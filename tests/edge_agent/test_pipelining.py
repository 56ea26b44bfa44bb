"""Timesteps under way while others are computed: shown by the order of events, not by clocks."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from cloud_server.server import CloudServer
from edge_agent import assembly
from edge_agent.config import EdgeConfig
from shared.energy.config import EnergyConfig
from shared.engine.base import Array, Engine, State
from shared.model.bundle import Bundle, PartName
from tests.cloud_server.conftest import scrape
from tests.edge_agent.conftest import PATIENCE_SECONDS, Clouds, Edges, Metered, Relay, png, until

TIMESTEPS = 4
AT_ONCE = (0.0, 0.0, 0.0)
"""Alpha that every confidence exceeds: samples exit at their first timestep."""


async def in_cloud(cloud: CloudServer, name: str) -> float:
    """Return a figure of the cloud's metrics."""
    return (await asyncio.to_thread(scrape, cloud)).get(f"neucodex_cloud_{name}", 0.0)


async def until_in_cloud(cloud: CloudServer, name: str, value: float) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await in_cloud(cloud, name) != value:
            await asyncio.sleep(0.005)


def verdicts(edge: Metered) -> float:
    """Return how many verdicts the edge has had."""
    return edge.count("edge_roundtrip_seconds_count")


@pytest.mark.parametrize(
    ("how", "ahead"),
    [
        ({"window": 2}, 2),
        ({"window": 3}, 3),
        ({"window": 4, "steps_per_packet": 2}, 4),
        ({"reply_mode": "exit"}, 4),
        ({"reply_mode": "exit", "steps_per_packet": 4}, 4),
        ({"window": 1, "samples_in_flight": 2}, 2),
        ({"window": 2, "samples_in_flight": 3}, 6),
    ],
    ids=str,
)
async def test_timesteps_are_computed_on_both_sides_while_the_first_verdict_is_under_way(
    clouds: Clouds, edges: Edges, relay: Relay, how: dict[str, Any], ahead: int
) -> None:
    async with clouds(metrics="127.0.0.1:0") as cloud:
        relay.target = cloud.address
        async with edges(cloud=relay.address, **how) as edge:
            await until(lambda: edge.loop.connected)
            relay.hold()
            futures = [edge.loop.submit(png(seed)) for seed in range(3)]
            await until_in_cloud(cloud, "timesteps_total", ahead)
            assert verdicts(edge) == 0
            assert edge.count("edge_stage_duration_seconds_count", stage="head") == ahead
            relay.let_go()
            used = [(await future).timesteps_used for future in futures]
    assert used == [TIMESTEPS] * 3


@pytest.mark.parametrize(
    ("how", "vain_packets"),
    [
        ({"window": 4}, 3),
        ({"window": 4, "steps_per_packet": 2}, 1),
        ({"reply_mode": "exit"}, 3),
        ({"reply_mode": "exit", "steps_per_packet": 4}, 0),
    ],
    ids=str,
)
async def test_both_sides_count_the_same_timesteps_and_bytes_in_vain(
    clouds: Clouds, edges: Edges, relay: Relay, how: dict[str, Any], vain_packets: int
) -> None:
    async with clouds(metrics="127.0.0.1:0") as cloud:
        relay.target = cloud.address
        # Raw: every packet's payload is its timesteps' code, 32 bytes each.
        async with edges(cloud=relay.address, alpha=AT_ONCE, codec="raw", **how) as edge:
            await until(lambda: edge.loop.connected)
            relay.hold()
            future = edge.loop.submit(png(0))
            await until_in_cloud(cloud, "wasted_timesteps_total", TIMESTEPS - 1)
            relay.let_go()
            assert (await future).timesteps_used == 1
            assert edge.count("edge_timesteps_total", outcome="wasted") == TIMESTEPS - 1
            vain_bytes = vain_packets * 32 * how.get("steps_per_packet", 1)
            assert edge.count("edge_wasted_bytes_total") == vain_bytes
            assert await in_cloud(cloud, "wasted_bytes_total") == vain_bytes
            assert await in_cloud(cloud, "timesteps_total") == 1


class Gate:
    """An engine whose steps wait to be let through."""

    def __init__(self, engine: Engine) -> None:
        self.input_shape = engine.input_shape
        self.output_shape = engine.output_shape
        self.state_shapes = engine.state_shapes
        self.begun: list[Array] = []
        """The inputs of the steps begun so far."""
        self._engine = engine
        self._passes = threading.Semaphore(0)

    def let(self, steps: int) -> None:
        self._passes.release(steps)

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        self.begun.append(x)
        assert self._passes.acquire(timeout=PATIENCE_SECONDS)
        return self._engine.step(x, state)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle) -> Gate:
    """The head of loops made from now on."""
    load = assembly.load_engine

    def load_gated(config: EdgeConfig, bundle: Bundle, part: PartName) -> Engine:
        return gate if part == "head" else load(config, bundle, part)

    gate = Gate(load(EdgeConfig(bundle=str(tiny_bundle.path)), tiny_bundle, "head"))
    monkeypatch.setattr(assembly, "load_engine", load_gated)
    return gate


async def test_a_sample_ends_during_a_head_step_and_gets_no_other(
    clouds: Clouds, edges: Edges, head: Gate
) -> None:
    async with (
        clouds() as cloud,
        # Operations are counted by another engine than the gated one.
        edges(
            cloud=cloud.address, alpha=AT_ONCE, window=4, energy=EnergyConfig(count_every=0)
        ) as edge,
    ):
        first = edge.loop.submit(png(0))
        await until(lambda: len(head.begun) == 1)
        head.let(1)
        # The verdict on timestep 0 is handled while timestep 1 is being computed.
        assert (await first).timesteps_used == 1
        assert len(head.begun) == 2
        second = edge.loop.submit(png(1))
        head.let(2)
        assert (await second).timesteps_used == 1
        assert len(head.begun) == 4
        head.let(1)
        assert edge.count("edge_timesteps_total", outcome="wasted") == 0
    same = [np.array_equal(x, head.begun[0]) for x in head.begun]
    assert same == [True, True, False, False]
