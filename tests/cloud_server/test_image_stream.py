"""Whole inputs through a real server: the cloud-only baseline."""

from __future__ import annotations

import io
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from PIL import Image

from cloud_server.server import CloudServer
from protos import co_inference_pb2 as pb
from shared import wire
from shared.codec.packet import Checksum
from shared.engine.base import Array, Engine
from shared.errors import SampleCode
from shared.messages import ReplyMode, Settings
from shared.model.bundle import Bundle
from shared.model.preprocessing import decode_image, prepare
from tests.cloud_server.conftest import (
    ALWAYS,
    NEVER,
    Client,
    Edge,
    Start,
    expected_decisions,
)

Connect = Callable[[CloudServer], Client]


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> bytes:
    """Return a PNG file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def frames_of(bundle: Bundle, value: bytes | Array) -> list[Array]:
    """Return the network's input at every timestep."""
    spec = bundle.spec
    array = decode_image(value, spec.input_shape) if isinstance(value, bytes) else value
    frames = prepare(array, spec, bundle.manifest.preprocessing)
    return [frames] * spec.timesteps if frames.ndim == 3 else list(frames)


class ImageEdge(Edge):
    """The edge's end of an ``ImageStream``."""

    async def send_input(self, value: bytes | Array, cancels: tuple[int, ...] = ()) -> None:
        message = pb.ImageMessage(input=wire.input_to_proto(value), cancels=cancels)
        await self.write(message)


@asynccontextmanager
async def images(
    client: Client, *, alpha: tuple[float, ...] = NEVER, samples_in_flight: int = 3, **fields: Any
) -> AsyncIterator[ImageEdge]:
    """Open an ``ImageStream`` and wait for Opened."""
    settings = wire.settings_to_proto(Settings(alpha=alpha, **fields))
    edge = ImageEdge(client.stub.ImageStream(), client.bundle, Checksum.NONE)
    message = pb.ImageMessage()
    message.open.protocol_version = 1
    message.open.model_digest = bytes.fromhex(client.bundle.digest)
    message.open.settings.CopyFrom(settings)
    message.open.samples_in_flight = samples_in_flight
    try:
        await edge.write(message)
        assert (await edge.receive()).opened is not None
        yield edge
    finally:
        edge.call.cancel()


@pytest.mark.parametrize(
    "value",
    [
        picture(0),
        picture(1, (50, 70)),
        np.random.default_rng(2).integers(0, 256, (3, 32, 32), dtype=np.uint8),
        np.random.default_rng(3).normal(size=(3, 32, 32)).astype(np.float32),
        np.random.default_rng(4).normal(size=(4, 3, 32, 32)).astype(np.float32),
    ],
    ids=["picture", "picture to be resized", "pixels", "normalised", "a frame per timestep"],
)
async def test_every_kind_of_input_is_answered_at_every_timestep(
    client: Client, whole: Engine, value: bytes | Array
) -> None:
    async with images(client) as edge:
        await edge.send_input(value)
        verdicts = await edge.answers(4)
    expected = expected_decisions(whole, client.bundle, frames_of(client.bundle, value))
    assert [verdict.timestep for verdict in verdicts] == [0, 1, 2, 3]
    assert [verdict.label for verdict in verdicts] == [each.label for each in expected]
    for verdict, decision in zip(verdicts, expected, strict=True):
        assert verdict.confidence == pytest.approx(decision.confidence, abs=1e-5)
        assert verdict.service_seconds > 0


async def test_exit_mode_answers_once_and_early_exits_stop_the_sample(client: Client) -> None:
    async with images(client, alpha=ALWAYS, reply_mode=ReplyMode.EXIT) as edge:
        for number in range(3):
            await edge.send_input(picture(number))
            verdict = await edge.answer()
            assert (verdict.sample, verdict.timestep) == (number, 0)
    assert sum(len(message.verdicts) for message in edge.messages) == 3


async def test_samples_in_flight_are_all_answered(client: Client) -> None:
    async with images(client, reply_mode=ReplyMode.EXIT) as edge:
        for number in range(3):
            await edge.send_input(picture(number))
        verdicts = await edge.answers(3)
    assert {verdict.sample for verdict in verdicts} == {0, 1, 2}


async def test_more_samples_than_agreed_end_the_stream(client: Client) -> None:
    async with images(client, samples_in_flight=1) as edge:
        for number in range(2):
            await edge.send_input(picture(number))
        code, details = await edge.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "expected at most 1 samples in flight" in details


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (b"hello", "expected an image"),
        (picture(0)[:200], "expected a whole image file"),
        (np.zeros((3, 16, 16), np.uint8), "expected an array [3, 32, 32]"),
        (np.zeros((5, 3, 32, 32), np.uint8), "got [5, 3, 32, 32]"),
        (np.full((3, 32, 32), np.nan, np.float32), "expected finite numbers"),
    ],
    ids=["no image", "truncated", "wrong size", "too many timesteps", "not finite"],
)
async def test_an_input_that_cannot_be_used_ends_its_sample_alone(
    client: Client, value: bytes | Array, complaint: str
) -> None:
    async with images(client) as edge:
        await edge.send_input(value)
        failure = await edge.answer()
        assert (failure.sample, failure.code) == (0, SampleCode.BAD_PACKET)
        assert complaint in failure.message
        await edge.send_input(picture(0))
        assert [verdict.sample for verdict in await edge.answers(4)] == [1] * 4


async def test_an_array_that_lies_about_its_size_ends_its_sample_alone(client: Client) -> None:
    message = pb.ImageMessage()
    message.input.array.shape.extend([3, 32, 32])
    message.input.array.dtype = pb.Array.UINT8
    message.input.array.data = b"short"
    async with images(client) as edge:
        await edge.write(message)
        failure = await edge.answer()
        assert failure.code is SampleCode.BAD_PACKET
        assert "expected 3072 bytes" in failure.message


async def test_a_cancelled_sample_is_not_answered(client: Client) -> None:
    async with images(client, reply_mode=ReplyMode.EXIT) as edge:
        await edge.send_input(picture(0), cancels=(0,))
        await edge.send_input(picture(1))
        assert (await edge.answer()).sample == 1


async def test_a_second_open_ends_the_stream(client: Client) -> None:
    async with images(client) as edge:
        await edge.write(pb.ImageMessage(open=pb.OpenImages(protocol_version=1)))
        code, _ = await edge.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_edge_that_vanishes_leaves_the_server_well(client: Client) -> None:
    async with images(client) as edge:
        for number in range(3):
            await edge.send_input(picture(number))
    async with images(client, reply_mode=ReplyMode.EXIT) as edge:
        await edge.send_input(picture(0))
        assert (await edge.answer()).timestep == 3


async def test_a_bundle_without_the_whole_network_is_refused(
    start: Start, connect: Connect, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(tiny_bundle.path, part)
    (part / tiny_bundle.part("whole").graph).unlink()
    client = connect(await start(bundles=(str(part),)))
    assert not (await client.describe()).models[0].whole
    edge = Edge(client.stub.ImageStream(), tiny_bundle, Checksum.NONE)
    message = pb.ImageMessage()
    message.open.protocol_version = 1
    message.open.model_digest = bytes.fromhex(tiny_bundle.digest)
    message.open.samples_in_flight = 1
    await edge.write(message)
    code, details = await edge.status()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "expected a bundle with the part 'whole'" in details
