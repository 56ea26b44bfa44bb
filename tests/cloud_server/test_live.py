"""The cloud's live page: what its events say is what the metrics say."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable

import msgspec
import pytest

from cloud_server.live import Figures
from cloud_server.server import CloudServer
from examples.scrape import Scrape, scrape
from shared.model.bundle import Bundle
from tests.cloud_server.conftest import Client, Start, random_codes


def one_event(address: str) -> Figures:
    """Return the next event."""
    with urllib.request.urlopen(f"http://{address}/events", timeout=60) as reply:
        assert reply.readline() == b"event: cloud\n"
        return msgspec.json.decode(reply.readline().removeprefix(b"data: "), type=Figures)


def assert_equal_to_metrics(figures: Figures, metrics: Scrape) -> None:
    """Compare every figure that the metrics have, too."""
    assert figures.streams == metrics.total("cloud_streams", rpc="infer")
    assert figures.image_streams == metrics.total("cloud_streams", rpc="image_stream")
    assert figures.rotations == metrics.total("cloud_stream_rotations_total")
    assert sum(figures.rejected.values()) == metrics.total("cloud_rejected_total")
    assert figures.wire_bytes == metrics.total("cloud_wire_bytes_total")
    assert figures.modelled_joules == metrics.total("modelled_energy_joules_total")
    (model,) = figures.models
    assert model.digest == metrics.info("model")["digest"]
    assert model.slots_in_use == metrics.total("cloud_slots_in_use")
    assert model.slots_limit == metrics.total("cloud_slots_limit")
    assert model.state_bytes == metrics.total("cloud_session_state_bytes")
    assert model.queue == metrics.total("cloud_queue_depth")
    ends = metrics.labels("cloud_samples_total", "reason")
    assert model.samples == {reason: count for reason, count in ends.items() if count}
    assert model.computed == metrics.total("cloud_timesteps_total")
    calls = metrics.histogram("cloud_batch_size")
    assert {bar.up_to: bar.calls for bar in model.batches} | {float("inf"): 0} == calls
    assert model.batch_size == pytest.approx(model.computed / sum(calls.values()))
    seconds = metrics.total("cloud_service_duration_seconds_sum")
    count = metrics.total("cloud_service_duration_seconds_count")
    assert model.service_seconds == pytest.approx(seconds / count)
    assert model.payload_bytes == metrics.total("cloud_payload_bytes_total")
    assert model.message_bytes == metrics.total("cloud_message_bytes_total")


async def test_events_say_what_the_metrics_say(
    start: Start, connect: Callable[[CloudServer], Client], tiny_bundle: Bundle
) -> None:
    server = await start(metrics="127.0.0.1:0")
    client = connect(server)
    address = server.metrics_address
    codes = random_codes(tiny_bundle, 0)
    async with client.opened() as edge:
        await edge.run(0, codes)
        await edge.send(edge.packets(1, codes)[0])  # Which leaves a sample under way.
        await edge.answer()
        figures = await asyncio.to_thread(one_event, address)
        metrics = await asyncio.to_thread(scrape, address)
    assert_equal_to_metrics(figures, metrics)
    assert (figures.streams, figures.address) == (1, server.address)
    (model,) = figures.models
    assert (model.samples, model.computed, model.slots_in_use) == ({"max_timesteps": 1}, 5, 1)


async def test_without_a_page_there_are_metrics_alone(start: Start) -> None:
    server = await start(metrics="127.0.0.1:0", live_page=False)
    with pytest.raises(OSError, match="HTTP Error 404"):
        await asyncio.to_thread(one_event, server.metrics_address)
    assert (await asyncio.to_thread(scrape, server.metrics_address)).has("cloud_streams")
