"""The public API, blocking and on asyncio, against a daemon of its own process."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent import Answer, AsyncEdge, Edge, Events, InputError, LinkLostError
from examples.pair import run_edge
from shared.model.bundle import Bundle
from shared.model.preprocessing import decode_image
from tests.edge_agent.conftest import PATIENCE_SECONDS, picture, png

SENSOR = (32, 32)
WINDOW_MICROSECONDS = 50_000
FULL = ("--alpha", "1,1,1")


@pytest.fixture(scope="module")
def pictures(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a daemon for pictures, all timesteps."""
    flags = ("--placement", "edge_only", *FULL)
    with run_edge(tmp_path_factory.mktemp("pictures"), tiny_bundle.path, *flags) as ready:
        yield ready.address


@pytest.fixture(scope="module")
def camera(event_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a daemon for events that answers after one timestep."""
    flags = ("--placement", "edge_only", "--alpha", "0")
    with run_edge(tmp_path_factory.mktemp("events"), event_bundle.path, *flags) as ready:
        yield ready.address


def recording(timesteps: int = 4, seed: int = 0) -> Events:
    """Return 100 events per timestep."""
    rng = np.random.default_rng(seed)
    count = 100 * timesteps
    times = np.sort(rng.integers(0, timesteps * WINDOW_MICROSECONDS, count))
    x, y, polarity = (
        rng.integers(0, 32, count),
        rng.integers(0, 32, count),
        rng.integers(0, 2, count),
    )
    return Events(times, x, y, polarity, SENSOR)


def pieces(events: Events, size: int = 50) -> list[Events]:
    return [events.part(start, start + size) for start in range(0, len(events), size)]


def essence(answer: object) -> tuple[int, int, float]:
    assert isinstance(answer, Answer)
    return answer.label, answer.timesteps_used, answer.confidence


async def test_both_clients_get_the_same_answers(pictures: str) -> None:
    inputs = [png(seed) for seed in range(3)]
    with Edge(pictures) as edge:
        expected = [essence(edge.classify(each)) for each in inputs]
        assert [essence(each) for each in edge.classify_stream(inputs)] == expected
        labels = edge.network().labels
    async with AsyncEdge(pictures) as client:
        assert [essence(await client.classify(each)) for each in inputs] == expected
        assert [essence(each) async for each in client.classify_stream(inputs)] == expected
        assert (await client.network()).labels == labels
        assert (await client.status())["placement"] == "edge_only"


async def test_a_stream_on_asyncio_is_answered_while_it_comes(pictures: str) -> None:
    answered: list[Answer] = []

    async def inputs() -> AsyncIterator[bytes]:
        for seed in range(3):
            yield png(seed)

    async with AsyncEdge(pictures) as client:
        async for outcome in client.classify_stream(inputs()):
            assert isinstance(outcome, Answer)
            answered.append(outcome)
    assert len(answered) == 3


async def test_what_a_caller_s_iterable_raises_is_what_the_caller_gets(pictures: str) -> None:
    def inputs() -> Iterator[bytes]:
        yield png(0)
        raise KeyError("camera unplugged")

    with Edge(pictures) as edge, pytest.raises(KeyError, match="unplugged"):
        list(edge.classify_stream(inputs()))
    async with AsyncEdge(pictures) as client:
        with pytest.raises(KeyError, match="unplugged"):
            [each async for each in client.classify_stream(inputs())]


async def test_errors_say_what_was_expected(pictures: str, tmp_path: Path) -> None:
    async with AsyncEdge(pictures) as client:
        with pytest.raises(InputError, match="expected an image file"):
            await client.classify(b"no image")
        with pytest.raises(InputError, match="reads pictures"):
            await client.classify_events(recording())
        with pytest.raises(InputError, match="at least one timestep"):
            await client.classify_recording([])
    async with AsyncEdge(f"unix:{tmp_path / 'none'}") as client:
        with pytest.raises(LinkLostError, match="none"):
            await client.classify(png(0))
    with pytest.raises(ValueError, match="unix:PATH or host:port"):
        Edge("nowhere")


def test_a_picture_of_another_size_is_what_the_bundle_makes_of_it(pictures: str) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    large = np.kron(picture(1).transpose(1, 2, 0), np.ones((3, 5, 1), np.uint8))
    Image.fromarray(large).save(buffer, "PNG")
    with Edge(pictures) as edge:
        whole = edge.classify(buffer.getvalue())
        same = edge.classify(decode_image(buffer.getvalue(), (3, 32, 32)))
    assert essence(whole) == essence(same)


async def test_events_are_framed_as_the_bundle_says(camera: str) -> None:
    events = recording()
    with Edge(camera) as edge:
        network = edge.network()
        assert (network.events, network.timesteps, network.input_shape) == (True, 4, (2, 16, 16))
        frames = network.frames(events)
        whole = essence(edge.classify_events(events))
        assert whole == essence(edge.classify(frames))
        assert essence(edge.classify_events(pieces(events))) == whole
    assert frames.sum() == len(events)
    async with AsyncEdge(camera) as client:
        assert essence(await client.classify_events(events)) == whole
        assert essence(await client.classify_events(pieces(events))) == whole


def test_an_answer_arrives_while_the_camera_still_records(camera: str) -> None:
    answered = threading.Event()

    def recorded() -> Iterator[Events]:
        first, *rest = pieces(recording(), 150)
        yield first
        assert answered.wait(PATIENCE_SECONDS)
        yield from rest

    with Edge(camera) as edge:
        answer = edge.classify_events(recorded())
        assert not answered.is_set()
        answered.set()
    assert answer.timesteps_used == 1
