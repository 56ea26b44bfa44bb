"""The policy at work: a real pair, a relay that becomes slow and fast again between the two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from edge_agent import assembly
from edge_agent.config import EdgeConfig
from edge_agent.policy import Choice, Conditions, expect
from shared.engine.base import Array, Engine, State
from shared.errors import BundleError
from shared.messages import ReplyMode
from shared.model.bundle import Bundle, PartName
from tests.edge_agent.conftest import PATIENCE_SECONDS, Clouds, Edges, Metered, Relay, png, until

CHOSEN: dict[str, Any] = {"window": None, "alpha": None}
"""Nothing is fixed; half of the samples exit early."""
SLOW_SECONDS = 0.05
"""One way."""


def mode(edge: Metered) -> str:
    """Return how samples are run now."""
    names = ("step", "exit", "local")
    (found,) = (name for name in names if edge.count("edge_setting_mode", mode=name))
    return found


def is_lock_step(edge: Metered) -> bool:
    return mode(edge) == "step" and window(edge) == 1


def window(edge: Metered) -> float:
    return edge.count("edge_setting_window_timesteps")


async def classify_until(edge: Metered, condition: Callable[[], bool]) -> list[str]:
    """Classify until the condition holds; return where."""
    placements: list[str] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            placements.append((await edge.loop.submit(png(len(placements)))).placement)
    return placements


async def test_settings_follow_the_link_within_one_stream(
    clouds: Clouds, edges: Edges, relay: Relay
) -> None:
    # In lock-step the head computes nothing in vain; with a slow link that takes too long.
    async with clouds() as cloud:
        relay.target = cloud.address
        wishes = {"objective": "energy", "deadline_target_seconds": 5 * SLOW_SECONDS}
        async with edges(cloud=relay.address, **CHOSEN, **wishes) as edge:
            await classify_until(edge, lambda: edge.loop.answered >= 5)
            assert is_lock_step(edge)
            relay.delay_seconds = SLOW_SECONDS
            await classify_until(edge, lambda: not is_lock_step(edge))
            assert edge.count("edge_estimate_seconds", quantity="transport") > SLOW_SECONDS
            assert edge.count("edge_setting_changes_total") >= 1
            relay.delay_seconds = 0.0
            await classify_until(edge, lambda: is_lock_step(edge))
            assert edge.count("edge_retries_total") == 0
            assert edge.count("edge_replays_total") == 0
            assert edge.count("edge_expected_latency_seconds") > 0


async def test_the_answers_are_those_of_lock_step_whatever_is_chosen(
    clouds: Clouds, edges: Edges, relay: Relay
) -> None:
    async with clouds() as cloud:
        relay.target = cloud.address
        relay.delay_seconds = 0.01
        found = []
        for window in (1, None):
            async with edges(cloud=relay.address, alpha=None, window=window) as edge:
                answers = [await edge.loop.submit(png(seed)) for seed in range(20)]
                changes = edge.count("edge_setting_changes_total")
                assert changes == 0 if window else changes > 0
            found.append([(each.label, each.timesteps_used) for each in answers])
    assert found[0] == found[1]


async def test_the_clouds_limits_are_kept_and_a_new_stream_begins_plainly(
    clouds: Clouds, edges: Edges, relay: Relay
) -> None:
    async with (
        clouds() as wide,
        clouds(max_window=2, max_steps_per_packet=1) as narrow,
    ):
        relay.target = wide.address
        relay.delay_seconds = 0.03
        fixed = {"reply_mode": "step"}
        async with edges(cloud=relay.address, **CHOSEN, **fixed) as edge:
            await classify_until(edge, lambda: window(edge) > 2)
            relay.target = narrow.address
            relay.cut()
            await classify_until(edge, lambda: window(edge) == 2)
            assert edge.count("edge_setting_packet_timesteps") == 1
            assert edge.count("edge_retries_total", reason="connect") == 0


@pytest.mark.parametrize(
    "choice",
    [
        Choice(),
        Choice(window=4),
        Choice(reply_mode=ReplyMode.EXIT),
        Choice(reply_mode=ReplyMode.EXIT, steps_per_packet=4),
    ],
    ids=str,
)
async def test_the_bytes_expected_are_those_the_kernel_counts(
    clouds: Clouds, edges: Edges, choice: Choice
) -> None:
    samples = 40
    how = {
        "reply_mode": choice.reply_mode.value,
        "window": choice.window,
        "steps_per_packet": choice.steps_per_packet,
        "codec": "raw",
    }
    async with clouds() as cloud, edges(cloud=cloud.address, **how) as edge:
        await edge.loop.submit(png(0))
        before = edge.count("edge_wire_bytes_total")
        for seed in range(samples):
            await edge.loop.submit(png(seed))
        counted = (edge.count("edge_wire_bytes_total") - before) / samples
    # All T timesteps are used; times do not matter then.
    conditions = Conditions(
        exits=(0.0, 0.0, 0.0, 1.0),
        head_seconds=0.001,
        service_seconds=0.001,
        transport_seconds=0.001,
        payload_bytes=32,
    )
    assert expect(choice, conditions).wire_bytes == pytest.approx(counted, rel=0.15)


class Slow:
    """An engine that takes its time."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self.input_shape = engine.input_shape
        self.output_shape = engine.output_shape
        self.state_shapes = engine.state_shapes
        self._engine = engine
        self._seconds = seconds

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        time.sleep(self._seconds)
        return self._engine.step(x, state)


async def test_samples_run_here_while_the_link_is_slower_than_this_device(
    clouds: Clouds, edges: Edges, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = assembly.load_engine

    def load_slow(config: EdgeConfig, bundle: Bundle, part: PartName) -> Engine:
        engine = load(config, bundle, part)
        return Slow(engine, SLOW_SECONDS) if part == "tail" else engine

    monkeypatch.setattr(assembly, "load_engine", load_slow)
    async with clouds() as cloud:
        relay.target = cloud.address
        relay.delay_seconds = 4 * SLOW_SECONDS
        here = {"fallback": "local", "choose_local": True}
        async with edges(cloud=relay.address, **CHOSEN, **here) as edge:
            placements = await classify_until(edge, lambda: mode(edge) == "local")
            assert set(placements) == {"co_inference"}
            assert (await edge.loop.submit(png(0))).placement == "fallback"
            assert edge.count("edge_fallbacks_total", reason="policy") == 1
            relay.delay_seconds = 0.0
            # Nothing is sent but the probes: they show that the link is fast again.
            await until(lambda: mode(edge) != "local")
            assert (await edge.loop.submit(png(0))).placement == "co_inference"


async def test_running_here_takes_a_tail(
    clouds: Clouds, edges: Edges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "has", lambda self, part: part != "tail")
    with pytest.raises(BundleError, match="expected a tail"):
        async with edges(cloud="127.0.0.1:1", fallback="local", choose_local=True):
            pass
