"""Idle power and measured energy per sample, told by stretches of the daemon's time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from time import monotonic

import pytest
from prometheus_client import CollectorRegistry

from edge_agent.energy_watch import FEWEST_SAMPLES, EdgeWork, EnergyWatch
from shared.energy import stretches
from shared.energy.meter import Component, Meter, Reading, Source
from shared.energy.stretches import Drawn, Stretch
from shared.metrics import EdgeMetrics, Placement
from tests.edge_agent.conftest import Edges, Metered, picture, until

IDLE_WATTS, LOAD_WATTS = 4.0, 6.0
SECONDS = 10.0


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def watch(registry: CollectorRegistry) -> EnergyWatch:
    return EnergyWatch(EdgeMetrics(registry, model="tiny"))


def told(registry: CollectorRegistry, name: str) -> dict[str, float]:
    """Return the values of a metric by kind, or by source where it has none."""
    return {
        each.labels.get("kind", each.labels["source"]): each.value
        for family in registry.collect()
        for each in family.samples
        if each.name == f"neucodex_{name}"
    }


def stretch(
    watts: float, samples: int = 0, *, under_way: int = 0, **others: int
) -> Stretch[EdgeWork]:
    answered = {Placement.CO_INFERENCE: 5 + samples}
    answered |= {Placement(name): count for name, count in others.items()}
    before = EdgeWork(5, 0, {Placement.CO_INFERENCE: 5})
    done = samples + sum(others.values())
    after = EdgeWork(5 + done + under_way, under_way, answered)
    drawn = {Source.RAPL: Drawn(Component.TOTAL, watts)}
    return Stretch(SECONDS, drawn, before, after)


def test_samples_are_told_gross_and_net_of_the_idle_power(
    watch: EnergyWatch, registry: CollectorRegistry
) -> None:
    watch.told(stretch(IDLE_WATTS))
    watch.told(stretch(LOAD_WATTS, 20))
    assert told(registry, "idle_power_watts") == {"rapl": IDLE_WATTS}
    name = "edge_measured_inference_energy_joules"
    assert told(registry, f"{name}_count") == {"gross": 20, "net_of_idle": 20}
    sums = told(registry, f"{name}_sum")
    assert sums["gross"] == pytest.approx(LOAD_WATTS * SECONDS)
    assert sums["net_of_idle"] == pytest.approx((LOAD_WATTS - IDLE_WATTS) * SECONDS)


def test_net_energy_is_never_below_nothing(watch: EnergyWatch, registry: CollectorRegistry) -> None:
    watch.told(stretch(LOAD_WATTS))
    watch.told(stretch(IDLE_WATTS, 20))
    sums = told(registry, "edge_measured_inference_energy_joules_sum")
    assert sums["net_of_idle"] == 0


def test_without_idle_time_there_is_no_net_energy(
    watch: EnergyWatch, registry: CollectorRegistry
) -> None:
    watch.told(stretch(LOAD_WATTS, 20))
    assert told(registry, "idle_power_watts") == {}
    assert told(registry, "edge_measured_inference_energy_joules_count") == {"gross": 20}


@pytest.mark.parametrize(
    "poor",
    [
        stretch(LOAD_WATTS, FEWEST_SAMPLES - 1),
        stretch(LOAD_WATTS, 20, fallback=20),
        stretch(LOAD_WATTS, under_way=1),
    ],
    ids=["few samples", "two placements", "a sample under way and none answered"],
)
def test_a_stretch_that_shows_nothing_tells_nothing(
    watch: EnergyWatch, registry: CollectorRegistry, poor: Stretch[EdgeWork]
) -> None:
    watch.told(poor)
    assert told(registry, "idle_power_watts") == {}
    assert told(registry, "edge_measured_inference_energy_joules_count") == {}


class Steady:
    """A sensor on this machine's clock."""

    source = Source.RAPL
    interval_seconds = 0.002
    max_gap_seconds = 1.0

    def read(self) -> list[Reading]:
        return [Reading(Component.TOTAL, monotonic(), IDLE_WATTS)]

    def close(self) -> None: ...


@contextlib.contextmanager
def started(meter: Meter) -> Iterator[Meter]:
    meter.start()
    try:
        yield meter
    finally:
        meter.close()


async def test_a_running_loop_is_watched(edges: Edges, registry: CollectorRegistry) -> None:
    async with edges(placement="edge_only") as edge:
        watch = EnergyWatch(EdgeMetrics(registry, model="tiny"))
        with started(Meter([Steady()])) as meter:
            watching = asyncio.create_task(
                stretches.watch(meter, lambda: edge.loop.work, watch.told, seconds=0.1)
            )
            await until(lambda: told(registry, "idle_power_watts"))
            assert told(registry, "idle_power_watts")["rapl"] == pytest.approx(IDLE_WATTS)
            count = "edge_measured_inference_energy_joules_count"
            while "net_of_idle" not in told(registry, count):
                await edge.loop.submit(picture(0))
            watching.cancel()
        kinds = told(registry, "edge_measured_inference_energy_joules_sum")
        assert kinds["gross"] > 0
        assert kinds["net_of_idle"] == pytest.approx(0, abs=1e-6)


async def test_modelled_energy_of_samples_adds_up_to_that_of_the_parts(edges: Edges) -> None:
    async with edges(placement="edge_only") as edge:
        await submit_three(edge)
        name = "edge_modelled_inference_energy_joules"
        assert edge.count(f"{name}_count", placement="edge_only", source="ops_45nm") == 3
        total = edge.count("modelled_energy_joules_total")
        assert edge.count(f"{name}_sum") == pytest.approx(total)
        assert total > edge.count("modelled_energy_joules_total", component="head") > 0


async def submit_three(edge: Metered) -> None:
    for seed in range(3):
        await edge.loop.submit(picture(seed))
