from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from edge_agent.answers import Latency
from edge_agent.inputs import Frames, Reader, Recording, Source
from shared.errors import InputError
from shared.metrics import EdgeMetrics
from shared.model.bundle import Preprocessing
from shared.model.spec import BottleneckSpec, NetworkSpec
from shared.worker import Worker

STATIC = NetworkSpec(
    backbone="resnet18",
    input_shape=(3, 8, 8),
    classes=2,
    timesteps=3,
    bottleneck=BottleneckSpec(split="layer1", channels=1),
)
EVENTS = msgspec.structs.replace(STATIC, input_kind="events", input_shape=(2, 8, 8))


def frames_of(source: Source, spec: NetworkSpec) -> Frames:
    channels = spec.input_shape[0]
    preprocessing = Preprocessing(mean=(0.5,) * channels, std=(0.5,) * channels)
    metrics = EdgeMetrics(CollectorRegistry(), model="m")
    return Frames(source, Reader(spec, preprocessing, Worker("input"), metrics), Latency())


def ramp(spec: NetworkSpec, timesteps: int) -> np.ndarray:
    shape = (timesteps, *spec.input_shape)
    return np.broadcast_to(
        np.arange(timesteps, dtype=np.float32)[:, None, None, None], shape
    ).copy()


async def test_a_picture_is_the_same_at_every_timestep() -> None:
    frames = frames_of(np.full((3, 8, 8), 255, np.uint8), STATIC)
    for timestep in range(3):
        np.testing.assert_array_equal(await frames.at(timestep), np.ones((3, 8, 8), np.float32))


@pytest.mark.parametrize("spec", [STATIC, EVENTS])
async def test_a_run_of_frames_gives_each_timestep_its_own(spec: NetworkSpec) -> None:
    frames = frames_of(ramp(spec, 3), spec)
    assert [float((await frames.at(timestep)).max()) for timestep in range(3)] == [0, 1, 2]


async def test_a_frame_is_waited_for_and_used_before_the_next_one_is_there() -> None:
    recording = Recording(EVENTS)
    frames = frames_of(recording, EVENTS)
    waiting = asyncio.create_task(frames.at(0))
    await asyncio.sleep(0)
    assert not waiting.done()
    recording.push(ramp(EVENTS, 2)[1])
    assert float((await waiting).max()) == 1
    assert not frames.complete


@pytest.mark.parametrize(("spec", "rest"), [(STATIC, 1.0), (EVENTS, 0.0)])
async def test_a_short_recording_stays_for_pictures_and_falls_silent_for_events(
    spec: NetworkSpec, rest: float
) -> None:
    recording = Recording(spec)
    for frame in ramp(spec, 2):
        recording.push(frame)
    recording.end()
    frames = frames_of(recording, spec)
    assert frames.complete
    assert [float((await frames.at(timestep)).max()) for timestep in range(3)] == [0, 1, rest]


async def test_t_frames_complete_a_recording_and_more_are_ignored() -> None:
    recording = Recording(STATIC)
    for frame in ramp(STATIC, 5):
        recording.push(frame)
    assert recording.complete
    assert float((await recording.frame(2)).max()) == 2


async def test_a_recording_without_frames_is_refused() -> None:
    recording = Recording(STATIC)
    recording.end()
    with pytest.raises(InputError, match="at least one timestep"):
        await frames_of(recording, STATIC).at(0)


async def test_frames_before_an_unusable_one_are_still_used() -> None:
    recording = Recording(STATIC)
    recording.push(ramp(STATIC, 1)[0])
    recording.fail(InputError("broken"))
    frames = frames_of(recording, STATIC)
    await frames.at(0)
    with pytest.raises(InputError, match="broken"):
        await frames.at(1)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((3, 3, 8, 8), np.float32),
        np.zeros((3, 8, 9), np.float32),
        np.full((3, 8, 8), np.nan, np.float32),
        np.zeros((3, 8, 8), np.float64),
    ],
)
async def test_an_unusable_timestep_is_refused(frame: np.ndarray) -> None:
    recording = Recording(STATIC)
    recording.push(frame)
    with pytest.raises(InputError, match="expected"):
        await frames_of(recording, STATIC).at(0)


async def test_bytes_are_read_as_an_image_file() -> None:
    with pytest.raises(InputError, match="expected an image file"):
        await frames_of(b"no image", STATIC).at(0)
