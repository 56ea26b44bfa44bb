"""The service for applications, over its real socket, asked by the public client and by hand."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from PIL import Image

from edge_agent import Answer, Edge, QueueFullError
from edge_agent.config import EdgeConfig
from edge_agent.daemon import Daemon, running
from protos import co_inference_pb2 as copb
from protos import edge_service_pb2 as pb
from shared import wire
from shared.errors import (
    ConfigError,
    InputError,
    LinkLostError,
    NeucodexError,
    SampleCode,
    SampleError,
)
from shared.model.bundle import Bundle
from tests.edge_agent.conftest import picture, png, until

METHODS = "/neucodex.v1.EdgeService/"


class Service:
    """A daemon in this process, and a caller of it."""

    def __init__(self, daemon: Daemon, channel: grpc.aio.Channel) -> None:
        self.daemon = daemon
        self.address = str(daemon.facts["address"])
        self.classify: Any = channel.unary_unary(
            METHODS + "Classify",
            request_serializer=pb.ClassifyRequest.SerializeToString,
            response_deserializer=pb.ClassifyReply.FromString,
        )
        self.stream: Any = channel.stream_stream(
            METHODS + "ClassifyStream",
            request_serializer=pb.ClassifyPart.SerializeToString,
            response_deserializer=pb.ClassifyReply.FromString,
        )

    async def by_client(self, work: Callable[[Edge], Any]) -> Any:
        """Let the public client do something, on another thread, since it blocks."""

        def do() -> Any:
            with Edge(self.address) as edge:
                return work(edge)

        return await asyncio.to_thread(do)

    async def hold(self) -> Any:
        """Begin a recording that keeps the only place in hand; returns its stream."""
        call = self.stream()
        before = self.daemon.loop.queue_depth
        await call.write(timestep(picture(0)))
        await until(lambda: self._begun(before))
        return call

    def waits_for(self, samples: int) -> bool:
        """Say whether so many samples wait."""
        return self.daemon.loop.queue_depth == samples

    def _begun(self, waiting_before: int) -> bool:
        loop = self.daemon.loop
        return loop.in_hand == 1 and loop.queue_depth == waiting_before


Services = Callable[..., contextlib.AbstractAsyncContextManager[Service]]


@pytest.fixture
def services(tmp_path: Path, edge_config: Callable[..., EdgeConfig]) -> Services:
    @contextlib.asynccontextmanager
    async def make(**values: Any) -> AsyncIterator[Service]:
        settings = {"placement": "edge_only", "listen": f"unix:{tmp_path / 'edge.sock'}"}
        async with (
            running(edge_config(**(settings | values))) as daemon,
            grpc.aio.insecure_channel(str(daemon.facts["address"])) as channel,
        ):
            yield Service(daemon, channel)

    return make


def whole(data: bytes | np.ndarray) -> pb.ClassifyPart:
    return pb.ClassifyPart(whole=pb.ClassifyRequest(input=wire.input_to_proto(data)))


def timestep(frame: np.ndarray, *, last: bool = False) -> pb.ClassifyPart:
    return pb.ClassifyPart(timestep=pb.Timestep(frame=wire.array_to_proto(frame), last=last))


def essence(answer: Answer | pb.ClassifyReply) -> tuple[int, int]:
    return answer.label, answer.timesteps_used


async def test_a_picture_may_be_bytes_a_path_an_image_or_an_array(
    services: Services, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png(0))
    image = Image.fromarray(picture(0).transpose(1, 2, 0))
    forms: list[Any] = [png(0), path, str(path), image, picture(0)]
    async with services() as service:
        answers = await service.by_client(lambda edge: [edge.classify(form) for form in forms])
    assert len({essence(answer) for answer in answers}) == 1
    answer = answers[0]
    assert answer.name == f"class{answer.label}"
    assert answer.placement == "edge_only"
    latency = answer.latency
    parts = latency.queue_seconds + latency.input_seconds + latency.head_seconds
    assert 0 < parts + latency.codec_seconds + latency.tail_seconds <= latency.total_seconds


async def test_the_socket_is_its_owners_alone_and_goes_with_the_daemon(
    services: Services, tmp_path: Path
) -> None:
    path = tmp_path / "edge.sock"
    async with services():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.exists()


async def test_a_socket_left_behind_is_replaced_but_not_one_that_answers(
    services: Services, tmp_path: Path
) -> None:
    path = tmp_path / "edge.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with services():
        with pytest.raises(ConfigError, match="another daemon answers there"):
            async with services():
                pass
        assert path.exists()


async def test_a_place_that_cannot_be_listened_at_is_refused(
    services: Services, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for place, message in (("file", "another file"), ("none/edge.sock", "existing folder")):
        with pytest.raises(ConfigError, match=message):
            async with services(listen=f"unix:{tmp_path / place}"):
                pass
    assert (tmp_path / "file").read_text() == "mine"


async def test_a_loopback_port_serves_too(services: Services) -> None:
    async with services(listen="127.0.0.1:0") as service:
        assert not service.address.endswith(":0")
        answer = await service.by_client(lambda edge: edge.classify(png(0)))
        assert answer.timesteps_used == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (copb.SampleInput(), "got nothing"),
        (copb.SampleInput(encoded_image=b"no image"), "expected an image file"),
        (wire.input_to_proto(png(0)[:200]), "damaged"),
        (wire.input_to_proto(np.zeros((3, 31, 32), np.uint8)), "expected an array"),
        (wire.input_to_proto(np.full((3, 32, 32), np.nan, np.float32)), "finite"),
        (
            copb.SampleInput(array=copb.Array(shape=(3, 32, 32), dtype=copb.Array.UINT8)),
            "expected 3072 bytes",
        ),
        (copb.SampleInput(array=copb.Array(shape=(3, 32, 32), data=b"1")), "UINT8 or FLOAT32"),
    ],
)
async def test_an_unusable_input_is_told_as_such(
    services: Services, data: copb.SampleInput, message: str
) -> None:
    async with services() as service:
        with pytest.raises(grpc.aio.AioRpcError, match=message) as raised:
            await service.classify(pb.ClassifyRequest(input=data))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        good = await service.classify(pb.ClassifyRequest(input=wire.input_to_proto(png(0))))
        assert good.timesteps_used == 4


async def test_statuses_tell_deadline_full_queue_and_lost_cloud(services: Services) -> None:
    request = pb.ClassifyRequest(input=wire.input_to_proto(png(0)))
    hasty = pb.ClassifyRequest(input=wire.input_to_proto(png(0)), deadline_seconds=0.05)
    async with services(queue_limit=1) as service:
        held = await service.hold()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.classify(hasty)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        waiting = service.classify(request)
        await until(lambda: service.daemon.loop.queue_depth == 1)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.classify(request)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await held.done_writing()
        assert (await held.read()).timesteps_used == (await waiting).timesteps_used == 4
    lost = {"placement": "co_inference", "cloud": "127.0.0.1:1", "deadline_seconds": 0.3}
    async with services(**lost) as service:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.classify(request)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_deadline_that_is_none_is_refused(services: Services) -> None:
    async with services() as service:
        request = pb.ClassifyRequest(input=wire.input_to_proto(png(0)), deadline_seconds=-1)
        with pytest.raises(grpc.aio.AioRpcError, match="expected a deadline") as raised:
            await service.classify(request)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_caller_that_cancels_ends_its_sample_waiting_or_begun(services: Services) -> None:
    request = pb.ClassifyRequest(input=wire.input_to_proto(png(0)))
    async with services() as service:
        loop = service.daemon.loop
        held = await service.hold()
        waiting, following = service.classify(request), service.classify(request)
        await until(lambda: loop.queue_depth == 2)
        waiting.cancel()
        await until(lambda: loop.queue_depth == 1)
        held.cancel()
        assert (await following).timesteps_used == 4
        await until(lambda: loop.in_hand == 0)
        assert loop.answered == 1


async def test_callers_are_served_in_the_order_of_their_arrival(services: Services) -> None:
    async with services() as service:
        held = await service.hold()
        order: list[int] = []

        async def ask(index: int) -> None:
            await service.classify(pb.ClassifyRequest(input=wire.input_to_proto(png(index))))
            order.append(index)

        calls = []
        for index in range(3):
            calls.append(asyncio.create_task(ask(index)))
            await until(partial(service.waits_for, index + 1))
        await held.done_writing()
        await asyncio.gather(*calls)
        assert order == [0, 1, 2]


async def test_a_stream_is_answered_in_order_with_errors_in_their_place(
    services: Services,
) -> None:
    inputs: list[Any] = [png(0), b"no image", *(png(seed) for seed in range(1, 12))]
    async with services() as service:
        straight = await service.by_client(
            lambda edge: [edge.classify(png(seed)) for seed in range(12)]
        )
        outcomes = await service.by_client(lambda edge: list(edge.classify_stream(inputs)))
    failed = outcomes.pop(1)
    assert isinstance(failed, InputError)
    assert list(map(essence, outcomes)) == list(map(essence, straight))


async def test_timesteps_make_inputs_by_last_or_by_their_number(services: Services) -> None:
    frames = [picture(seed) for seed in range(4)]
    parts = [
        *(timestep(frame) for frame in frames),
        timestep(frames[0]),
        timestep(frames[1], last=True),
        timestep(np.zeros((3, 9, 9), np.uint8)),
        timestep(frames[0], last=True),
        pb.ClassifyPart(),
        timestep(frames[2]),
        whole(frames[3]),
        timestep(frames[3]),
    ]
    async with services() as service:
        runs = [[0, 1, 2, 3], [0, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3], [3, 3, 3, 3]]
        stacked = [np.stack([frames[index] for index in run]) for run in runs]
        expected = await service.by_client(
            lambda edge: [essence(edge.classify(each)) for each in stacked]
        )
        replies = [reply async for reply in service.stream(iter(parts))]
        recorded = await service.by_client(lambda edge: edge.classify_recording(frames))
    errors = [reply.error for reply in replies]
    assert [bool(error) for error in errors] == [False, False, True, True, False, False, False]
    assert errors[2].startswith("INVALID_ARGUMENT: expected an array")
    assert "got nothing" in errors[3]
    assert [essence(reply) for reply in replies if not reply.error] == expected
    assert essence(recorded) == expected[0]


async def test_an_early_exit_is_answered_before_the_recording_ends(services: Services) -> None:
    async with services(alpha=0.0) as service:
        call = service.stream()
        await call.write(timestep(picture(0)))
        first = await call.read()
        # The rest of that recording is passed over; the next begins after its end.
        for part in (timestep(picture(1)), timestep(picture(1), last=True), timestep(picture(2))):
            await call.write(part)
        second = await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert first.timesteps_used == second.timesteps_used == 1


async def test_a_stream_that_is_cut_ends_its_samples(services: Services) -> None:
    async with services() as service:
        held = await service.hold()
        await held.write(timestep(picture(0), last=True))
        await held.read()
        call = await service.hold()
        call.cancel()
        await until(lambda: service.daemon.loop.in_hand == 0)


async def test_status_tells_what_the_daemon_is_and_does(
    services: Services, tiny_bundle: Bundle
) -> None:
    async with services() as service:
        await service.classify(pb.ClassifyRequest(input=wire.input_to_proto(png(0))))
        status = await service.by_client(lambda edge: edge.status())
    assert status["model_digest"] == tiny_bundle.digest
    assert (status["placement"], status["cloud"], status["connected"]) == ("edge_only", "", False)
    assert (status["answered"], status["queue_depth"]) == (1, 0)


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda edge: edge.classify(b"no image"), InputError),
        (lambda edge: edge.classify(np.zeros((3, 32, 32))), InputError),
        (lambda edge: edge.classify_recording([]), InputError),
        (lambda edge: edge.classify_recording([np.zeros((1, 1, 1), np.uint8)]), InputError),
        (lambda edge: edge.classify("no-such-file.png"), OSError),
    ],
)
async def test_the_client_raises_the_packages_errors(
    services: Services, ask: Callable[[Edge], Any], error: type[Exception]
) -> None:
    async with services() as service:
        with pytest.raises(error):
            await service.by_client(ask)


async def test_the_client_tells_a_full_queue_and_a_passed_deadline(services: Services) -> None:
    async with services(queue_limit=1) as service:
        held = await service.hold()
        with pytest.raises(SampleError) as raised:
            await service.by_client(lambda edge: edge.classify(png(0), deadline_seconds=0.05))
        assert raised.value.code is SampleCode.DEADLINE
        waiting = service.classify(pb.ClassifyRequest(input=wire.input_to_proto(png(0))))
        await until(lambda: service.daemon.loop.queue_depth == 1)
        with pytest.raises(QueueFullError):
            await service.by_client(lambda edge: edge.classify(png(0)))
        held.cancel()
        await waiting


def test_the_client_says_that_no_daemon_is_there(tmp_path: Path) -> None:
    with Edge(f"unix:{tmp_path / 'none.sock'}") as edge:
        with pytest.raises(LinkLostError, match="none.sock"):
            edge.classify(png(0))
        with pytest.raises(NeucodexError, match="none.sock"):
            list(edge.classify_stream([png(0)]))


async def test_a_full_queue_slows_callers_down_if_so_configured(services: Services) -> None:
    async with services(queue_limit=1, queue_policy="block") as service:
        held = await service.hold()
        calls = [service.classify(whole(png(seed)).whole) for seed in range(4)]
        stream = service.stream()
        for seed in range(6):
            await stream.write(whole(png(seed)))
        await stream.done_writing()
        await until(lambda: service.waits_for(1))
        held.cancel()
        assert {reply.timesteps_used for reply in await asyncio.gather(*calls)} == {4}
        replies = [reply async for reply in stream]
        assert [(reply.error, reply.timesteps_used) for reply in replies] == [("", 4)] * 6


async def test_a_client_finds_its_daemon_again_after_a_restart(services: Services) -> None:
    async with services() as service:
        edge = Edge(service.address)
        expected = essence(await asyncio.to_thread(edge.classify, png(0)))
    with pytest.raises(LinkLostError):
        await asyncio.to_thread(edge.classify, png(0))

    async def ask() -> tuple[int, int]:
        while True:
            with contextlib.suppress(LinkLostError):
                return essence(await asyncio.to_thread(edge.classify, png(0)))
            await asyncio.sleep(0.05)

    async with services(), asyncio.timeout(10):
        assert await ask() == expected
    edge.close()
