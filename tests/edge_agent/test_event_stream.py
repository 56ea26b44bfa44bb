"""A live event camera: answers leave while it still records."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from edge_agent import Events, EventSender
from edge_agent.assembly import build_loop
from edge_agent.config import EdgeConfig
from edge_agent.source_config import EventStreamSource
from edge_agent.sources import Sources
from edge_agent.sources.event_stream import EventStream
from examples.pair import pair
from shared.errors import ConfigError
from shared.metrics import EdgeMetrics
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import PATIENCE_SECONDS, Metered, until
from tests.edge_agent.test_sources import around

SENSOR = (32, 32)
WINDOW = 50_000
"""Microseconds of a timestep."""


def window(timestep: int, count: int = 100, seed: int = 0) -> Events:
    """Return the events of one timestep of a recording."""
    rng = np.random.default_rng((seed, timestep))
    times = np.sort(rng.integers(timestep * WINDOW, (timestep + 1) * WINDOW, count))
    x, y = rng.integers(0, 32, count), rng.integers(0, 32, count)
    return Events(times, x, y, rng.integers(0, 2, count), SENSOR)


class Live:
    """A loop with an event stream as its source."""

    def __init__(self, metered: Metered, results: Path, sender: EventSender) -> None:
        self.metered, self._results, self.sender = metered, results, sender

    @property
    def told(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._results.read_text().splitlines()]


def answered(live: Live, count: int) -> bool:
    return len(live.told) == count


@pytest.fixture
def lives(
    event_bundle: Bundle, edge_config: Callable[..., EdgeConfig], tmp_path: Path
) -> Callable[..., contextlib.AbstractAsyncContextManager[Live]]:
    @contextlib.asynccontextmanager
    async def make(alpha: float = 0.0, **keys: Any) -> AsyncIterator[Live]:
        registry = CollectorRegistry()
        metrics = EdgeMetrics(registry, model="events")
        results, listen = tmp_path / "results", f"unix:{tmp_path / 'events.sock'}"
        config = EventStreamSource(listen=listen, sensor=SENSOR, results=str(results), **keys)
        options = edge_config(bundle=str(event_bundle.path), placement="edge_only", alpha=alpha)
        loop = build_loop(options, event_bundle, metrics)
        sources = Sources((config,), lambda: event_bundle.manifest, metrics)
        loop.start()
        sources.start(loop)
        try:
            with EventSender(listen) as sender:
                yield Live(Metered(loop, registry), results, sender)
        finally:
            await loop.close()
            await sources.close()

    return make


async def test_each_exit_is_followed_by_the_next_sample_of_a_continuous_stream(
    lives: Any,
) -> None:
    async with lives(silence_seconds=PATIENCE_SECONDS) as live:
        live.sender.tell_time(0)
        for timestep in (0, 2, 4):
            live.sender.send(window(timestep))
            live.sender.tell_time((timestep + 1) * WINDOW)
            await until(partial(answered, live, timestep // 2 + 1))
        assert [line["timesteps_used"] for line in live.told] == [1, 1, 1]
        assert [line["input"] for line in live.told] == [f"event_stream[{n}]" for n in range(3)]


async def test_silence_ends_a_recording_with_what_there_is(lives: Any) -> None:
    async with lives(alpha=1.0, continuous=False, silence_seconds=0.1) as live:
        live.sender.send(window(0))
        await until(lambda: len(live.told) == 1)
        assert live.told[0]["timesteps_used"] == 4
        live.sender.send(window(5))
        await until(lambda: len(live.told) == 2)


async def test_the_samples_of_a_stream_are_those_of_its_recording(
    lives: Any, event_bundle: Bundle
) -> None:
    from shared.events.framing import frame_events, saturated

    whole = [window(timestep, seed=1) for timestep in range(4)]
    times, x, y, polarity = (
        np.concatenate([getattr(part, name) for part in whole])
        for name in ("microseconds", "x", "y", "polarity")
    )
    joined = Events(times, x, y, polarity, SENSOR)
    framing = event_bundle.manifest.preprocessing.framing
    assert framing is not None
    async with lives(alpha=1.0, continuous=False) as live:
        # The clock of a recording begins with its first packet.
        live.sender.tell_time(0)
        for part in whole:
            live.sender.send(part)
        live.sender.end(4 * WINDOW)
        await until(lambda: len(live.told) == 1)
        frames = saturated(frame_events(joined.resized((16, 16)), framing))
        expected = await live.metered.loop.submit(frames)
        assert live.told[0]["label"] == expected.label
        assert live.told[0]["confidence"] == pytest.approx(expected.confidence)


async def test_bad_packets_are_counted_and_harm_nobody(lives: Any, tmp_path: Path) -> None:
    import socket

    async with lives() as live:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.connect(str(tmp_path / "events.sock"))
            other.send(b"noise")
        live.sender._sequence = 7
        live.sender.tell_time(0)
        live.sender.send(window(0))
        live.sender._sequence += 3
        live.sender.tell_time(WINDOW)
        await until(lambda: len(live.told) == 1)
        faults = "edge_source_packet_faults_total"
        assert live.metered.count(faults, reason="invalid", source="event_stream") == 1
        assert live.metered.count(faults, reason="lost") == 3


def test_a_stream_for_a_network_of_pictures_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    config = EventStreamSource(listen=f"unix:{tmp_path / 's'}", sensor=SENSOR)
    metrics = EdgeMetrics(CollectorRegistry(), model="tiny")
    with pytest.raises(ConfigError, match="reads pictures"):
        EventStream(config, around(tiny_bundle), metrics)
    assert not (tmp_path / "s").exists()


async def test_a_pair_answers_before_the_recording_is_over(
    event_bundle: Bundle, tmp_path: Path
) -> None:
    results, config = tmp_path / "results.jsonl", tmp_path / "edge.toml"
    listen = f"unix:{tmp_path / 'events.sock'}"
    config.write_text(
        f'alpha = 0.0\n[[sources]]\nkind = "event_stream"\nlisten = "{listen}"\n'
        f'sensor = [32, 32]\nresults = "{results}"\ncontinuous = false\n'
        f"silence_seconds = {PATIENCE_SECONDS}\n"
    )

    def run() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        def lines() -> list[dict[str, Any]]:
            text = results.read_text() if results.exists() else ""
            return [json.loads(line) for line in text.splitlines()]

        with (
            pair(event_bundle.path, edge_flags=("--config", str(config))),
            EventSender(listen) as sender,
        ):
            sender.tell_time(0)
            sender.send(window(0))
            sender.tell_time(WINDOW)
            asyncio.run(until(lines))
            before = lines()
            # The camera still records: three of four timesteps are yet to come.
            for timestep in (1, 2, 3):
                sender.send(window(timestep))
            sender.end(4 * WINDOW)
            sender.tell_time(0)
            sender.send(window(0))
            sender.tell_time(WINDOW)
            asyncio.run(until(lambda: len(lines()) == 2))
            return before, lines()

    before, after = await asyncio.to_thread(run)
    assert [line["placement"] for line in after] == ["co_inference"] * 2
    assert before[0]["timesteps_used"] == 1
